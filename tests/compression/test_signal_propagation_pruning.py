"""Pruning at initialisation: sensitivities, isometry, the paper's sizes, and masks that stay."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.compression.compressed import CompressedModel, find_targets, sparsity, strip
from zoo.compression.pruning_networks import (
    INITIALIZERS,
    ConvolutionalOrthogonal,
    initializer,
    multilayer_perceptron,
    pruned_residual_network,
    vgg,
    wide_residual_network,
)
from zoo.compression.signal_propagation_pruning import (
    METHODS,
    FixedMaskStage,
    SignalPropagationPruning,
    choose_masks,
    connection_sensitivity,
    cut_layers,
    densities,
    enforce_isometry,
    isometry_penalty,
    jacobian_singular_values,
    prune_at_initialization,
    sculpt,
    weight_scores,
)
from zoo.compression.tfmot import quantize_aware
from zoo.export.runners import open_artifact

layers = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def perceptron(sizes=(12, 16, 16, 5), activation="tanh", bias=0.1):
    """A small chain of dense layers, with biases that are not zero."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((sizes[0],), name="image")
    for index, size in enumerate(sizes[1:-1], start=1):
        x = layers.Dense(size, activation, name=f"dense_{index}")(x)
    model = keras.Model(inputs, layers.Dense(sizes[-1], name="logits")(x))
    for layer in model.layers[1:]:
        layer.bias.assign(bias * np.random.default_rng(1).normal(size=layer.bias.shape))
    return model


def examples(size=64, features=12, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, features)).astype("float32"), rng.integers(0, classes, size)


@keras.saving.register_keras_serializable("test_signal_propagation_pruning")
class Subclassed(keras.Model):
    """Normalisation, dropout and a skip, in a class of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(16, name="first"), layers.Dense(16, name="second")
        self.norm, self.dropout = layers.BatchNormalization(name="norm"), layers.Dropout(0.2)
        self.head = layers.Dense(5, name="head")

    def call(self, inputs, training=False):
        x = keras.ops.relu(self.norm(self.first(inputs), training=training))
        return self.head(self.dropout(x + self.second(x), training=training))

    def get_config(self):
        return {"name": self.name}


def subclassed():
    keras.utils.set_random_seed(0)
    model = Subclassed(name="subclassed")
    model(np.zeros((1, 12), "float32"))
    return model


def number_of(masks):
    return sum(int(mask.sum()) for mask in masks.values())


# === 1. Sensitivities ===


def masked_loss(model, masks, x, y):
    """The loss of a perceptron with masks, written anew in float64."""
    value = tf.constant(x, tf.float64)
    chain = [layer for layer in model.layers if layer.weights]
    for index, layer in enumerate(chain):
        kernel, bias = (
            tf.constant(w, tf.float64) * masks[v.path] for v, w in zip(layer.weights, layer.get_weights(), strict=True)
        )
        value = tf.matmul(value, kernel) + bias
        value = tf.tanh(value) if index < len(chain) - 1 else value
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=value))


def test_sensitivity_is_the_derivative_by_the_mask():
    model, (x, y) = perceptron(), examples()
    masks = {t.path: tf.Variable(tf.ones(t.shape, tf.float64)) for t in find_targets(model)}
    with tf.GradientTape() as tape:
        loss = masked_loss(model, masks, x, y)
    wanted = {path: np.abs(g) for path, g in zip(masks, tape.gradient(loss, list(masks.values())), strict=True)}
    total = sum(value.sum() for value in wanted.values())

    scores = connection_sensitivity(model, (x, y))

    assert list(scores) == [v.path for v in model.trainable_variables]  # biases included
    assert sum(score.sum() for score in scores.values()) == pytest.approx(1, abs=1e-12)
    for path, score in scores.items():
        np.testing.assert_allclose(score, wanted[path] / total, rtol=2e-5, atol=1e-6 * wanted[path].max() / total)


def test_sensitivity_is_weight_times_gradient_to_a_millionth():
    model, (x, y) = perceptron(), examples()
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(y, model(x))
    variables = model.trainable_variables
    products = [np.abs(w * np.array(g)) for w, g in zip(variables, tape.gradient(loss, variables), strict=True)]
    total = sum(product.sum(dtype="float64") for product in products)

    scores = connection_sensitivity(model, [(x, y)], CROSS_ENTROPY)

    for score, product in zip(scores.values(), products, strict=True):
        np.testing.assert_allclose(score, product / total, rtol=1e-6, atol=1e-6 * product.max() / total)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_eulers_identity_of_homogeneous_networks(activation):
    """The signed sums of w dL/dw over each layer are equal; over one input of batches each, signs come out."""
    model, (x, y) = perceptron((12, 16, 16, 16, 5), activation, bias=0.0), examples()
    sums = []
    for layer in model.layers[1:]:
        kernel = np.array(layer.kernel)
        losses = []
        for factor in (1 - 1e-3, 1 + 1e-3):
            layer.kernel.assign(factor * kernel)
            losses.append(float(tf.reduce_mean(CROSS_ENTROPY(y, tf.cast(model(x), tf.float64)))))
        layer.kernel.assign(kernel)
        sums.append((losses[1] - losses[0]) / 2e-3)
    signed = signed_sums(model, x, y)

    np.testing.assert_allclose(signed, signed[0], rtol=1e-4)
    np.testing.assert_allclose(signed, sums, rtol=1e-2)


def signed_sums(model, x, y):
    """The sum of g over each kernel, out of scores: a kernel of one sign of g at a time."""
    scores = connection_sensitivity(model, (x, y))
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(y, model(x))
    kernels = [layer.kernel for layer in model.layers[1:]]
    products = [
        np.array(k, "float64") * np.array(g) for k, g in zip(kernels, tape.gradient(loss, kernels), strict=True)
    ]
    scale = sum(np.abs(product).sum() for product in products)
    return [float((scale * scores[k.path] * np.sign(p)).sum()) for k, p in zip(kernels, products, strict=True)]


def test_labels_may_be_one_hot_and_outputs_probabilities():
    model, (x, y) = perceptron(), examples()
    softmax = keras.Model(model.inputs, layers.Softmax()(model.output))

    wanted = connection_sensitivity(model, (x, y))

    for other, labels in ((model, keras.utils.to_categorical(y, 5).astype("float32")), (softmax, y)):
        for path, score in connection_sensitivity(other, (x, labels)).items():
            np.testing.assert_allclose(score, wanted[path], rtol=1e-3, atol=1e-7)


def test_a_compiled_loss_is_used():
    model, (x, y) = perceptron(), examples()
    default = connection_sensitivity(model, (x, y))["dense_1/kernel"]
    model.compile("sgd", "mse")
    targets = keras.utils.to_categorical(y, 5).astype("float32")

    scores = connection_sensitivity(model, (x, targets))["dense_1/kernel"]

    np.testing.assert_allclose(scores, connection_sensitivity(model, (x, targets), "mse")["dense_1/kernel"], rtol=1e-5)
    assert not np.allclose(scores, default, rtol=0.1)


def test_normalisation_is_left_alone():
    model, (x, y) = subclassed(), examples()
    before = [np.array(v) for v in model.non_trainable_variables if v.dtype == "float32"]

    scores = connection_sensitivity(model, (x, y))

    assert not any("norm" in path for path in scores)
    after = [np.array(v) for v in model.non_trainable_variables if v.dtype == "float32"]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


# === 2. Masks ===


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.987])
def test_masks_keep_the_highest_scores_and_exactly_kappa(share):
    scores = connection_sensitivity(perceptron(), examples())
    values = np.concatenate([score.ravel() for score in scores.values()])

    masks = choose_masks(scores, share)

    kept = np.concatenate([mask.ravel() for mask in masks.values()])
    assert kept.sum() == round(values.size * (1 - share))
    assert values[kept].min() >= values[~kept].max(initial=0)


def test_ties_do_not_change_the_count():
    scores = {"a/kernel": np.full((10, 10), 0.005), "b/kernel": np.full((10, 10), 0.005)}

    assert number_of(choose_masks(scores, 0.73)) == 54


def test_global_densities_differ_and_those_of_layers_do_not():
    model = multilayer_perceptron((100,) * 6, "tanh", 10, (64,))
    scores = connection_sensitivity(model, examples(100, 64, 10))

    kept = {scope: choose_masks(scores, 0.9, scope) for scope in ("global", "layer")}

    kernels = {
        scope: [value for path, value in densities(masks).items() if "kernel" in path] for scope, masks in kept.items()
    }
    assert max(kernels["global"]) > 2 * min(kernels["global"])
    for layer in model.layers[1:]:
        size = sum(int(np.prod(w.shape)) for w in layer.weights)
        if size:
            assert sum(kept["layer"][w.path].sum() for w in layer.weights) == round(size * 0.1)


@pytest.mark.parametrize("scope", ["1x4", "2x4"])
def test_blocks_go_whole_and_the_highest_sums_stay(scope):
    channels, inputs = {"1x4": (1, 4), "2x4": (2, 4)}[scope]
    scores = connection_sensitivity(perceptron((16, 8, 8, 4)), examples(features=16, classes=4))

    masks = choose_masks(scores, 0.5, scope)

    for path, mask in masks.items():
        if "kernel" in path:
            blocks = mask.reshape(mask.shape[0] // inputs, inputs, mask.shape[1] // channels, channels)
            shares = blocks.mean((1, 3))
            assert set(np.unique(shares)) <= {0.0, 1.0}, path
    total = sum(mask.size for mask in masks.values())
    assert 0.5 * total - channels * inputs < number_of(masks) <= 0.5 * total


def test_channels_go_with_their_biases():
    model = perceptron((12, 16, 16, 5))
    scores = connection_sensitivity(model, examples())

    masks = choose_masks(scores, 0.4, "channel", keep=["logits/*"])

    for name in ("dense_1", "dense_2"):
        kernel, bias = masks[f"{name}/kernel"], masks[f"{name}/bias"]
        np.testing.assert_array_equal(kernel.any(0), kernel.all(0))
        np.testing.assert_array_equal(kernel.all(0), bias)
        assert 0 < bias.sum() < 16
    assert masks["logits/kernel"].all() and masks["logits/bias"].all()


def test_a_least_number_of_connections_guards_the_last_layer():
    rng = np.random.default_rng(0)
    scores = {"first/kernel": rng.random((50, 50)) + 1, "last/kernel": rng.random((50, 10))}

    assert cut_layers(choose_masks(scores, 0.9)) == ["last/kernel"]
    masks = choose_masks(scores, 0.9, minimum=3)
    assert cut_layers(masks) == [] and masks["last/kernel"].sum() == 3 and number_of(masks) == 300
    best = np.argsort(-scores["last/kernel"].ravel())[:3]
    assert masks["last/kernel"].ravel()[best].all()


# === 3. Signed sums ===


def test_opposite_batches_cancel():
    """The loss is the mean output, of which batches of x and -x have opposite derivatives."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False, kernel_initializer="ones")])
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")

    def scores(*batches):
        (found,) = connection_sensitivity(model, batches, lambda labels, outputs: tf.reduce_mean(outputs)).values()
        return found

    np.testing.assert_array_equal(scores((x, y)), np.full((2, 2), 0.25))
    np.testing.assert_array_equal(scores((x, y), (-x, y)), np.zeros((2, 2)))
    np.testing.assert_array_equal(scores((x, y), (-2 * x, y)), np.full((2, 2), 0.25))


def test_batches_count_by_their_size_and_one_batch_is_snip():
    model, (x, y) = perceptron(), examples(250)

    whole = connection_sensitivity(model, [(x, y)])
    parts = connection_sensitivity(model, (x, y))  # 100, 100 and 50
    first = connection_sensitivity(model, (x, y), batches=1)

    for path in whole:
        np.testing.assert_allclose(parts[path], whole[path], rtol=1e-3, atol=1e-8)
    alone = connection_sensitivity(model, [(x[:100], y[:100])])
    for path in whole:
        np.testing.assert_array_equal(first[path], alone[path])
    assert not np.allclose(first["dense_1/kernel"], whole["dense_1/kernel"], rtol=0.01)


# === 4. Orthogonal kernels ===


@pytest.mark.parametrize("shape", [(100, 30), (30, 100), (64, 64)])
def test_orthogonal_matrices(shape):
    kernel = np.array(initializer("orthogonal")(shape), "float64")

    product = kernel.T @ kernel if shape[0] >= shape[1] else kernel @ kernel.T

    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-5)


def circular(x, kernel):
    """Cross-correlation with periodic borders, by shifts."""
    size = kernel.shape[0]
    return sum(
        np.roll(x, (-row, -column), (1, 2)) @ kernel[row, column] for row in range(size) for column in range(size)
    )


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 3, 3, 16), (1, 1, 5, 7), (2, 2, 4, 4), (5, 5, 6, 9)])
def test_orthogonal_convolutions_preserve_norms(shape):
    kernel = np.array(ConvolutionalOrthogonal(seed=3)(shape), "float64")
    x = np.random.default_rng(0).normal(size=(4, 8, 8, shape[2]))

    y = circular(x, kernel)

    wanted = np.linalg.norm(x.reshape(4, -1), axis=1)
    np.testing.assert_allclose(np.linalg.norm(y.reshape(4, -1), axis=1), wanted, rtol=1e-4)
    if shape[0] > 1:  # no kernel of a single pixel
        assert (np.abs(kernel).max((2, 3)) > 1e-3).sum() > 1


def test_convolutional_orthogonal_follows_seeds_and_gain():
    shape = (3, 3, 4, 8)
    same = [np.array(ConvolutionalOrthogonal(seed=1)(shape)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert np.abs(np.array(ConvolutionalOrthogonal(seed=2)(shape)) - same[0]).max() > 0.01
    np.testing.assert_allclose(ConvolutionalOrthogonal(2.0, seed=1)(shape), 2 * same[0], rtol=1e-6)
    again = ConvolutionalOrthogonal.from_config(ConvolutionalOrthogonal(2.0, 1).get_config())
    np.testing.assert_array_equal(again(shape), ConvolutionalOrthogonal(2.0, seed=1)(shape))


@pytest.mark.parametrize("shape", [(3, 3, 8, 4), (3, 2, 4, 8), (4, 8)])
def test_shapes_without_orthogonal_convolutions(shape):
    with pytest.raises(ValueError, match=r"`shape` must be .*Received: shape="):
        ConvolutionalOrthogonal()(shape)


@pytest.mark.parametrize(
    ("name", "variance"), [("normal", 1), ("lecun", 1 / 300), ("glorot", 2 / 500), ("he", 2 / 300)]
)
def test_variances_of_untruncated_normals(name, variance):
    keras.utils.set_random_seed(0)
    values = np.array(initializer(name)((300, 200)))

    # 60,000 values: the relative standard error of a variance is 0.6 %
    assert values.var() == pytest.approx(variance, rel=0.03)
    assert np.abs(values).max() > 3 * values.std()


def test_unknown_initializer():
    with pytest.raises(ValueError, match=r"`name` must be one of .*Received: name='uniform'"):
        initializer("uniform")


# === 5. Jacobians ===


def linear(depth=7, width=100):
    keras.utils.set_random_seed(0)
    return multilayer_perceptron((width,) * (depth - 1), "linear", width, (width,))


def test_isometry_of_a_linear_network_is_lost_and_regained():
    model, (x, y) = linear(), examples(200, 100, 100)

    before = jacobian_singular_values(model, x[:3])
    np.testing.assert_allclose(before, 1, atol=1e-4)

    sparse = prune_at_initialization(model, (x, y), 0.9)
    pruned = jacobian_singular_values(sparse, x[:3]).mean()
    assert pruned < before.mean() / 10

    enforce_isometry(sparse, 1500)
    assert jacobian_singular_values(sparse, x[:3]).mean() > 10 * pruned


def test_jacobians_by_the_chain_rule():
    model, (x, _) = perceptron(), examples(4)
    inner, outer = model.get_layer("dense_2"), model.get_layer("logits")
    hidden = keras.Model(model.inputs, inner.output)(x).numpy()

    found = jacobian_singular_values(model, x, "dense_2")

    assert found.shape == (4, 16)
    for row, values in zip(hidden, found, strict=True):
        matrix = np.diag(1 - row**2) @ np.array(inner.kernel).T
        np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-4, atol=1e-5)
    kernel = np.array(outer.kernel)
    last = jacobian_singular_values(model, x, "logits")
    np.testing.assert_allclose(last[0], np.linalg.svd(kernel.T, compute_uv=False), rtol=1e-4)


# === 6. Approximate isometry ===


def test_gradient_of_the_penalty_against_finite_differences():
    rng = np.random.default_rng(0)
    shapes = [(7, 4), (3, 5)]
    kernels = [tf.constant(rng.normal(size=shape)) for shape in shapes]
    masks = [tf.constant((rng.random(shape) < 0.5).astype("float64")) for shape in shapes]

    value, gradients = isometry_penalty(kernels, masks)

    wanted = sum(
        np.linalg.norm((m * k).numpy().T @ (m * k).numpy() - np.eye(k.shape[1]))
        for k, m in zip(kernels, masks, strict=True)
    )
    assert float(value) == pytest.approx(wanted, rel=1e-12)
    for index, shape in enumerate(shapes):
        for place in itertools.product(*map(range, shape)):
            step = np.zeros(shape)
            step[place] = 1e-6
            moved = [[k + sign * step if i == index else k for i, k in enumerate(kernels)] for sign in (-1, 1)]
            low, high = (float(isometry_penalty(each, masks)[0]) for each in moved)
            assert float(gradients[index][place]) == pytest.approx((high - low) / 2e-6, abs=1e-7)


def test_orthogonal_kernels_stay():
    kernel = tf.eye(5)
    value, (gradient,) = isometry_penalty([kernel], [tf.ones((5, 5))])

    assert float(value) == 0 and np.array_equal(gradient, np.zeros((5, 5)))


def test_penalty_falls_and_masked_weights_stay_zero():
    model = multilayer_perceptron((50,) * 3, "tanh", 10, (64,), "glorot")
    sparse = prune_at_initialization(model, examples(100, 64, 10), 0.8)
    masks, biases = sparse.stage(FixedMaskStage).masks, [np.array(layer.bias) for layer in model.layers[1:]]

    penalties = enforce_isometry(sparse, 1200)

    assert penalties.shape == (1201,) and np.isfinite(penalties).all()
    assert penalties[-1] < 0.2 * penalties[0]
    # A step of 0.1 times a gradient of bounded norm: what it may overshoot by
    assert np.diff(penalties).max() < 0.1 * penalties[0]
    for target in sparse.targets:
        assert (np.array(target.variable)[~masks[target.path]] == 0).all()
    for layer, bias in zip(model.layers[1:], biases, strict=True):
        np.testing.assert_array_equal(layer.bias, bias)
    np.testing.assert_array_equal(enforce_isometry(sparse, 0).shape, (1,))


def test_penalty_falls_at_every_small_step():
    model = multilayer_perceptron((50,) * 3, "tanh", 10, (64,), "glorot")
    sparse = prune_at_initialization(model, examples(100, 64, 10), 0.8)

    penalties = enforce_isometry(sparse, 300, learning_rate=0.002)

    assert (np.diff(penalties) < 0).all()


def test_isometry_of_convolutions_reshapes_them_to_matrices():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(4)])

    penalties = enforce_isometry(model, 1500)

    kernel = np.array(model.layers[0].kernel).reshape(27, 8)
    assert np.linalg.norm(kernel.T @ kernel - np.eye(8)) < 0.5
    dense = np.array(model.layers[2].kernel)
    assert penalties[-1] == pytest.approx(
        np.linalg.norm(kernel.T @ kernel - np.eye(8)) + np.linalg.norm(dense.T @ dense - np.eye(4)), rel=1e-3, abs=1e-4
    )


def test_depthwise_kernels_and_embeddings_are_left_alone():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8)(tokens)
    model = keras.Model(tokens, layers.Dense(4)(layers.Flatten()(layers.DepthwiseConv1D(3)(x))))
    fixed = [np.array(variable) for variable in model.trainable_variables[:2]]

    enforce_isometry(model, 50)

    for variable, value in zip(model.trainable_variables[:2], fixed, strict=True):
        np.testing.assert_array_equal(variable, value)


# === 7. The documented failure ===


def test_normal_weights_cut_a_layer_and_training_stays_at_chance():
    keras.utils.set_random_seed(0)
    model = multilayer_perceptron((100,) * 6, "tanh", 10, (64,), "normal")
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(10), 50)
    x = (rng.normal(size=(10, 64))[y] + 0.3 * rng.normal(size=(500, 64))).astype("float32")
    with pytest.warns(UserWarning, match=r"No connection is left in \['dense_"):
        sparse = prune_at_initialization(model, (x, y), 0.9)

    assert cut_layers(sparse.stage(FixedMaskStage).masks)
    assert accuracy_after_training(sparse, x, y) == pytest.approx(0.1)
    scaled = prune_at_initialization(
        multilayer_perceptron((100,) * 6, "tanh", 10, (64,)), (x, y), 0.9, isometry_steps=1000
    )
    assert accuracy_after_training(scaled, x, y) > 0.9


def accuracy_after_training(model, x, y):
    model.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY, metrics=["accuracy"])
    model.fit(x, y, batch_size=100, epochs=100, verbose=0)
    return model.evaluate(x, y, verbose=0)[1]


# === 8. Uniform labels ===


def test_uniform_labels_of_a_linear_classifier_in_closed_form():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="only")])
    model.layers[0].bias.assign([0.3, -0.2, 0.1, 0.5])
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    x = examples(40, 6)[0]
    logits = x @ kernel + bias
    excess = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - 1 / 4
    wanted = [np.abs(kernel * (x.T @ excess) / 40), np.abs(bias * excess.mean(0))]
    total = sum(value.sum() for value in wanted)

    for batch in (x, (x,), (x, np.zeros(40, int))):
        scores = connection_sensitivity(model, [batch], labels="uniform")
        for score, value in zip(scores.values(), wanted, strict=True):
            np.testing.assert_allclose(score, value / total, rtol=1e-4, atol=1e-7)


def test_masks_without_labels_overlap_with_those_of_labels():
    model = multilayer_perceptron((50,) * 3, "tanh", 10, (64,))
    data = examples(200, 64, 10)

    found = [choose_masks(connection_sensitivity(model, data, labels=labels), 0.9) for labels in ("data", "uniform")]

    shared = sum(int((found[0][path] & found[1][path]).sum()) for path in found[0])
    assert number_of(found[1]) == number_of(found[0]) > shared > 3 * 0.1 * number_of(found[0])


# === 9. Masked weights never return ===


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.Adam(1e-2),
        lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    ],
)
def test_training_never_revives_masked_weights(optimizer):
    model, (x, y) = perceptron(), examples()
    # Momentum from before, which would go on pushing
    model.compile(optimizer(), CROSS_ENTROPY)
    model.fit(x, y, epochs=2, verbose=0)
    sparse = prune_at_initialization(model, (x, y), 0.7)
    masks = sparse.stage(FixedMaskStage).masks
    sparse.compile(optimizer(), CROSS_ENTROPY)
    before = [np.array(target.variable) for target in sparse.targets]

    losses = sparse.fit(x, y, epochs=15, batch_size=16, verbose=0).history["loss"]

    assert losses[-1] < losses[0]
    for target, old in zip(sparse.targets, before, strict=True):
        value = np.array(target.variable)
        assert not value[~masks[target.path]].view("int32").any(), "must be zero, bit for bit"
        kept = masks[target.path]
        assert not kept.any() or (value != old)[kept].any()


def test_masks_hide_gradients():
    model, (x, y) = perceptron(), examples()
    sparse = prune_at_initialization(model, (x, y), 0.7)
    masks = sparse.stage(FixedMaskStage).masks
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(y, sparse(x))
    for target, gradient in zip(
        sparse.targets, tape.gradient(loss, [t.variable.value for t in sparse.targets]), strict=True
    ):
        assert (np.array(gradient)[~masks[target.path]] == 0).all()


# === The paper's networks ===

CIFAR = (10, (32, 32, 3), "he")
NETWORK_SIZES = {
    "mlp3": (lambda: multilayer_perceptron((100,) * 2, "tanh", 10, (28, 28, 1)), 89_610),
    "mlp7": (lambda: multilayer_perceptron((100,) * 6, "tanh", 10, (28, 28, 1)), 130_010),
    "lenet_300_100": (lambda: multilayer_perceptron((300, 100), "tanh", 10, (28, 28, 1)), 266_610),
    "vgg": (lambda: vgg(*CIFAR), 10_526_538),
    "resnet32": (lambda: pruned_residual_network(32, *CIFAR), 463_018),
    "resnet56": (lambda: pruned_residual_network(56, *CIFAR), 850_986),
    "resnet110": (lambda: pruned_residual_network(110, *CIFAR), 1_723_914),
    "wrn16_6": (lambda: wide_residual_network(16, 6, *CIFAR), 6_170_090),
}


@pytest.mark.parametrize("name", NETWORK_SIZES)
def test_numbers_of_prunable_parameters(name):
    build, wanted = NETWORK_SIZES[name]
    model = build()

    stage = FixedMaskStage()
    CompressedModel(model, [stage])

    assert sum(mask.size for mask in stage.masks.values()) == wanted
    assert model.output.shape == (None, 10)


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(zoo.info("signal_propagation_pruning").presets))
def test_presets_have_their_sizes(preset):
    model = zoo.get("signal_propagation_pruning", preset=preset, weights=None)

    assert model.count_params() == zoo.info("signal_propagation_pruning").preset(preset).parameters


def test_residual_networks_initialise_all_layers_by_one_scheme():
    keras.utils.set_random_seed(0)
    model = pruned_residual_network(8, 10, (16, 16, 3), "normal")

    for path, value in ((v.path, np.array(v)) for v in model.trainable_variables):
        if path.endswith("kernel"):
            assert value.std() == pytest.approx(1, abs=0.2), path


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: wide_residual_network(17), r"`depth` must be .*6n \+ 4.*Received: depth=17"),
        (lambda: pruned_residual_network(33, *CIFAR), r"`depth` must be .*6n \+ 2.*Received: depth=33"),
    ],
)
def test_depths_that_do_not_exist(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# === Any model ===

MODELS = {
    "functional": perceptron,
    "subclassed": subclassed,
    "sequential": lambda: keras.Sequential(
        [keras.Input((12,)), layers.Dense(16, "relu"), layers.Dense(16, "relu"), layers.Dense(5)]
    ),
}


# Every kind and every way once in the quick suite, all pairs in the slow one
PAIRS = [
    pytest.param(method, kind, marks=() if place % (len(MODELS) + 1) == 0 else pytest.mark.slow)
    for place, (method, kind) in enumerate(itertools.product(METHODS, MODELS))
]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_prunes_trains_saves_loads_and_strips(kind, method, tmp_path):
    keras.utils.set_random_seed(0)
    model, (x, y) = MODELS[kind](), examples()
    sparse = prune_at_initialization(model, (x, y), 0.5, method=method, isometry_steps=20)
    masks = sparse.stage(FixedMaskStage).masks
    sparse.compile(keras.optimizers.Adam(1e-2), CROSS_ENTROPY)
    losses = sparse.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]

    sparse.save(tmp_path / "model.keras")
    loaded = zoo.load_model(tmp_path / "model.keras")

    before = sparse.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)
    # Keras gives the variables of a loaded model other paths
    kept = loaded.stage(FixedMaskStage).masks
    for mask, wanted in zip(kept.values(), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, wanted)
    loaded.fit(x, y, epochs=1, verbose=0)
    for target in loaded.transformed_targets:
        assert (np.array(target.variable)[~kept[target.path]] == 0).all()
    plain = strip(sparse)
    assert type(plain) is type(model)
    np.testing.assert_allclose(plain.predict(x, verbose=0), before, rtol=1e-5, atol=1e-6)
    assert min(sparsity(plain).values()) > 0.1


@pytest.mark.slow
def test_a_method_of_the_catalog_with_a_loss_of_its_own():
    model = zoo.get("compressive_transformer")
    tokens = np.random.default_rng(0).integers(0, 75, (4, 64)).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    sparse = prune_at_initialization(model, (tokens, tokens), 0.5, loss=loss)

    total = sum(mask.size for mask in sparse.stage(FixedMaskStage).masks.values())
    assert number_of(sparse.stage(FixedMaskStage).masks) == round(total / 2)
    assert set(sparse.signatures()) == set(model.signatures())
    sparse.compile(keras.optimizers.Adam(1e-3), loss)
    assert np.isfinite(sparse.fit(tokens, tokens, verbose=0).history["loss"]).all()


def test_random_masks_follow_their_seed():
    kept = [
        prune_at_initialization(perceptron(), None, 0.5, method="random", seed=seed).stage(FixedMaskStage).masks
        for seed in (1, 1, 2)
    ]
    path = "dense_1/kernel"

    np.testing.assert_array_equal(kept[0][path], kept[1][path])
    assert (kept[0][path] != kept[2][path]).mean() > 0.3


def test_largest_weights_stay():
    model = perceptron()
    kernel = np.abs(np.array(model.get_layer("dense_1").kernel))

    masks = choose_masks(weight_scores(model, "magnitude"), 0.5, "layer")

    mask = masks["dense_1/kernel"]
    assert kernel[mask].min() >= kernel[~mask].max()


@pytest.mark.parametrize("scope", ["global", "layer", "1x4"])
def test_sculpt_meets_its_budget(scope):
    sparse = sculpt(perceptron((12, 64, 64, 5)), examples(), 500, scope=scope)

    kept = number_of(sparse.stage(FixedMaskStage).masks)

    assert kept <= 502 if scope == "layer" else kept <= 500
    assert kept > 496


def test_pruned_models_can_be_quantised_too():
    model, (x, y) = perceptron(), examples()
    both = quantize_aware(prune_at_initialization(model, (x, y), 0.7), 4, None)

    zeros = sparsity(both)

    assert zeros and all(share >= 0.4 for share in zeros.values())


# === LiteRT ===


def test_zeros_make_the_litert_file_smaller(tmp_path):
    def litert(model, name):
        return zoo.export.export_model(model, tmp_path / name, ["litert"], benchmark=False).artifacts[0]

    model = perceptron((64, 256, 8))
    x, y = examples(features=64, classes=8)
    dense = litert(model, "dense")
    sparse = prune_at_initialization(model, (x, y), 0.9)
    wanted = sparse.predict(x, verbose=0)

    for name, each in {"wrapped": sparse, "plain": strip(sparse)}.items():
        artifact = litert(each, name)
        assert artifact.variant == "sparse weights" and "DENSIFY" in artifact.ops
        assert artifact.size < 0.3 * dense.size
        assert artifact.max_relative_error < 1e-5
        run = open_artifact("litert", {key: tmp_path / name / path for key, path in artifact.paths.items()})
        (key,) = sparse.signatures()["predict"].inputs
        (found,) = run("predict", {key: x}).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# === The classifier ===


def classifier(**changes):
    keras.utils.set_random_seed(0)
    return SignalPropagationPruning(
        **{"units": (32, 32), "input_shape": (8, 8, 1), "isometry_steps": 200, "pixel_mean": 0.3, **changes}
    )


def images(size=100):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, size)
    return rng.random((size, 8, 8, 1)).astype("float32"), labels


def test_classifier_prunes_once_and_stays_sparse(tmp_path):
    model, data = classifier(), images()
    total = sum(mask.size for mask in model.masks.values())
    assert model.num_connections == total == 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10

    penalties = model.prune(data)

    assert len(penalties) == 201 and penalties[-1] < penalties[0]
    assert model.num_connections == round(0.1 * total)
    with pytest.raises(ValueError, match=r"sparse already. Received: "):
        model.prune(data)
    path = model.save_to_preset(tmp_path / "preset", method="signal_propagation_pruning", preset="mnist")
    loaded = zoo.get("signal_propagation_pruning", preset=None, weights=path)
    assert loaded.num_connections == model.num_connections
    np.testing.assert_array_equal(loaded.run(image=data[0])["logits"], model.run(image=data[0])["logits"])
    loaded.compile(keras.optimizers.Adam(1e-2, weight_decay=0.1), CROSS_ENTROPY)
    loaded.fit(*data, verbose=0, epochs=2)
    assert all((np.array(t.variable)[~loaded.masks[t.path]] == 0).all() for t in loaded.transformed_targets)


@pytest.mark.parametrize(
    "changes",
    [
        dict(network="residual", depth=8),
        dict(network="wide_residual", depth=10, factor=1),
        dict(labels="uniform"),
        dict(method="random", scope="layer"),
        dict(scope="2x4", sparsity=0.5),
        *[dict(kernel_initializer=name, sparsity=0.5) for name in INITIALIZERS],
    ],
)
def test_every_kind_of_classifier_prunes(changes):
    model, data = classifier(**{"isometry_steps": 5, **changes}), images(20)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.prune(None if changes.get("method") == "random" else data)

    share = model.num_connections / sum(mask.size for mask in model.masks.values())
    assert share == pytest.approx(1 - changes.get("sparsity", 0.9), abs=0.02)
    assert np.isfinite(model.run(image=data[0])["logits"]).all()
    assert SignalPropagationPruning(**model.get_config()).get_config() == model.get_config()


# === Bad input ===


def test_bad_data_is_named():
    model, (x, y) = perceptron(), examples()
    endless = tf.data.Dataset.from_tensors((x, y)).repeat()
    for data, message in (
        ([], "`data` must hold at least one batch. Received: none"),
        (x, r"`data` must be an iterable of batches .*Received: ndarray"),
        (None, r"`data` must be an iterable of batches .*Received: NoneType"),
        ((x, y[:-1]), r"The arrays in `data` must have one length. Received: "),
        ([(x, y[:-1])], r"The parts of a batch in `data` must have one length, above 0. Received: "),
        ([(x[:0], y[:0])], r"above 0. Received: "),
        ([(x[:, :7], y)], r"(?s)`data` does not fit the model or the loss.*Received: shapes .*\(64, 7\)"),
        ([(x, None)], "`data` must have labels, or `labels` be 'uniform'"),
        (endless, "`batches` must be given for data without end"),
        ([(np.full_like(x, np.nan), y)], r"must be finite. Received: NaN or infinity in \['dense_1/kernel'"),
    ):
        with pytest.raises(ValueError, match=message):
            connection_sensitivity(model, data)
    connection_sensitivity(model, endless, batches=1)


@pytest.mark.parametrize("batches", [0, -1, 1.5, True])
def test_bad_numbers_of_batches(batches):
    with pytest.raises(ValueError, match=r"`batches` must be a positive integer or None. Received: batches="):
        connection_sensitivity(perceptron(), examples(), batches=batches)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, True])
def test_bad_sparsity(value):
    for call in (
        lambda: prune_at_initialization(perceptron(), examples(), value),
        lambda: choose_masks({"a/kernel": np.ones((2, 2))}, value),
        lambda: SignalPropagationPruning(sparsity=value),
    ):
        with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\). Received: sparsity="):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune_at_initialization(perceptron(), examples(), 0.5, scope="rows"), "`scope` must be one of"),
        (lambda: prune_at_initialization(perceptron(), examples(), 0.5, method="best"), "`method` must be one of"),
        (lambda: prune_at_initialization(perceptron(), examples(), 0.5, labels="none"), "`labels` must be one of"),
        (lambda: weight_scores(perceptron(), "sensitivity"), "`method` must be one of"),
        (lambda: choose_masks({}, 0.5), "`scores` must not be empty"),
        (lambda: choose_masks({"a/kernel": np.ones((2, 2))}, 0.5, minimum=-1), "`minimum` must not be negative"),
        (lambda: choose_masks({"a/kernel": np.ones((2, 2))}, 0.5, minimum=3), "`sparsity` must leave the 3"),
        (lambda: choose_masks({"a/kernel": np.ones((2, 2))}, 0.5, keep=["a/*"]), "`sparsity` must leave the 4"),
        (lambda: sculpt(perceptron(), examples(), 0), "`num_parameters` must be from 1 to"),
        (lambda: sculpt(perceptron(), examples(), 10**6), "`num_parameters` must be from 1 to"),
        (lambda: sculpt(perceptron(), examples(), 3, scope="channel"), "`num_parameters` is too small"),
        (lambda: enforce_isometry(perceptron(), -1), "`steps` must be an integer of 0 or more"),
        (lambda: enforce_isometry(perceptron(), 1.5), "`steps` must be an integer of 0 or more"),
        (lambda: enforce_isometry(perceptron(), 1, 0.0), "`learning_rate` must be positive"),
        (lambda: jacobian_singular_values(perceptron(), np.ones((2, 12), int)), "`x` must hold floats"),
        (lambda: jacobian_singular_values(perceptron(), np.ones((2, 12)), "missing"), "missing"),
        (lambda: connection_sensitivity(Subclassed(), examples()), "call it once on data"),
        (lambda: connection_sensitivity("model", examples()), "`model` must be a Keras model"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=rf"(?s){message}.*(Received|Existing)"):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(network="lenet"), "`network`"),
        (dict(kernel_initializer="uniform"), "`kernel_initializer`"),
        (dict(method="best"), "`method`"),
        (dict(labels="none"), "`labels`"),
        (dict(scope="rows"), "`scope`"),
        (dict(num_classes=1), "`num_classes`"),
        (dict(input_shape=(28, 28)), "`input_shape`"),
        (dict(units=(10, 0)), "`units`"),
        (dict(network="residual", depth=9), "`depth`"),
    ],
)
def test_bad_arguments_of_the_classifier(changes, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received: "):
        SignalPropagationPruning(**changes)


def test_models_that_cannot_be_pruned():
    sparse = prune_at_initialization(perceptron(), examples(), 0.5)
    with pytest.raises(ValueError, match="compressed already"):
        prune_at_initialization(sparse, examples(), 0.5)

    class OwnStep(Subclassed):
        def train_step(self, data):
            return {}

    model = OwnStep()
    model(np.zeros((1, 12), "float32"))
    with pytest.raises(ValueError, match="train_step"):
        prune_at_initialization(model, examples(), 0.5)
    inputs = keras.Input((4,))
    other = keras.Model(inputs, layers.Dense(2, kernel_initializer="zeros")(inputs))
    with pytest.raises(ValueError, match="must depend on the weights"):
        prune_at_initialization(other, examples(features=4, classes=2), 0.5)


def test_channels_need_their_axis_last():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(5)])
    data = np.ones((4, 8, 8, 2), "float32"), np.arange(4)
    with pytest.raises(ValueError, match=r"output channels along the last axis. Received: .*DepthwiseConv2D"):
        prune_at_initialization(model, data, 0.2, scope="channel")


def test_masks_of_another_model():
    stage = prune_at_initialization(perceptron(), examples(), 0.5).stage(FixedMaskStage)
    masks = stage.masks
    for wrong in ({}, {**masks, "more/kernel": np.ones(2)}, {**masks, "dense_1/kernel": np.ones((2, 2))}):
        with pytest.raises(ValueError, match=r"`masks` must have the paths and shapes of the weights. Received: "):
            stage.set_masks(wrong)

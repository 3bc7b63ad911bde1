"""Pruning, clustering and quantisation-aware training of Keras 3 models of every kind."""

import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo import compression
from zoo.compression.compressed import find_points, find_targets
from zoo.compression.tfmot import QuantizationStage
from zoo.export.runners import open_artifact

layers = keras.layers


def convolutional():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = skip = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(8, 1)(x) + skip
    x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable("test_tfmot")
class Subclassed(keras.Model):
    """Attention, a recurrent layer, and a kernel that is used outside of its own layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(11, 8)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.recurrent = layers.Bidirectional(layers.GRU(4))
        self.head = layers.Dense(5)
        self.borrowed = layers.Dense(5, name="borrowed")

    def call(self, inputs, training=False):
        x = self.embedding(inputs)
        x = self.recurrent(self.attention(x, x, training=training))
        if not self.borrowed.built:
            self.borrowed.build(x.shape)
        return self.head(x) + keras.ops.matmul(x, self.borrowed.kernel)

    def get_config(self):
        return {"name": self.name}


def subclassed():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(np.zeros((1, 6), "int32"))
    return model


def sequential():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((12,)), layers.Dense(16, activation="relu"), layers.Dense(5)])


MODELS = {"convolutional": convolutional, "subclassed": subclassed, "sequential": sequential}


def data(model, size=64):
    rng = np.random.default_rng(0)
    if isinstance(model, Subclassed):
        return rng.integers(0, 11, (size, 6)).astype("int32"), rng.integers(0, 5, size)
    shape = model.inputs[0].shape[1:]
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 5, size)


def fit(compressed, epochs=2, learning_rate=1e-2, inner=None, **compile_options):
    inputs, labels = data(inner if inner is not None else compressed.model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed.compile(keras.optimizers.Adam(learning_rate), loss, **compile_options)
    return compressed.fit(inputs, labels, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def kernels(model):
    return {t.path: np.asarray(model.transformed(t)) for t in model.targets if t.kind == "kernel"}


# === Any model: trains, saves, loads, and is a plain model again ===

COMPRESSIONS = {
    "prune": lambda model: compression.prune(model, 0.5),
    "cluster": lambda model: compression.cluster(model, 4),
    "quantize": lambda model: compression.quantize_aware(model, 4),
}


# Every kind and every way once in the quick suite, all pairs in the slow one
PAIRS = [
    pytest.param(name, kind, marks=() if place % (len(MODELS) + 1) == 0 else pytest.mark.slow)
    for place, (name, kind) in enumerate(itertools.product(COMPRESSIONS, MODELS))
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_fits_saves_loads_and_strips(kind, name, tmp_path):
    compressed = COMPRESSIONS[name](MODELS[kind]())
    losses = fit(compressed, epochs=4)
    assert losses[-1] < losses[0]
    inputs, _ = data(compressed.model)
    before = compressed.predict(inputs, verbose=0)
    compressed.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), before)

    final = kernels(compressed)
    plain = compression.strip(compressed)
    assert not isinstance(plain, compression.CompressedModel)
    for target in find_targets(plain):
        if target.kind == "kernel":
            np.testing.assert_array_equal(target.variable, final[target.path])
    if name != "quantize":  # whose outputs are rounded too, until it is stripped
        np.testing.assert_allclose(plain.predict(inputs, verbose=0), before, rtol=1e-5, atol=1e-5)


def test_the_plain_model_is_untouched_outside_of_the_compressed_one():
    model = convolutional()
    inputs, _ = data(model)
    before = model.predict(inputs, verbose=0)
    compressed = compression.quantize_aware(model, 4, calibration=[inputs])
    assert np.abs(compressed.predict(inputs, verbose=0) - before).max() > 1e-3
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), before)


def test_normalisation_statistics_still_move():
    compressed = compression.quantize_aware(convolutional())
    statistics = next(v for v in compressed.model.variables if v.name == "moving_mean")
    before = np.array(statistics)
    fit(compressed, epochs=1)
    assert np.abs(statistics - before).max() > 1e-4


def test_dropout_draws_new_noise_at_every_call():
    inputs = keras.Input((12,))
    compressed = compression.quantize_aware(keras.Model(inputs, layers.Dropout(0.5)(layers.Dense(32)(inputs))))
    ones = np.ones((2, 12), "float32")
    assert np.abs(compressed(ones, training=True) - compressed(ones, training=True)).max() > 0


def test_losses_of_layers_are_kept():
    class Penalised(layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.mean(inputs**2))
            return inputs

    inputs = keras.Input((12,))
    compressed = compression.quantize_aware(keras.Model(inputs, Penalised()(layers.Dense(5)(inputs))))
    compressed(np.ones((2, 12), "float32"))
    assert len(compressed.losses) == 1


def test_trains_under_xla_and_in_mixed_precision():
    assert np.isfinite(fit(compression.quantize_aware(sequential()), jit_compile=True)).all()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = convolutional()
        assert np.isfinite(fit(compression.quantize_aware(model, 4))).all()
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.slow
def test_a_method_of_the_catalog_with_carried_state_and_a_loss_of_its_own():
    model = zoo.get("compressive_transformer")
    compressed = compression.quantize_aware(model, 4, None, block_size=32)
    assert set(compressed.signatures()) == set(model.signatures())
    tokens = np.random.default_rng(0).integers(0, 75, (4, 64)).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed.compile(keras.optimizers.Adam(1e-3), loss)
    assert compressed.fit(tokens, tokens, verbose=0, epochs=3).history["loss"][-1] < 5
    assert compressed.losses  # of the compression functions


def test_importing_leaves_the_process_on_keras_3():
    code = (
        "import os, zoo.compression.tfmot as t; t._tfmot('quantization.keras.quantizers'); "
        "import keras; assert 'TF_USE_LEGACY_KERAS' not in os.environ; assert keras.__version__[0] == '3'; "
        "import tensorflow as tf; assert tf.keras.layers.Dense is keras.layers.Dense"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_package_imports_without_tensorflow():
    code = "import sys, zoo.compression; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# === Pruning ===


def test_constant_sparsity_is_exact_and_applies_at_once():
    compressed = compression.prune(convolutional(), 0.75)
    for path, share in compression.sparsity(compressed).items():
        size = kernels(compressed)[path].size
        assert abs(share - 0.75) <= 0.5 / size + 1e-9, path


def test_pruned_weights_are_the_smallest():
    model = sequential()
    kernel = np.abs(np.array(model.layers[0].kernel))
    compressed = compression.prune(model, 0.5)
    kept = kernels(compressed)[model.layers[0].kernel.path] != 0
    assert kernel[kept].min() >= kernel[~kept].max()


def test_polynomial_schedule_reaches_its_sparsity_at_its_end():
    model = sequential()
    compressed = compression.prune(model, 0.8, "polynomial", end_step=8, frequency=1)
    first = next(iter(compression.sparsity(compressed)))
    shares = []
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed.compile("adam", loss)
    inputs, labels = data(model)
    for _ in range(10):
        compressed.train_on_batch(inputs, labels)
        shares.append(compression.sparsity(compressed)[first])
    assert shares == sorted(shares) and shares[0] < 0.4 and abs(shares[-1] - 0.8) < 0.01
    expected = 0.8 * (1 - (1 - 4 / 8) ** 3)  # Zhu and Gupta, equation 1, after step 4
    assert abs(shares[4] - expected) < 0.01


def test_masked_weights_stay_zero_under_momentum_and_decay():
    model = sequential()
    compressed = compression.prune(model, 0.5)
    inputs, labels = data(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), loss)
    compressed.fit(inputs, labels, epochs=3, verbose=0)
    for target in compressed.targets:
        if target.kind == "kernel":
            zero = kernels(compressed)[target.path] == 0
            assert (np.array(target.variable)[zero] == 0).all() and 0.4 < zero.mean() < 0.6


def test_two_of_four_along_the_input_channels():
    compressed = compression.prune(sequential(), 0.5, pattern="2x4", weights=["*dense*"])
    kernel = next(iter(kernels(compressed).values()))
    groups = (kernel != 0).T.reshape(-1, 4).sum(-1)
    assert (groups == 2).all()


def test_channels_go_whole():
    model = sequential()
    norms = np.abs(np.array(model.layers[0].kernel)).mean(0)
    compressed = compression.prune(model, 0.5, pattern="channel", weights=[model.layers[0].kernel.path])
    alive = (kernels(compressed)[model.layers[0].kernel.path] != 0).any(0)
    assert alive.sum() == 8 and norms[alive].min() > norms[~alive].max()


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_sparsity_outside_of_its_range(value):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        compression.prune(sequential(), value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sparsity=0.8, pattern="2x4"), "0.5 for the pattern"),
        (dict(sparsity=0.5, pattern="4x4"), "`pattern`"),
        (dict(sparsity=0.5, schedule="cosine"), "`schedule`"),
        (dict(sparsity=0.5, schedule="polynomial"), "`end_step`"),
        (dict(sparsity=0.5, frequency=0), "`frequency`"),
        (dict(sparsity=0.5, weights=["*nothing*"]), "No kernel"),
    ],
)
def test_bad_arguments_of_pruning(arguments, message):
    with pytest.raises(ValueError, match=message):
        compression.prune(sequential(), **arguments)


def test_kernels_that_a_pattern_does_not_fit_are_named():
    with pytest.raises(ValueError, match=r"depthwise_conv2d.*DepthwiseConv2D.*weights="):
        compression.prune(convolutional(), 0.5, pattern="channel")
    with pytest.raises(ValueError, match="multiple of 4"):
        compression.prune(keras.Sequential([keras.Input((6,)), layers.Dense(4)]), 0.5, pattern="2x4")


# === Clustering ===


@pytest.mark.parametrize("initialization", ["kmeans++", "linear", "density", "random"])
def test_kernels_take_few_values(initialization):
    compressed = compression.cluster(sequential(), 8, initialization)
    fit(compressed)
    for path, kernel in kernels(compressed).items():
        assert len(np.unique(kernel)) <= 8, path


def test_shared_values_train():
    compressed = compression.cluster(sequential(), 8)
    before = [np.array(v) for v in compressed.stages[0].trainable_variables]
    fit(compressed)
    moved = [np.abs(b - v).max() for b, v in zip(before, compressed.stages[0].trainable_variables, strict=True)]
    assert min(moved) > 1e-4


@pytest.mark.parametrize("value", [1, 0, 2.5, True])
def test_bad_numbers_of_clusters(value):
    with pytest.raises(ValueError, match="`clusters`"):
        compression.cluster(sequential(), value)


# === Quantisation-aware training ===


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_lie_on_symmetric_grids_per_channel(bits):
    compressed = compression.quantize_aware(convolutional(), bits)
    for target in compressed.targets:
        if target.kind == "kernel":
            kernel = np.asarray(compressed.transformed(target))
            others = tuple(a for a in range(kernel.ndim) if a not in target.channel_axes)
            raw = np.array(target.variable)
            scale = np.abs(raw).max(others, keepdims=True) / (2 ** (bits - 1) - 1)
            codes = kernel / scale
            np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
            np.testing.assert_allclose(kernel, np.round(raw / scale) * scale, atol=1e-5 + scale.max() * 0.51)
            assert np.abs(kernel - raw).max() <= scale.max() * 0.5001


def test_agrees_with_the_reference_quantiser():
    """The two-dimensional case is the quantiser of TensorFlow Model Optimization itself, on the same range."""
    model = sequential()
    compressed = compression.quantize_aware(model, 4, None)
    kernel = np.array(model.layers[0].kernel)
    limit = np.abs(kernel).max(0)
    expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(kernel, -limit, limit, 4, narrow_range=True)
    np.testing.assert_array_equal(kernels(compressed)[model.layers[0].kernel.path], expected)


def test_blocks_have_ranges_of_their_own():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(3)])
    kernel = np.array(model.layers[0].kernel)
    kernel[:32] *= 100
    model.layers[0].kernel.assign(kernel)
    compressed = compression.quantize_aware(model, 4, None, block_size=32)
    blocks = next(iter(kernels(compressed).values())).reshape(2, 32, 3)
    scale = np.abs(kernel).reshape(2, 32, 3).max(1, keepdims=True) / 7
    np.testing.assert_allclose(blocks / scale, np.round(kernel.reshape(2, 32, 3) / scale), atol=1e-3)


def test_bits_by_pattern():
    model = sequential()
    first, second = (layer.kernel.path for layer in model.layers)
    compressed = compression.quantize_aware(model, {first: 2, second: None}, None)
    values = kernels(compressed)
    assert len(np.unique(values[first][:, 0])) <= 3
    np.testing.assert_array_equal(values[second], model.layers[1].kernel)


def test_activation_ranges_start_as_the_mean_of_the_first_batches():
    model = sequential()
    inputs, _ = data(model)
    hidden = keras.Model(model.inputs, model.layers[0].output)
    compressed = compression.quantize_aware(model, None, 8, calibration=[inputs[:32], inputs[32:]])
    maxima = [hidden.predict(part, verbose=0).max() for part in (inputs[:32], inputs[32:])]
    assert compressed.stage(QuantizationStage).output_ranges()["dense"][1] == pytest.approx(np.mean(maxima), rel=1e-4)


def test_fused_operations_have_no_range_of_their_own():
    points = {point.path: point.fused for point in find_points(convolutional())}
    fused = {path for path, is_fused in points.items() if is_fused}
    assert fused == {"conv2d", "batch_normalization", "depthwise_conv2d", "batch_normalization_1", "add"}


def test_quantisation_at_low_bits_trains_better_than_rounding():
    """On a problem that a float network solves, two bits after training fail and two bits in training do not."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(512, 16)).astype("float32")
    labels = (inputs @ rng.normal(size=(16, 4))).argmax(-1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(32, "relu"), layers.Dense(4)])

    def train(model, epochs):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
        model.fit(inputs, labels, batch_size=64, epochs=epochs, verbose=0)
        return model.evaluate(inputs, labels, verbose=0)[1]

    floating = train(model, 20)
    compressed = compression.quantize_aware(model, 2, 8, calibration=[inputs])
    compressed.compile(metrics=["accuracy"])
    rounded = float((compressed.predict(inputs, verbose=0).argmax(-1) == labels).mean())
    trained = train(compressed, 10)
    assert floating > 0.95 and trained > rounded + 0.05


@pytest.mark.parametrize("value", [1, 9, 16, 2.5, True])
def test_bits_that_no_format_holds(value):
    with pytest.raises(ValueError, match="`bits` must be from 2 to 8"):
        compression.quantize_aware(sequential(), value)
    with pytest.raises(ValueError, match="`activations` must be from 2 to 8"):
        compression.quantize_aware(sequential(), 8, value)


def test_constant_weights_stay_finite():
    model = sequential()
    model.layers[0].kernel.assign(np.zeros((12, 16)))
    compressed = compression.quantize_aware(model, 4)
    assert np.isfinite(fit(compressed)).all()
    assert np.isfinite(compressed.predict(data(model)[0], verbose=0)).all()


def test_calibration_data_that_does_not_fit():
    with pytest.raises(ValueError, match="at least one batch"):
        compression.quantize_aware(sequential(), calibration=[])
    with pytest.raises(ValueError, match=r"(?s)`calibration` does not fit.*\(4, 7\)"):
        compression.quantize_aware(sequential(), calibration=[np.zeros((4, 7), "float32")])


# === Combinations and refusals ===


def test_pruned_clustered_and_quantised_in_order():
    model = convolutional()
    inputs, _ = data(model)
    compressed = compression.prune(model, 0.5)
    fit(compressed, epochs=1)
    zeros = {path: kernel == 0 for path, kernel in kernels(compressed).items()}
    compressed = compression.cluster(compressed, 8)
    fit(compressed, epochs=1)
    compressed = compression.quantize_aware(compressed, 8, calibration=[inputs])
    fit(compressed, epochs=1)
    for path, kernel in kernels(compressed).items():
        assert (kernel[zeros[path]] == 0).all(), path
        assert abs((kernel == 0).mean() - 0.5) < 0.05, path
    plain = compression.strip(compressed)
    assert compression.sparsity(plain).keys() == zeros.keys()


def test_wrong_order_and_twice():
    quantized = compression.quantize_aware(sequential())
    for again in (lambda: compression.prune(quantized, 0.5), lambda: compression.quantize_aware(quantized)):
        with pytest.raises(ValueError, match="already has the stage QuantizationStage"):
            again()


def test_models_that_cannot_be_compressed():
    class Own(keras.Model):
        def train_step(self, data):
            return {}

    own = Own(*(lambda i: (i, layers.Dense(2)(i)))(keras.Input((3,))))
    with pytest.raises(ValueError, match="train_step"):
        compression.prune(own, 0.5)
    with pytest.raises(ValueError, match="no weights yet"):
        compression.prune(keras.Sequential([layers.Dense(2)]), 0.5)
    with pytest.raises(ValueError, match="kernels or embeddings"):
        compression.prune(keras.Sequential([keras.Input((3,)), layers.LayerNormalization()]), 0.5)
    integers = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="classifier")])
    integers.quantize("int8")
    with pytest.raises(ValueError, match=r"compress the float model. Received: layers \['classifier'\]"):
        compression.prune(integers, 0.5)
    with pytest.raises(ValueError, match="must be a Keras model"):
        compression.prune("nice", 0.5)
    with pytest.raises(ValueError, match="CompressedModel"):
        compression.strip(sequential())


def test_no_preset_of_a_compressed_model(tmp_path):
    with pytest.raises(ValueError, match="strip it first"):
        compression.quantize_aware(sequential()).save_to_preset(tmp_path / "preset")
    assert not list(tmp_path.iterdir())


# === Export ===


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained network with ranges that no calibration would find, as int8 files."""
    model = convolutional()
    inputs, _ = data(model)
    compressed = compression.quantize_aware(model)
    fit(compressed)
    stage = compressed.stage(QuantizationStage)
    for position, (_, bind) in enumerate(stage._output_ranges.items()):
        for variable in bind.variables.values():
            variable.assign(variable * (1.3 + 0.1 * position))
    directory = tmp_path_factory.mktemp("export") / "bundle"
    report = zoo.export.export_model(
        compressed, directory, ["litert", "onnx"], "int8", [x[None] for x in inputs[:32]], benchmark=False
    )
    return compressed, report, directory


def _paths(report, directory, format):
    (artifact,) = [artifact for artifact in report.artifacts if artifact.format == format]
    assert artifact.variant == "learned ranges"
    return {name: directory / path for name, path in artifact.paths.items()}


def test_litert_holds_the_learned_ranges(exported):
    from ai_edge_litert.interpreter import Interpreter

    compressed, report, directory = exported
    interpreter = Interpreter(str(_paths(report, directory, "litert")["predict"]))
    details = [tensor["quantization_parameters"] for tensor in interpreter.get_tensor_details()]
    found = [(float(d["scales"][0]), int(d["zero_points"][0])) for d in details if len(d["scales"]) == 1]
    stage = compressed.stage(QuantizationStage)
    for path, (low, high) in stage.output_ranges().items():
        scale = (high - low) / 255
        zero = round(-low / scale) - 128
        assert any(abs(s - scale) < 1e-5 * scale and z == zero for s, z in found), path
    channels = [np.sort(d["scales"]) for d in details if len(d["scales"]) > 1]
    ranges = stage.weight_ranges(compressed)
    learned = np.sort(next(value for path, value in ranges.items() if path.startswith("logits")) / 127)
    assert any(len(c) == 5 and np.allclose(c, learned, rtol=1e-5) for c in channels)


def test_onnx_holds_the_learned_ranges(exported):
    import onnx

    compressed, report, directory = exported
    graph = onnx.load(_paths(report, directory, "onnx")["predict"]).graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    scalars = [float(a) for a in arrays if a.dtype == np.float32 and a.ndim == 0]
    stage = compressed.stage(QuantizationStage)
    for path, (low, high) in stage.output_ranges().items():
        assert any(abs(s - (high - low) / 255) < 1e-5 * s for s in scalars), path
    learned = next(value for path, value in stage.weight_ranges(compressed).items() if path.startswith("logits")) / 127
    assert any(a.shape == (5,) and np.allclose(a, learned, rtol=1e-5) for a in arrays if a.dtype == np.float32)
    assert sum(a.dtype == np.uint8 and a.ndim > 1 for a in arrays) == 4  # all kernels


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_int8_files_compute_what_training_saw(exported, format):
    compressed, report, directory = exported
    run = open_artifact(format, _paths(report, directory, format))
    inputs, _ = data(compressed.model)
    (name,) = compressed.signatures()["predict"].inputs
    expected = compressed.predict(inputs, verbose=0)
    received = np.concatenate([next(iter(run("predict", {name: x[None]}).values())) for x in inputs])
    low, high = compressed.stage(QuantizationStage).output_ranges()["logits"]
    unit = (high - low) / 255  # of the last rounding
    assert np.abs(received - expected).mean() < unit
    assert np.abs(received - expected).max() < 4 * unit


def test_zeros_make_the_litert_file_smaller(tmp_path):
    def litert(model, name):
        report = zoo.export.export_model(model, tmp_path / name, ["litert"], benchmark=False)
        return report.artifacts[0]

    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(8)(layers.Dense(256, "relu")(inputs)))
    dense = litert(model, "dense")
    compressed = compression.prune(model, 0.9)
    for name, each in {"wrapped": compressed, "plain": compression.strip(compressed)}.items():
        sparse = litert(each, name)
        assert sparse.variant == "sparse weights" and "DENSIFY" in sparse.ops
        assert sparse.size < 0.3 * dense.size
        assert sparse.max_relative_error < 1e-5


def test_operations_that_must_keep_the_scale_of_their_input(tmp_path):
    inputs = keras.Input((8, 8, 4))
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(inputs))
    pooled = layers.UpSampling2D()(layers.AveragePooling2D(2)(x))
    x = layers.Concatenate()([pooled, layers.MaxPooling2D(1)(x)])
    x = keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 1:]
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype("float32")
    compressed = compression.quantize_aware(model, calibration=[images])
    calibration = [image[None] for image in images]
    report = zoo.export.export_model(
        compressed, tmp_path / "b", ["litert", "onnx"], "int8", calibration, benchmark=False
    )
    assert [artifact.variant for artifact in report.artifacts] == ["learned ranges"] * 2


def test_ranges_that_no_data_has_set_are_refused():
    with pytest.raises(ValueError, match="fit the model or `calibrate`"):
        compression.quantize_aware(sequential()).learned_signatures()


def test_float_formats_hold_the_rounded_weights(tmp_path):
    compressed = compression.quantize_aware(sequential(), 4, None)
    report = zoo.export.export_model(compressed, tmp_path / "bundle", ["litert"], benchmark=False)
    path = next(iter(report.artifacts[0].paths.values()))
    run = open_artifact("litert", {"predict": tmp_path / "bundle" / path})
    inputs, _ = data(compressed.model)
    (name,) = compressed.signatures()["predict"].inputs
    received = next(iter(run("predict", {name: inputs}).values()))
    np.testing.assert_allclose(received, compressed.predict(inputs, verbose=0), atol=1e-5)

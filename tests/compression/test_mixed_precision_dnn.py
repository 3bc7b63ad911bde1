"""Mixed precision: the quantisers' closed forms, the paper's sizes, and training under a budget."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.compression.compressed import CompressedModel, find_points, strip
from zoo.compression.mixed_precision_dnn import (
    MARGIN,
    PARAMETRIZATIONS,
    LearnedBitwidthStage,
    MixedPrecisionDNN,
    grid,
    initial_parameters,
    is_rectifier,
    learn_bitwidths,
    power_of_two_bits,
    quantize,
    round_to_power_of_two,
    uniform,
    uniform_bits,
    valid_parameters,
)
from zoo.compression.tfmot import prune
from zoo.export import export_model

LN2 = np.log(2.0)
# Away from the steps of the rounding, where the closed form has a jump too
X = np.concatenate([np.linspace(-3, 3, 241), [-1e-3, 1e-3, 0.0]]) + 1e-4


def gradients(quantizer, parameters, x, signed=True, hardware=False):
    """Output, and per element the gradient of the input and of each parameter."""
    x = tf.constant(x, tf.float64)
    # A copy of the parameters for each element tells their gradients apart
    values = {name: tf.fill(x.shape, tf.constant(value, tf.float64)) for name, value in parameters.items()}

    @tf.function
    def quantize_each(elements, values):
        return tf.map_fn(
            lambda item: quantize(item[0], quantizer, item[1], signed, hardware),
            (elements, values),
            fn_output_signature=tf.float64,
        )

    with tf.GradientTape() as tape:
        tape.watch([x, *values.values()])
        y = quantize_each(x, values)
    found = tape.gradient(y, [x, *values.values()])
    return (
        y.numpy(),
        found[0].numpy(),
        {n: np.array(tf.convert_to_tensor(g)) for n, g in zip(values, found[1:], strict=True)},
    )


# === 1. Gradients against their closed forms ===


def uniform_oracle(name, bits, step, signed):
    """The card's formulas, element by element: output, input gradient, parameter gradients."""
    power = 2.0 ** (bits - signed)
    maximum = (power - 1) * step
    s = np.sign(X) if signed else (X > 0).astype(float)
    y = np.where(np.abs(X) <= maximum, s * step * np.floor(np.abs(X) / step + 0.5), s * maximum)
    inside = (np.abs(X) <= maximum) & (signed | (X >= 0))
    outside = np.abs(X) > maximum if signed else X > maximum
    error = np.where(inside, y - X, 0.0)
    parameters = {
        "bits_and_step": {"bits": outside * s * power * LN2 * step, "step": error / step + outside * s * (power - 1)},
        "bits_and_range": {
            "bits": -power * LN2 / (power - 1) * error,
            "maximum": error / maximum + outside * s,
        },
        "step_and_range": {"step": error / step, "maximum": outside * s},
    }[name]
    return y, inside.astype(float), parameters


def power_of_two_oracle(name, bits, minimum):
    power = 2.0 ** (bits - 1)
    maximum = minimum * 2 ** (power - 1)
    s = np.sign(X)
    below, above = np.abs(X) <= minimum, np.abs(X) > maximum
    middle = 2 ** np.floor(0.5 + np.log2(np.abs(X)))
    y = s * np.where(below, minimum, np.where(above, maximum, middle))
    parameters = {
        "bits_and_maximum": {
            "bits": -s * below * LN2**2 * power * minimum,
            "maximum": s * (below * minimum / maximum + above),
        },
        "bits_and_minimum": {
            "bits": s * above * LN2**2 * power * maximum,
            "minimum": s * (below + above * maximum / minimum),
        },
        "minimum_and_maximum": {"minimum": s * below, "maximum": s * above},
    }[name]
    return y, np.where(below | above, 0.0, middle / np.abs(X)), parameters


def parameters_of(names, **values):
    return {name: values[name] for name in names}


@pytest.mark.parametrize("name", PARAMETRIZATIONS["uniform"])
@pytest.mark.parametrize(
    ("bits", "step", "signed"), [(3, 0.3, True), (4, 0.25, True), (3, 0.3, False), (1, 0.7, False)]
)
def test_gradients_of_uniform_quantisers(name, bits, step, signed):
    names = PARAMETRIZATIONS["uniform"][name]
    given = parameters_of(names, bits=bits, step=step, maximum=(2.0 ** (bits - signed) - 1) * step)

    y, input_gradient, found = gradients("uniform", given, X, signed)

    expected = uniform_oracle(name, bits, step, signed)
    np.testing.assert_allclose(y, expected[0], atol=1e-6)
    np.testing.assert_allclose(input_gradient, expected[1], atol=1e-6)
    for key in names:
        np.testing.assert_allclose(found[key], expected[2][key], atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", PARAMETRIZATIONS["power_of_two"])
@pytest.mark.parametrize(("bits", "minimum"), [(2, 0.5), (3, 0.125)])
def test_gradients_of_power_of_two_quantisers(name, bits, minimum):
    names = PARAMETRIZATIONS["power_of_two"][name]
    given = parameters_of(names, bits=bits, minimum=minimum, maximum=minimum * 2 ** (2 ** (bits - 1) - 1))

    y, input_gradient, found = gradients("power_of_two", given, X)

    expected = power_of_two_oracle(name, bits, minimum)
    np.testing.assert_allclose(y, expected[0], atol=1e-6)
    np.testing.assert_allclose(input_gradient, expected[1], atol=1e-6)
    for key in names:
        np.testing.assert_allclose(found[key], expected[2][key], atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", PARAMETRIZATIONS["uniform"])
def test_rounding_to_powers_of_two_scales_gradients(name):
    """With d = 0.3 the forward pass uses 0.25: each gradient of d carries the factor 0.25 / 0.3."""
    names = PARAMETRIZATIONS["uniform"][name]
    given = parameters_of(names, bits=3, step=0.3, maximum=0.75 if name == "step_and_range" else 0.9)

    _, _, found = gradients("uniform", given, X, hardware=True)

    _, _, expected = uniform_oracle(name, 3, 0.25, True)
    factor = 0.25 / 0.3
    expected = {
        "step_and_range": {"step": expected.get("step", 0) * factor, "maximum": expected.get("maximum", 0)},
        "bits_and_step": {"bits": expected.get("bits", 0), "step": expected.get("step", 0) * factor},
        "bits_and_range": {"bits": expected.get("bits", 0), "maximum": expected.get("maximum", 0) * factor},
    }[name]
    for key in names:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-6, err_msg=key)


def test_rounding_to_powers_of_two_scales_gradients_of_powers():
    _, _, found = gradients("power_of_two", {"minimum": 0.3, "maximum": 1.7}, X, hardware=True)

    np.testing.assert_allclose(found["minimum"], np.sign(X) * (np.abs(X) <= 0.25) * 0.25 / 0.3, atol=1e-6)
    np.testing.assert_allclose(found["maximum"], np.sign(X) * (np.abs(X) > 2.0) * 2.0 / 1.7, atol=1e-6)


def test_round_to_power_of_two_is_exact():
    exponents = np.arange(-16, 9)
    for offset in (0.71, 1.0, 1.41):
        values = tf.constant(offset * 2.0**exponents, tf.float32)
        np.testing.assert_array_equal(round_to_power_of_two(values), 2.0**exponents)


# === 2. The three parametrisations are one quantiser ===


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (5, True), (1, False), (4, False)])
def test_parametrisations_agree_and_values_are_counted(bits, signed):
    step = 0.125
    maximum = (2.0 ** (bits - signed) - 1) * step
    x = tf.constant(np.linspace(-5, 5, 20001), tf.float32)
    values = {"bits": tf.constant(float(bits)), "step": tf.constant(step), "maximum": tf.constant(maximum)}
    outputs = [
        quantize(x, "uniform", {name: values[name] for name in names}, signed).numpy()
        for names in PARAMETRIZATIONS["uniform"].values()
    ]

    for y, names in zip(outputs, PARAMETRIZATIONS["uniform"].values(), strict=True):
        np.testing.assert_array_equal(y, outputs[0])
        again = quantize(tf.constant(y), "uniform", {name: values[name] for name in names}, signed)
        np.testing.assert_array_equal(again, y)
        assert len(np.unique(y)) == 2**bits - signed


def test_half_a_step_rounds_away_from_zero():
    x = tf.constant([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])

    np.testing.assert_array_equal(uniform(x, 1.0, 7.0), [1, 2, 3, -1, -2, -3])


def test_range_that_is_no_multiple_of_the_step_is_snapped():
    made = grid("uniform", {"step": tf.constant(0.25), "maximum": tf.constant(0.8)})

    assert float(made.largest) == 0.75
    x = tf.constant(np.linspace(-2, 2, 1001), tf.float32)
    y = uniform(x, made.smallest, made.largest)
    np.testing.assert_array_equal(uniform(y, made.smallest, made.largest), y)


def test_powers_of_two_agree_and_have_a_zero_without_a_sign():
    x = tf.constant(np.linspace(-3, 3, 20001), tf.float32)
    values = {"bits": tf.constant(3.0), "minimum": tf.constant(0.125), "maximum": tf.constant(1.0)}
    signed = [
        quantize(x, "power_of_two", {n: values[n] for n in names}).numpy()
        for names in PARAMETRIZATIONS["power_of_two"].values()
    ]
    for y in signed:
        np.testing.assert_array_equal(y, signed[0])
    assert set(np.unique(signed[0])) == {s * 2.0**k for s in (-1, 1) for k in range(-3, 1)}

    values["maximum"] = tf.constant(0.125 * 2.0**6)
    unsigned = quantize(x * 4, "power_of_two", {n: values[n] for n in ("bits", "minimum")}, signed=False).numpy()
    assert set(np.unique(unsigned)) == {0.0} | {2.0**k for k in range(-3, 4)}
    small = tf.constant([0.99, 1.01]) * 0.125 / np.sqrt(2.0)
    np.testing.assert_array_equal(
        quantize(small, "power_of_two", {n: values[n] for n in ("minimum", "maximum")}, signed=False), [0, 0.125]
    )


# === 3. Decoupling ===


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize(
    ("quantizer", "parameters"),
    [("uniform", {"step": 0.3, "maximum": 1.1}), ("power_of_two", {"minimum": 0.2, "maximum": 1.1})],
)
def test_gradients_of_step_and_range_are_decoupled(quantizer, parameters, hardware):
    x = np.random.default_rng(0).normal(size=300)
    _, _, found = gradients(quantizer, parameters, x, hardware=hardware)
    first, second = found.values()

    assert (first * second == 0).all()
    assert np.mean(first * second) == 0.0
    assert np.abs(first).max() > 0 and np.abs(second).max() > 0
    if quantizer == "uniform" and not hardware:
        assert np.abs(first).max() <= 0.5 + 1e-9 and np.abs(second).max() <= 1


def test_the_other_parametrisations_are_coupled():
    x = np.random.default_rng(0).normal(size=300)
    for names in (("bits", "step"), ("bits", "maximum")):
        _, _, found = gradients("uniform", parameters_of(names, bits=3.0, step=0.3, maximum=0.9), x)
        first, second = found.values()
        assert abs(np.mean(first * second)) > 1e-3


# === 4. Sizes ===


@pytest.fixture(scope="module")
def resnet20():
    return MixedPrecisionDNN(bits=2, activation_bits=4)


def test_golden_sizes_of_resnet20(resnet20):
    stage = resnet20.bitwidths
    values = sum(int(np.prod(target.shape)) for target in resnet20.transformed_targets)

    assert values == 268_346
    assert len(stage.activation_bit_widths()) == 19
    assert stage.weight_kb() == pytest.approx(65.5, abs=0.1)
    assert 16 * stage.weight_kb() == pytest.approx(1048.2, abs=0.1)
    assert stage.activation_kb("sum") == pytest.approx(92.0, abs=0.1)
    assert stage.activation_kb("max") == pytest.approx(8.0, abs=0.1)
    assert 8 * stage.activation_kb("sum") == pytest.approx(736, abs=0.1)
    assert 8 * stage.activation_kb("max") == pytest.approx(64, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "weights", "activations"), [("resnet18", 5.57, 0.38), ("mobilenet_v2", 1.65, 0.57)]
)
def test_sizes_of_imagenet_networks_are_the_papers_budgets(network, weights, activations):
    """The budgets are what four bits take: 5.57 MB and 0.38 MB, 1.65 MB and 0.57 MB."""
    stage = MixedPrecisionDNN(network, num_classes=1000, input_shape=(224, 224, 3)).bitwidths

    assert stage.weight_kb() / 1024 == pytest.approx(weights, abs=0.01)
    assert stage.activation_kb("max") / 1024 == pytest.approx(activations, abs=0.005)


def test_one_bit_more_in_one_layer():
    model = learn_bitwidths(small_network())
    stage = model.stage(LearnedBitwidthStage)
    before, path = stage.weight_kb(), next(iter(stage.weight_bits()))
    assert stage.weight_bits()[path] == 4

    values = stage._weight_parameters["maximum"].numpy()
    values[0] *= 15 / 7
    stage._weight_parameters["maximum"].assign(values)

    assert stage.weight_bits()[path] == 5
    count = int(np.prod(model.targets[0].shape))
    assert stage.weight_kb() - before == pytest.approx(count / 8 / 1024, rel=1e-3)


# === 5. Inferred bits ===


@pytest.mark.parametrize(
    ("step", "maximum", "signed", "bits"), [(1, 7, True, 4), (1, 7, False, 3), (1, 8, True, 5), (1, 1, True, 2)]
)
def test_inferred_bits(step, maximum, signed, bits):
    assert float(uniform_bits(tf.constant(float(step)), tf.constant(float(maximum)), signed)) == bits


def test_inferred_bits_of_powers_of_two():
    assert float(power_of_two_bits(tf.constant(1.0), tf.constant(128.0))) == 4
    assert float(power_of_two_bits(tf.constant(1.0), tf.constant(256.0))) == 5
    assert float(power_of_two_bits(tf.constant(1.0), tf.constant(1.0))) == 1
    assert float(power_of_two_bits(tf.constant(1.0), tf.constant(2.0**14), signed=False)) == 4


def test_inferred_bits_are_exact_at_every_width():
    bits = np.arange(2, 17)
    levels = tf.constant(2.0 ** (bits - 1) - 1, tf.float32)

    np.testing.assert_array_equal(uniform_bits(tf.ones_like(levels), levels), bits)
    np.testing.assert_array_equal(uniform_bits(tf.ones_like(levels), levels + 1), bits + 1)


def test_gradient_of_inferred_bits():
    step, maximum = tf.constant(0.25), tf.constant(1.75)
    with tf.GradientTape() as tape:
        tape.watch([step, maximum])
        bits = grid("uniform", {"step": step, "maximum": maximum}).bits
    by_step, by_maximum = tape.gradient(bits, [step, maximum])

    assert float(by_maximum) == pytest.approx(1 / (2.0 * LN2), rel=1e-5)
    assert float(by_step) == pytest.approx(-1.75 / (0.25 * 2.0 * LN2), rel=1e-5)


# === 6. Penalty ===


def penalty_gradients(model):
    stage = model.stage(LearnedBitwidthStage)
    parameters = [stage._weight_parameters, stage._activation_parameters]
    with tf.GradientTape() as tape:
        value = stage.penalty()
    found = tape.gradient(value, [variable.value for group in parameters for variable in group.values()])
    names = [f"{kind}_{name}" for kind, group in zip(("w", "a"), parameters, strict=True) for name in group]
    return float(value), {name: np.array(tf.convert_to_tensor(g)) for name, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("activation_size", ["sum", "max"])
def test_penalty_is_zero_within_the_budget(activation_size):
    model = learn_bitwidths(small_network(), 100.0, 100.0, activation_size=activation_size)
    value, found = penalty_gradients(model)

    assert value == 0.0
    assert all((gradient == 0).all() for gradient in found.values())


def test_penalty_beyond_the_budget_shrinks_bits():
    model = learn_bitwidths(small_network(), 0.2, 0.2, bits=6, activation_bits=6, penalty_weight=0.1)
    value, found = penalty_gradients(model)
    stage = model.stage(LearnedBitwidthStage)

    expected = 0.1 * ((stage.weight_kb() - 0.2) ** 2 + (stage.activation_kb() - 0.2) ** 2)
    assert value == pytest.approx(expected, rel=1e-5)
    for kind in ("w", "a"):
        assert (found[f"{kind}_maximum"] > 0).all()
        assert (found[f"{kind}_step"] < 0).all()


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [((0.7, None), 1000.0), ((0.7, 0.2), 1000.0), ((None, 0.7), 1000.0), ((70.0, None), 0.1), ((), 0.1)],
)
def test_penalty_is_scaled_by_the_square_of_the_ratio_of_sizes(budgets, expected):
    stage = learn_bitwidths(small_network(), *budgets).stage(LearnedBitwidthStage)

    assert stage.penalty_weight == pytest.approx(expected)


def test_budgeted_gradients_are_clipped_to_the_step():
    """The sum of the gradients of task and penalty is clipped, not each alone."""
    model = learn_bitwidths(small_network(), 0.2, penalty_weight=1e6, bits=6)
    stage = model.stage(LearnedBitwidthStage)
    stage.before_step()
    with tf.GradientTape() as tape:
        outputs = model(images(4), training=True)
        loss = 1e6 * tf.reduce_sum(tf.square(outputs)) + stage.penalty()
    step, maximum = (stage._weight_parameters[name] for name in ("step", "maximum"))
    by_step, by_maximum = tape.gradient(loss, [step.value, maximum.value])

    assert (np.abs(by_step) <= step.numpy() * (1 + 1e-6)).all()
    assert (np.abs(by_maximum) <= step.numpy() * (1 + 1e-6)).all()
    assert np.abs(by_maximum).max() > 0


# === 7. Integers ===


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
def test_integers_reproduce_the_layer(quantizer):
    """Integer products, sums in integers, and one shift at the end."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    network = keras.Model(inputs, [hidden, keras.layers.Dense(5)(hidden)])
    model = learn_bitwidths(network, quantizer=quantizer)
    stage = model.stage(LearnedBitwidthStage)
    hidden, outputs = (np.asarray(each) for each in model(tf.random.normal((50, 20), seed=0)))
    codes = list(stage.integer_weights(model).values())
    kernel, bias = codes[2], codes[3]
    activation_scale = float(stage._grid(signed=False).smallest[0])
    integers = np.round(hidden / activation_scale).astype("int64")
    np.testing.assert_array_equal(integers * activation_scale, hidden)

    shift = int(np.log2(float(kernel.scale) * activation_scale))
    bias_shift = int(np.log2(float(bias.scale)))
    # Integers of the finer of both scales hold the sum exactly
    common = min(shift, bias_shift)
    sums = (integers @ kernel.values << (shift - common)) + (bias.values << (bias_shift - common))

    np.testing.assert_allclose(sums * 2.0**common, outputs, atol=1e-5)
    assert kernel.bits == 4 and kernel.exponential == (quantizer == "power_of_two")


# === Initial values and ranges ===


@pytest.mark.parametrize(
    ("bits", "largest", "step"), [(4, 0.9, 2.0**-3), (4, 0.875, 2.0**-3), (2, 0.9, 0.5), (6, 0.9, 2.0**-5)]
)
def test_initial_step_is_a_power_of_two(bits, largest, step):
    """Rounded down up to 4 bits, up above."""
    found = initial_parameters("uniform", ("step", "maximum"), tf.constant([largest]), bits, True)

    assert float(found["step"][0]) == pytest.approx(step, abs=2 * MARGIN)
    assert float(found["maximum"][0]) == pytest.approx(step * (2 ** (bits - 1) - 1))


def test_constant_tensors_and_networks_from_scratch_begin_at_an_eighth():
    found = initial_parameters("uniform", ("step", "maximum"), tf.zeros(2), 4, True)

    np.testing.assert_allclose(found["step"], 0.125)
    np.testing.assert_allclose(found["maximum"], 0.875)
    stage = MixedPrecisionDNN(depth=8, input_shape=(8, 8, 1)).bitwidths
    np.testing.assert_allclose(stage._weight_parameters["step"], 0.125)


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
@pytest.mark.parametrize("signed", [True, False])
def test_parameters_stay_valid(quantizer, signed):
    rng = np.random.default_rng(0)
    lower = "step" if quantizer == "uniform" else "minimum"
    drawn = {n: tf.constant(rng.choice([-1, 1e-6, 0.01, 0.5, 3, 1e4], 60), tf.float32) for n in (lower, "maximum")}

    valid = {name: value.numpy() for name, value in valid_parameters(quantizer, drawn, signed).items()}

    assert (valid[lower] < valid["maximum"]).all()
    assert (valid["maximum"] <= (127 if signed else 255) - MARGIN).all()
    assert (valid[lower] >= (2.0**-8 if quantizer == "uniform" else 2.0**-16)).all()
    if quantizer == "uniform":
        assert (valid[lower] <= 1).all()
    crossed = (drawn[lower].numpy() == 0.5) & (drawn["maximum"].numpy() == 0.01)
    assert crossed.any()
    np.testing.assert_allclose(valid["maximum"][crossed], 0.5)
    bits = grid(quantizer, {n: tf.constant(v) for n, v in valid.items()}, signed).bits
    assert float(tf.reduce_min(bits)) >= (2 if signed and quantizer == "uniform" else 1)


# === Any model ===


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 1)).astype("float32")


def small_network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(4)(x))


def compiled(model, learning_rate=0.01):
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def teachable(count=256):
    """Images of four levels of brightness."""
    labels = np.random.default_rng(1).integers(0, 4, count).astype("int32")
    return images(count) * (labels[:, None, None, None] + 1) / 4, labels


def test_rectifiers_alone_are_quantised():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(6, activation="relu", name="dense_relu")(inputs)
    x = keras.layers.LeakyReLU(name="leaky")(x)
    x = keras.layers.Dense(6, activation="tanh", name="tanh")(x)
    x = keras.layers.ReLU(6.0, name="relu6")(x)
    x = keras.layers.ReLU(negative_slope=0.1, name="sloped")(x)
    model = keras.Model(inputs, keras.ops.relu(x))
    found = [point.path for point in find_points(model) if is_rectifier(point.operation)]

    assert {"dense_relu", "relu6"} < set(found)
    assert len(found) == 3


def test_values_are_few_and_the_rest_stays_float():
    model = learn_bitwidths(small_network(), bits=3, activation_bits=2)
    for target in model.targets:
        final = model.transformed(target).numpy()
        if target.kind == "other":
            np.testing.assert_array_equal(final, target.variable.numpy())
        else:
            assert len(np.unique(final)) <= 7
    seen = {}
    original = LearnedBitwidthStage.observe

    def spy(self, point, value, training):
        seen[point.path] = original(self, point, value, training).numpy()
        return tf.constant(seen[point.path])

    LearnedBitwidthStage.observe = spy
    try:
        model(images(4) * 5)
    finally:
        LearnedBitwidthStage.observe = original
    assert len(seen) == 2
    assert all(1 < len(np.unique(value)) <= 4 and value.min() >= 0 for value in seen.values())


def test_training_reaches_the_budget():
    network = compiled(small_network(), 0.05)
    x, y = teachable()
    network.fit(x, y, epochs=10, batch_size=32, verbose=0)
    model = learn_bitwidths(network, 0.22, 0.3, bits=5, activation_bits=5, penalty_weight=2e3)
    stage = model.stage(LearnedBitwidthStage)
    sizes = stage.weight_kb(), stage.activation_kb()
    compiled(model, 0.02).fit(x, y, epochs=25, batch_size=32, verbose=0)

    assert sizes[0] > 0.22 and sizes[1] > 0.3
    assert stage.weight_kb() <= 0.22
    assert stage.activation_kb() <= 0.3
    assert bool(stage.within_budgets())
    assert model.evaluate(x, y, verbose=0)[1] > 0.8


@pytest.mark.parametrize(("mode", "moving"), [("fixed", set()), ("tqt", {"maximum"}), ("learned", {"step", "maximum"})])
def test_modes_train_what_they_should(mode, moving):
    model = learn_bitwidths(small_network(), mode=mode)
    stage = model.stage(LearnedBitwidthStage)
    bits = stage.weight_bits(), stage.activation_bit_widths()
    before = {name: variable.numpy() for name, variable in stage._weight_parameters.items()}
    compiled(model, 0.05).fit(*teachable(), epochs=1, batch_size=32, verbose=0)

    changed = {n for n, v in stage._weight_parameters.items() if not np.array_equal(v.numpy(), before[n])}
    assert changed == moving
    if mode != "learned":
        assert (stage.weight_bits(), stage.activation_bit_widths()) == bits


@pytest.mark.parametrize(
    ("quantizer", "parametrization"),
    [(quantizer, name) for quantizer, names in PARAMETRIZATIONS.items() for name in names],
)
def test_every_parametrisation_trains(quantizer, parametrization):
    model = learn_bitwidths(small_network(), 0.5, quantizer=quantizer, parametrization=parametrization)
    history = compiled(model).fit(*teachable(64), epochs=3, batch_size=32, verbose=0)

    assert np.isfinite(history.history["loss"]).all()
    stage = model.stage(LearnedBitwidthStage)
    for group, signed in ((stage._weight_parameters, True), (stage._activation_parameters, False)):
        values = {name: variable.value for name, variable in group.items()}
        for name, value in valid_parameters(quantizer, values, signed).items():
            np.testing.assert_allclose(value, values[name], atol=2 * MARGIN)


def test_constant_weights_are_handled():
    network = small_network()
    network.layers[1].kernel.assign(tf.zeros_like(network.layers[1].kernel))
    model = learn_bitwidths(network)

    assert np.isfinite(model(images(2)).numpy()).all()
    compiled(model).fit(*teachable(32), epochs=1, verbose=0)
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)


def test_pruned_models_keep_their_zeros_on_a_uniform_grid():
    model = learn_bitwidths(prune(small_network(), 0.5))
    kernel = next(target for target in model.targets if target.path.endswith("kernel"))

    assert float(np.mean(model.transformed(kernel).numpy() == 0)) >= 0.5


def test_subclassed_models_tell_sizes_when_called():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = keras.layers.Dense(8), keras.layers.Dense(4)
            self.rectifier = keras.layers.ReLU()

        def call(self, x):
            return self.last(self.rectifier(self.rectifier(self.first(x)) - 0.5))

    network = Network()
    network(tf.zeros((1, 6)))
    model = learn_bitwidths(network, activation_budget_kb=1.0)
    stage = model.stage(LearnedBitwidthStage)
    with pytest.raises(ValueError, match=r"call the model first.*Received:"):
        stage.activation_kb()
    compiled(model).fit(np.zeros((8, 6), "float32"), np.zeros(8, "int32"), verbose=0)

    # The rectifier is used twice in a step
    assert stage.activation_kb() == pytest.approx(2 * 8 * 4 / 8 / 1024)
    assert stage.activation_kb("max") == pytest.approx(8 * 4 / 8 / 1024)


def test_saved_and_loaded(tmp_path):
    model = learn_bitwidths(small_network(), 0.5, bits=3)
    compiled(model, 0.05).fit(*teachable(64), epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    np.testing.assert_array_equal(model(images(3)), loaded(images(3)))
    stage, copy = (each.stage(LearnedBitwidthStage) for each in (model, loaded))
    assert stage.weight_bits() == copy.weight_bits()
    assert stage.get_config() == copy.get_config()


def test_stripped_model_has_the_final_weights():
    model = learn_bitwidths(small_network())
    final = {target.path: model.transformed(target).numpy() for target in model.transformed_targets}
    network = strip(model)

    assert not isinstance(network, CompressedModel)
    for variable in network.trainable_variables:
        if variable.path in final:
            np.testing.assert_array_equal(variable.numpy(), final[variable.path])


def test_exported_graphs_round_activations(tmp_path):
    model = learn_bitwidths(small_network(), bits=3, activation_bits=3)
    report = export_model(model, tmp_path / "bundle", ["litert", "onnx"], "none", benchmark=False)

    assert model.learned_signatures() is None
    assert all(artifact.verified for artifact in report.artifacts)
    assert report.artifact("onnx").ops["Floor"] == 2


# === The catalog's model ===


def tiny(**changes):
    keras.utils.set_random_seed(0)
    return MixedPrecisionDNN(**{"depth": 8, "width": 8, "num_classes": 4, "input_shape": (8, 8, 1)} | changes)


def test_quantisation_begins_at_an_update():
    model = compiled(tiny(bits=3), 0.05)
    model.quantize_from(6)
    float_output = model(images(3)).numpy()
    np.testing.assert_array_equal(float_output, model.model(images(3)))
    x, y = teachable(64)
    model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    np.testing.assert_array_equal(model(images(3)), model.model(images(3)))
    assert not bool(model.bitwidths.within_budgets())
    np.testing.assert_allclose(model.bitwidths._weight_parameters["step"], 0.125)

    model.fit(x, y, epochs=1, batch_size=32, verbose=0)
    assert bool(model.bitwidths.within_budgets())
    largest = tf.stack([tf.reduce_max(tf.abs(t.variable.value)) for t in model.transformed_targets])
    expected = initial_parameters("uniform", ("step", "maximum"), largest, 3, True)
    np.testing.assert_array_equal(model.bitwidths._weight_parameters["step"], expected["step"])
    assert np.abs(model(images(3)) - model.model(images(3))).max() > 0


def test_logs_tell_sizes_and_whether_the_budget_is_kept():
    model = compiled(tiny(weight_budget_kb=5.0, activation_budget_kb=2.0, penalty_weight=1e-9))
    logs = model.fit(*teachable(32), epochs=1, verbose=0, validation_split=0.5).history

    assert logs["val_weight_kb"][0] == pytest.approx(model.bitwidths.weight_kb())
    assert logs["val_activation_kb"][0] == pytest.approx(model.bitwidths.activation_kb())
    kept = bool(model.bitwidths.within_budgets())
    assert not kept
    assert logs["val_constrained_error"][0] == pytest.approx(1 - logs["val_accuracy"][0] + 1, abs=1e-6)


def test_config_preset_and_file_round_trip(tmp_path):
    model = tiny(bits=3, quantizer="power_of_two", weight_budget_kb=5.0)
    assert any(layer.name == "logit_scale" for layer in model.model.layers)
    copy = MixedPrecisionDNN.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    copy.set_weights(model.get_weights())
    inputs = model.dummy_inputs()
    np.testing.assert_array_equal(copy.run(**inputs)["logits"], model.run(**inputs)["logits"])

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.run(**inputs)["logits"], model.run(**inputs)["logits"])
    model.save_to_preset(tmp_path / "preset", method="mixed_precision_dnn", preset="tiny")
    assert (tmp_path / "preset" / "metadata.json").exists()


def test_signature_is_the_model():
    model = tiny(bits=3, activation_bits=3)
    x = images(5)

    np.testing.assert_allclose(model.run(image=x)["logits"], model(x), atol=1e-6)


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
def test_model_exports(quantizer, tmp_path):
    model = tiny(bits=3, activation_bits=3, quantizer=quantizer)
    report = export_model(model, tmp_path / "bundle", ["saved_model", "litert", "onnx"], "none", benchmark=False)

    assert all(artifact.verified for artifact in report.artifacts)
    # Grids are constants: nothing of their computation is left in the graph
    assert "Log" not in report.artifact("onnx").ops or quantizer == "power_of_two"
    assert not {"Sign", "Round"} & set(report.artifact("onnx").ops)


# === Bad input ===


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "free"}, "`mode` must be one of"),
        ({"quantizer": "logarithmic"}, "`quantizer` must be one of"),
        ({"parametrization": "range"}, "`parametrization` must be one of"),
        ({"mode": "tqt", "parametrization": "step_and_range"}, "`parametrization` must be one of"),
        ({"activation_size": "mean"}, "`activation_size` must be one of"),
        ({"bits": 1}, "`bits` must be from 2 to 16"),
        ({"bits": True}, "`bits` must be from 2 to 16"),
        ({"activation_bits": 17}, "`activation_bits` must be from 1 to 16"),
        ({"mode": "learned+budget"}, "`weight_budget_kb` or `activation_budget_kb` must be given"),
        ({"mode": "fixed", "weight_budget_kb": 1.0}, "`weight_budget_kb` or `activation_budget_kb` must be given"),
        ({"activation_budget_kb": 1.0, "activation_bits": None}, "`activation_bits` must be given"),
        ({"penalty_weight": 0.0}, "`penalty_weight` must be positive"),
        ({"weight_budget_kb": 0.1}, r"`weight_budget_kb` must be at least 0\.1\d+ KB, the smallest reachable size"),
        ({"activation_budget_kb": 0.1}, r"`activation_budget_kb` must be at least 0\.125 KB, the smallest reachable"),
        (
            {"activation_budget_kb": 0.05, "activation_size": "max"},
            r"`activation_budget_kb` must be at least 0\.0625 KB, the smallest reachable",
        ),
    ],
)
def test_learn_bitwidths_refuses(arguments, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        learn_bitwidths(small_network(), **arguments)


def test_smallest_reachable_size_is_accepted():
    stage = learn_bitwidths(small_network(), activation_budget_kb=0.125).stage(LearnedBitwidthStage)

    assert stage.activation_budget_kb == 0.125


def test_quantising_twice_is_refused():
    with pytest.raises(ValueError, match=r"already has the stage LearnedBitwidthStage.*Received: "):
        learn_bitwidths(learn_bitwidths(small_network()))


def test_activation_budget_needs_rectifiers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, activation="tanh")])

    with pytest.raises(ValueError, match=r"needs a model with rectifiers.*Received: "):
        learn_bitwidths(model, activation_budget_kb=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "vgg"}, "`network` must be one of"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"input_shape": (8, 8)}, "`input_shape` must be height, width and channels"),
    ],
)
def test_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        tiny(**arguments)


def test_delay_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"`update` must be 0 or more.*Received: "):
        learn_bitwidths(small_network()).stage(LearnedBitwidthStage).quantize_from(3)
    with pytest.raises(ValueError, match=r"`update` must be 0 or more.*Received: "):
        tiny().quantize_from(-1)
    with pytest.raises(ValueError, match=r"`images` must have shape.*Received: "):
        tiny().preprocess(np.zeros((2, 9, 9), "uint8"))


def test_grids_refuse_nothing_that_is_valid():
    for quantizer, signed in itertools.product(PARAMETRIZATIONS, (True, False)):
        for names in PARAMETRIZATIONS[quantizer].values():
            found = initial_parameters(quantizer, names, tf.constant([0.3, 2.0]), 4, signed)
            bits = grid(quantizer, found, signed).bits.numpy()
            np.testing.assert_array_equal(bits, 4)

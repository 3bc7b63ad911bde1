"""Bit plans: from models, through JSON, into training and sizes."""

import keras
import numpy as np
import pytest

from zoo.compression.bit_plan import BitPlan, Codes, integer_weights, size_report
from zoo.compression.mixed_precision_dnn import LearnedBitwidthStage, learn_bitwidths
from zoo.compression.tfmot import quantize_aware


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="first")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(4, name="last")(x))


PLAN = {"first/*": 5, "depthwise/*kernel": 8, "last/kernel": 2, "*/kernel": 3}


def test_first_match_counts():
    plan = BitPlan(PLAN)

    assert plan.bits("first/kernel") == 5
    assert plan.bits("last/kernel") == 2
    assert plan.bits("other/kernel") == 3
    assert plan.bits("last/bias") is None
    assert list(plan) == list(PLAN)


def test_json_round_trip_keeps_the_order(tmp_path):
    plan = BitPlan(PLAN)
    plan.save(tmp_path / "plan.json")
    loaded = BitPlan.load(tmp_path / "plan.json")

    assert list(loaded.items()) == list(PLAN.items())
    assert BitPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitPlan({}), "`bits` must name at least one pattern"),
        (lambda: BitPlan({"*": 0}), "`bits` must be from 1 to 16"),
        (lambda: BitPlan({"*": 17}), "`bits` must be from 1 to 16"),
        (lambda: BitPlan({"*": True}), "`bits` must be from 1 to 16"),
        (lambda: BitPlan({"*": 2.5}), "`bits` must be from 1 to 16"),
        (lambda: BitPlan.from_json("[1]"), "A bit plan must be a JSON object"),
        (lambda: BitPlan.of_model(network()), "`model` must come from"),
        (lambda: size_report(network(), BitPlan({"nothing": 4})), "`plan` must match a weight"),
        (lambda: integer_weights(network(), BitPlan({"nothing": 4})), "`plan` must match a weight"),
    ],
)
def test_bad_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        make()


def test_learned_widths_become_a_plan_that_trains_another_model():
    model = learn_bitwidths(network(), bits=5)
    learned = BitPlan.of_model(model)
    assert dict(learned) == model.stage(LearnedBitwidthStage).weight_bits()
    assert "last/bias" in learned

    other = quantize_aware(network(), bits=learned.kernels(network()), activations=None)
    again = BitPlan.of_model(other)
    assert {path for path in again} == {"first/kernel", "depthwise/kernel", "last/kernel"}
    for target in other.transformed_targets:
        channel = (
            other.transformed(target)[..., :1, 0] if "depthwise" in target.path else other.transformed(target)[..., 0]
        )
        assert len(np.unique(channel)) <= 31
    assert set(again.values()) == {5}


def test_integers_of_quantisation_aware_models_are_exact():
    model = quantize_aware(network(), bits=BitPlan(PLAN).kernels(network()), activations=None)
    codes = integer_weights(model)

    assert {path: each.bits for path, each in codes.items()} == {
        "first/kernel": 5, "depthwise/kernel": 8, "last/kernel": 2,
    }  # fmt: skip
    for target in model.transformed_targets:
        np.testing.assert_allclose(codes[target.path].dequantized(), model.transformed(target), atol=1e-7)


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
def test_integers_of_learned_models_are_exact(quantizer):
    model = learn_bitwidths(network(), quantizer=quantizer)
    codes = integer_weights(model)

    assert {each.exponential for each in codes.values()} == {quantizer == "power_of_two"}
    for target in model.transformed_targets:
        np.testing.assert_array_equal(codes[target.path].dequantized(), model.transformed(target))
    with pytest.raises(ValueError, match=r"`plan` must have the bits that the model has learned.*Received: "):
        integer_weights(model, BitPlan({"*": 7}))


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_plain_models_are_rounded(bits):
    model = network()
    codes = integer_weights(model, BitPlan({"*/kernel": bits}))
    values = codes["first/kernel"].values

    assert len(np.unique(values)) <= 2**bits
    error = np.abs(codes["first/kernel"].dequantized() - model.get_layer("first").kernel)
    step = codes["first/kernel"].scale
    assert (error <= (step / 2 + 1e-7 if bits > 1 else 3 * step)).all()
    assert codes["depthwise/kernel"].scale.shape == (1, 1, 8, 1)


@pytest.mark.parametrize(
    ("values", "bits", "exponential"),
    [([-9, 7], 4, False), ([0, 1], 1, False), ([0, 1], 3, True), ([3, 1], 3, True), ([1, 16], 3, True)],
)
def test_codes_that_do_not_fit_are_refused(values, bits, exponential):
    with pytest.raises(ValueError, match=r"`values` must fit into.*Received: "):
        Codes(np.array(values), np.float32(1), bits, exponential)


def test_size_report(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"0" * 400)
    report = size_report(network(), BitPlan(PLAN), file)

    # 3x3x8 weights of 5 bits, as many of 8, 8x4 of 2; biases 8 + 4, and 4 x 8 of the normalisation
    assert report.quantized_weights == 72 + 72 + 32
    assert report.quantized_bytes == (72 * 5 + 72 * 8 + 32 * 2) / 8
    assert report.float_bytes == 4 * (8 + 4 + 32)
    assert report.total_bytes == report.quantized_bytes + report.float_bytes
    assert report.bits_per_weight == pytest.approx((72 * 5 + 72 * 8 + 32 * 2) / 176)
    assert report.overhead == pytest.approx(400 / report.total_bytes - 1)
    assert size_report(network(), BitPlan(PLAN)).overhead is None

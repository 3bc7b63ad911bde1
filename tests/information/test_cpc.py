"""CPC: its loss against one that is computed candidate by candidate, causality, streaming, and each kind of encoder."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import load_text
from zoo.experiments import cpc as experiment
from zoo.experiments.cpc import LABELS, RECIPES, labelled
from zoo.experiments.report import Ledger
from zoo.information import InfoNCE
from zoo.information.cpc import CPC, EVALUATION_SEQUENCES, NEGATIVES
from zoo.information.image_pairs import labelled_images

SMALL = {
    "dense": {"sequence_shape": (6, 3), "encoder_dims": (7, 5)},
    "audio": {"sequence_shape": (960,), "encoder_dims": (6, 6, 6, 6, 5)},
    "patches": {"sequence_shape": (16, 16, 2), "encoder_dims": (4, 5)},
    "text": {"sequence_shape": (6, 4), "encoder_dims": (3, 5)},
}


def small_model(encoder="dense", seed=0, **changes):
    """A model with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    model = CPC(**{"encoder": encoder, "context_dim": 4, "num_predictions": 2} | SMALL[encoder] | changes)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.0, 0.4, weight.shape) for weight in model.get_weights()])
    return model


def sequences_for(model, count=3, seed=0):
    shape = (count, *model.sequence_shape)
    rng = np.random.default_rng(seed)
    if model.encoder_name == "text":
        return tf.constant(rng.integers(0, 256, shape), tf.int32)
    return tf.constant(rng.random(shape), tf.float32)


def rows_of(split):
    return labelled_images("digits", split)["x"].reshape(-1, 8, 8)


def loss_of(model, sequences, training=True):
    return float(model.compute_loss(sequences, y_pred=model(sequences), training=training))


def oracle(model, sequences, times=None):
    """The loss by its definition: the cross-entropy of every context and step, among candidates listed one by one."""
    found = {name: np.asarray(value, "float64") for name, value in model(sequences).items()}
    latents, contexts = (v if v.ndim == 4 else v[:, :, None] for v in (found["latents"], found["contexts"]))
    batch, frames, columns, _ = latents.shape
    places = list(np.ndindex(batch, frames, columns))
    losses = np.zeros((model.num_predictions, 0)).tolist()
    for b, t, j in places:
        if t not in (range(frames - model.num_predictions) if times is None else times):
            continue
        for k in range(1, model.num_predictions + 1):
            right = (b, t + k, j)
            others = {
                "batch_time": places,
                "batch": [place for place in places if place[1:] == right[1:]],
                "same_sequence": [place for place in places if place[0] == b],
                "excl_current": [place for place in places if place[0] != b],
            }[model.negatives]
            kernel = model.predictors[k - 1].kernel.numpy()
            scores = {place: latents[place] @ (contexts[b, t, j] @ kernel) for place in {*others, right}}
            losses[k - 1].append(np.log(sum(np.exp(s) for s in scores.values())) - scores[right])
            candidates = len(scores)
    return np.mean(losses, axis=1), candidates


# === Loss ===


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("encoder", ["dense", "patches"])
def test_loss_is_the_cross_entropy_among_the_listed_candidates(encoder, negatives):
    model = small_model(encoder, negatives=negatives)
    sequences = sequences_for(model)
    expected, candidates = oracle(model, sequences)

    assert loss_of(model, sequences) == pytest.approx(expected.mean(), abs=1e-5)
    assert model.num_candidates(3) == candidates
    # log N less the loss, for each step ahead
    information = [float(tracker.result()) for tracker in model.information_trackers]
    np.testing.assert_allclose(information, np.log(candidates) - expected, atol=1e-5)
    assert [tracker.name for tracker in model.information_trackers] == ["information_at_1", "information_at_2"]
    np.testing.assert_allclose(model.information(sequences, 3), information, atol=1e-6)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_loss_of_a_batch_of_unknown_size(negatives):
    model = small_model(negatives=negatives)
    sequences = sequences_for(model)
    loss = tf.function(lambda x: model.compute_loss(x, y_pred=model(x)))
    traced = loss.get_concrete_function(tf.TensorSpec((None, *model.sequence_shape)))

    assert float(traced(sequences)) == pytest.approx(loss_of(model, sequences), abs=1e-5)


@pytest.mark.parametrize("negatives", ["batch_time", "batch"])
def test_random_position_is_one_time_of_all_sequences(negatives):
    model = small_model(negatives=negatives, positions="random")
    sequences = sequences_for(model)
    each = [oracle(model, sequences, [time])[0].mean() for time in range(4)]
    drawn = [loss_of(model, sequences) for _ in range(40)]
    nearest = [int(np.argmin(np.abs(np.array(each) - value))) for value in drawn]

    np.testing.assert_allclose(drawn, np.array(each)[nearest], atol=1e-5)
    # One of 4 times is missed by 40 draws with a probability of 4e-5, and the seed is fixed.
    assert set(nearest) == {0, 1, 2, 3}
    assert loss_of(model, sequences, training=False) == pytest.approx(np.mean(each), abs=1e-5)


def test_equal_scores_give_no_information():
    model = small_model()
    for predictor in model.predictors:
        predictor.kernel.assign(tf.zeros_like(predictor.kernel))
    sequences = sequences_for(model)

    assert loss_of(model, sequences) == pytest.approx(np.log(3 * 6), abs=1e-6)
    np.testing.assert_allclose(model.information(sequences, 3), 0.0, atol=1e-6)


def test_one_step_ahead_is_the_bilinear_estimator():
    model = small_model(num_predictions=1, negatives="batch")
    sequences = sequences_for(model, 8)
    found = model(sequences)
    estimator = InfoNCE(x_dim=5, context_dim=4, critic="bilinear")
    # Its critic maps x to the context.
    estimator.set_weights([model.predictors[0].kernel.numpy().T])
    values = [
        float(estimator.bound(estimator({"x": found["latents"][:, t + 1], "context": found["contexts"][:, t]})))
        for t in range(5)
    ]

    assert model.information(sequences, 8).item() == pytest.approx(np.mean(values), abs=1e-6)


def test_every_step_ahead_has_a_matrix_without_bias():
    model = CPC((6, 3), encoder_dims=(5,), context_dim=4, num_predictions=3)
    kernels = [predictor.kernel.numpy() for predictor in model.predictors]

    assert [kernel.shape for kernel in kernels] == [(4, 5)] * 3
    assert all(predictor.bias is None for predictor in model.predictors)
    assert np.abs(kernels[0] - kernels[1]).min() > 0 and np.abs(kernels[1] - kernels[2]).min() > 0
    sequences = sequences_for(model)
    before = model.information(sequences, 3)
    model.predictors[1].kernel.assign(kernels[1] + 1)
    np.testing.assert_array_equal(model.information(sequences, 3) == before, [True, False, True])


@pytest.mark.parametrize("time", [0, 2])
def test_loss_of_a_context_reaches_nothing_after_what_it_predicts(time, monkeypatch):
    monkeypatch.setattr(keras.random, "randint", lambda *args, **kwargs: tf.constant(time))
    model = small_model(negatives="batch", positions="random")
    sequences = sequences_for(model)
    with tf.GradientTape() as tape:
        tape.watch(sequences)
        loss = model.compute_loss(sequences, y_pred=model(sequences))
    reached = np.abs(tape.gradient(loss, sequences)).max(axis=(0, 2)) > 0

    np.testing.assert_array_equal(reached, np.arange(6) <= time + 2)


def test_gradients_go_through_latents_and_contexts():
    model = small_model()
    found = {name: tf.constant(value) for name, value in model(sequences_for(model)).items()}
    with tf.GradientTape() as tape:
        tape.watch(found)
        loss = model.compute_loss(y_pred=found)
    gradients = tape.gradient(loss, found)

    assert np.abs(gradients["latents"]).min() > 0
    # Contexts too late to have P frames after them predict nothing.
    assert (np.abs(gradients["contexts"]).max(axis=(0, 2)) > 0).tolist() == [True] * 4 + [False] * 2


# === Contexts ===


# From where on a sequence may change without a change of the context of frame 2.
FUTURE = {"dense": 3, "text": 3, "patches": 8, "audio": 2 * 160 + 312}


@pytest.mark.parametrize("encoder", SMALL)
def test_contexts_depend_on_nothing_later(encoder):
    model = small_model(encoder)
    before = sequences_for(model).numpy()
    changed = before.copy()
    changed[:, FUTURE[encoder] :] = sequences_for(model, seed=1).numpy()[:, FUTURE[encoder] :]
    first, second = (model(tf.constant(sequences))["contexts"].numpy() for sequences in (before, changed))

    np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-6)
    assert np.abs(first[:, 3:] - second[:, 3:]).max() > 1e-3


@pytest.mark.parametrize("encoder", SMALL)
def test_signatures_read_as_the_model_does(encoder):
    model = small_model(encoder)
    sequences = sequences_for(model)
    found = model(sequences)

    np.testing.assert_allclose(
        model.run("encode_context", sequence=sequences)["contexts"], found["contexts"], atol=1e-6
    )
    np.testing.assert_allclose(model.run("encode", sequence=sequences)["latents"], found["latents"], atol=1e-6)


@pytest.mark.parametrize("encoder", SMALL)
def test_a_stream_gives_the_contexts_of_the_whole(encoder):
    model = small_model(encoder)
    sequences = sequences_for(model)
    contexts = model(sequences)["contexts"].numpy()
    state = np.zeros_like(contexts[:, 0])
    # Convolutions of whole sounds pad every layer at both ends, which a stream does not have.
    inner = range(1, 4) if encoder == "audio" else range(model.encoder.num_frames)
    for index in range(model.encoder.num_frames):
        if encoder == "audio" and index in (0, 1):
            state = np.zeros_like(state) if index == 0 else contexts[:, 0]
        outputs = model.run("step", frame=model.frame(sequences, index), state=state)
        state = outputs["state_out"]
        if index in inner:
            np.testing.assert_allclose(outputs["context"], contexts[:, index], atol=1e-5)
            np.testing.assert_array_equal(outputs["context"], state)


def test_representation_is_the_last_context_or_the_mean():
    model = small_model("patches")
    sequences = sequences_for(model, 300)
    contexts = model(sequences)["contexts"].numpy()

    np.testing.assert_allclose(model.represent(sequences), contexts[:, -1].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(model.represent(sequences, "mean"), contexts.mean(axis=(1, 2)), atol=1e-6)
    rows = small_model()
    sequences = sequences_for(rows)
    np.testing.assert_allclose(rows.represent(sequences), rows(sequences)["contexts"][:, -1], atol=1e-6)


def test_sequences_may_have_other_lengths():
    model = small_model()
    longer = tf.constant(np.random.default_rng(0).random((3, 11, 3)), tf.float32)

    assert model(longer)["contexts"].shape == (3, 11, 4)
    assert loss_of(model, longer) == pytest.approx(oracle(model, longer)[0].mean(), abs=1e-5)


# === Encoders ===


def test_audio_of_the_paper_has_128_frames():
    method = zoo.info("cpc")
    model = zoo.get("cpc", "audio", weights=None)

    assert model.encoder.num_frames == 128
    assert model.encoder(tf.zeros((1, 20_480))).shape == (1, 128, 512)
    assert model.count_params() == method.preset("audio").parameters == 5_250_560 + 591_360 + 1_572_864
    assert (model.encoder.hop, model.encoder.window) == (160, 465)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("digits", 9 * 64 + 65 * 32 + 3 * 64 * (32 + 64 + 2) + 3 * 64 * 32),
        ("mnist", 29 * 128 + 129 * 64 + 3 * 128 * (64 + 128 + 2) + 4 * 128 * 64),
        ("austen", 256 * 32 + (5 * 32 + 1) * 128 + 3 * 128 * (128 + 128 + 2) + 3 * 128 * 128),
        (
            "cifar10",
            (28 * 16 + 2 * 145 * 16 + (145 + 289) * 32 + 32 + 17 * 32 - 32 + (289 + 577) * 64 + 33 * 64)
            + 3 * 128 * (3 * 64 + 128 + 2)
            + 5 * 128 * 64,
        ),
    ],
)
def test_presets_have_the_sizes_of_their_layers(preset, parameters):
    model = zoo.get("cpc", preset, weights=None)

    assert zoo.info("cpc").preset(preset).parameters == model.count_params() == parameters
    assert preset in RECIPES


def test_inner_frames_of_sound_see_their_window_alone():
    model = small_model("audio")
    sound = sequences_for(model)
    latents = model.encoder(sound).numpy()

    assert latents.shape == (3, 6, 5)
    for index in range(1, 4):
        frame = model.frame(sound, index)
        start = 160 * index - 153
        np.testing.assert_array_equal(frame, sound[:, start : start + 465])
        np.testing.assert_allclose(model.encoder.encode_frame(tf.constant(frame)), latents[:, index], atol=1e-5)
    assert not model.frame(sound, 0)[:, :153].any() and not model.frame(sound, 5)[:, -152:].any()


def test_crops_overlap_by_half_and_are_encoded_alone():
    model = small_model("patches", sequence_shape=(16, 32, 2))
    image = sequences_for(model)
    latents = model.encoder(image).numpy()

    assert latents.shape == (3, 7, 7, 5)
    for i, j in ((0, 0), (2, 5), (6, 6)):
        crop = image[:, 2 * i : 2 * i + 4, 4 * j : 4 * j + 8]
        np.testing.assert_allclose(model.encoder._encode_crops(crop), latents[:, i, j], atol=1e-5)
    np.testing.assert_array_equal(model.frame(image, 3), image[:, 6:10])


def test_residual_blocks_are_preactivated():
    model = small_model("patches")
    crops = sequences_for(model).numpy()[:, :4, :4]
    stem, ((first, second), _), ((third, fourth), (shortcut,)) = model.encoder.stem, *model.encoder.blocks
    relu = tf.nn.relu
    hidden = stem(crops)
    hidden = hidden + second(relu(first(relu(hidden))))
    hidden = shortcut(relu(hidden)) + fourth(relu(third(relu(hidden))))

    assert hidden.shape == (3, 2, 2, 5)
    expected = np.mean(relu(hidden), axis=(1, 2))
    np.testing.assert_allclose(model.encoder._encode_crops(crops), expected, atol=1e-6)


def test_a_row_of_crops_is_read_with_the_neighbours_of_each():
    model = small_model("patches")
    before = sequences_for(model).numpy()
    changed = before.copy()
    # The last two columns of pixels are of the last crop alone.
    changed[:, :, 14:] = 0.0
    difference = np.abs(model(tf.constant(before))["contexts"] - model(tf.constant(changed))["contexts"])

    np.testing.assert_array_equal(difference.max(axis=(0, 1, 3)) > 1e-6, [False] * 5 + [True] * 2)


def test_pieces_of_text_are_averaged_over_their_bytes():
    model = small_model("text")
    text = sequences_for(model)
    embedded = np.pad(np.asarray(model.encoder.embedding(text)), ((0, 0), (0, 0), (2, 2), (0, 0)))
    kernel, bias = model.encoder.convolution.get_weights()
    sums = [np.einsum("npid,ido->npo", embedded[:, :, i : i + 5], kernel) + bias for i in range(4)]

    np.testing.assert_allclose(model.encoder(text), np.maximum(sums, 0).mean(axis=0), atol=1e-5)


# === Training ===


def train(model, sequences, updates, learning_rate=3e-3):
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), jit_compile=False, steps_per_execution=10)
    data = tf.data.Dataset.from_tensor_slices(sequences).batch(64, drop_remainder=True).repeat()
    return model.fit(data, steps_per_epoch=updates, epochs=2, verbose=0).history


def test_fit_finds_what_sequences_keep():
    """Every sequence repeats one vector: the future is known, up to chance equals among the candidates."""
    rng = np.random.default_rng(0)
    sequences = np.repeat(rng.normal(size=(640, 1, 3)), 6, axis=1).astype("float32")
    model = small_model(negatives="batch", encoder_dims=(32, 16), context_dim=16)
    train(model, sequences, 200)
    new = np.repeat(rng.normal(size=(320, 1, 3)), 6, axis=1).astype("float32")

    assert (model.information(new, 64) > 0.5 * np.log(64)).all()
    assert (model.information(new, 64) < np.log(64)).all()
    # No step is harder than another, and noise has nothing in common with its past.
    noise = rng.normal(size=(320, 6, 3)).astype("float32")
    assert (model.information(noise, 64) < 0.05).all()


def test_fit_reports_bounds_and_repeats_under_a_seed():
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        histories.append(train(CPC((8, 8), positions="random"), rows_of("train")[:256], 10))

    assert histories[0] == histories[1]
    assert set(histories[0]) == {"loss", "information_at_1", "information_at_2", "information_at_3"}
    total = sum(histories[0][f"information_at_{k}"][1] for k in (1, 2, 3))
    assert histories[0]["loss"][1] == pytest.approx(np.log(64 * 8) - total / 3, abs=1e-4)


@pytest.mark.parametrize("encoder", SMALL)
def test_saving_gives_the_model_back(encoder, tmp_path):
    model = small_model(encoder, negatives="excl_current", positions="random")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    sequences = sequences_for(model)

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(sequences)["contexts"], model(sequences)["contexts"])
    assert loss_of(loaded, sequences, False) == loss_of(model, sequences, False)


@pytest.mark.parametrize("encoder", SMALL)
def test_mixed_precision_keeps_outputs_and_loss_in_float32(encoder):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model(encoder)
    finally:
        keras.config.set_dtype_policy("float32")
    exact = small_model(encoder)
    sequences = sequences_for(model)
    found = model(sequences)

    assert found["latents"].dtype == found["contexts"].dtype == tf.float32
    assert model.compute_loss(sequences, y_pred=found).dtype == tf.float32
    assert 0 < np.abs(found["contexts"] - exact(sequences)["contexts"]).max() < 0.1
    for name in model.signatures():
        model.run(name, **model.dummy_inputs(name))


# === Held-out data ===


def test_data_sets_become_sequences():
    model = zoo.get("cpc", weights=None)
    np.testing.assert_array_equal(model.sequences_of("digits", "test"), rows_of("test"))

    text = small_model("text").sequences_of("austen", "test")
    content = load_text("austen", "test").encode()
    assert text.dtype == np.int32
    assert bytes(text[:100].ravel().tolist()) == content[:2400]
    assert len(text) == len(content) // 24


def test_windows_of_text_begin_anywhere():
    model = small_model("text")
    data = RECIPES["austen"].data(model, "austen", 0)
    content = load_text("austen", "train").encode()
    windows = next(iter(data.train)).numpy()
    starts = [content.find(bytes(window.ravel().tolist())) for window in windows]

    assert windows.shape == (64, 6, 4) and min(starts) >= 0
    assert len({start % 24 for start in starts}) > 12
    assert next(iter(data.validation)).shape == (EVALUATION_SEQUENCES, 6, 4)


@pytest.mark.parametrize("encoder", ["dense", "text"])
def test_real_inputs_are_held_out_sequences_and_their_frames(encoder):
    model = zoo.get("cpc", weights=None) if encoder == "dense" else small_model("text")
    dataset = "digits" if encoder == "dense" else "austen"
    assert list(model.real_inputs("encode")) == [] and model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset=dataset)
    sequences = model.sequences_of(dataset, "validation")
    for name in ("encode", "encode_context"):
        found = next(iter(model.real_inputs(name, 50)))
        np.testing.assert_array_equal(found["sequence"], sequences[:50])
    frames = model.real_inputs("step", 50)
    contexts = model(tf.constant(sequences[:50]))["contexts"].numpy()
    for index in range(3):
        inputs = next(frames)
        model.signatures()["step"].check(inputs)
        np.testing.assert_allclose(model.run("step", **inputs)["context"], contexts[:, index], atol=1e-5)


def test_task_metric_is_the_held_out_bound():
    model = zoo.get("cpc", weights=None)
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    found = model.task_metric().compute(lambda name, inputs: model.run(name, **inputs))
    recorded = RECIPES["digits"].evaluate(model, "digits", "test")

    assert EVALUATION_SEQUENCES == 60
    values = [-loss_of(model, tf.constant(part), False) for part in rows_of("test").reshape(6, 60, 8, 8)]
    assert found == pytest.approx(np.log(60 * 8) + np.mean(values), abs=1e-5)
    assert recorded["information_in_nats"] == pytest.approx(found, abs=1e-5)
    assert recorded["information_in_nats"] == pytest.approx(
        np.mean([recorded[f"information_at_{k}"] for k in (1, 2, 3)]), abs=1e-6
    )


def test_labelled_images_are_as_many_of_each_class():
    labels = np.repeat(np.arange(10), 30)
    for count in LABELS[:2]:
        chosen = labelled(labels, count, 1)
        assert len(set(chosen)) == 10 * count
        np.testing.assert_array_equal(np.bincount(labels[chosen]), count)
    assert set(labelled(labels, 10, 1)) < set(labelled(labels, 20, 1))
    assert set(labelled(labels, 10, 1)) != set(labelled(labels, 10, 2))
    np.testing.assert_array_equal(labelled(labels, None, 1), np.arange(300))


@pytest.mark.parametrize(
    ("gain", "step", "fall", "expected"),
    [
        (0.1, 0.1, 0.1, "The claim shows: "),
        (0.1, -0.1, 0.1, "The claim shows in part: "),
        (-0.1, -0.1, -0.1, "The claim does not show: "),
    ],
)
def test_verdict_follows_from_the_numbers(gain, step, fall, expected, tmp_path):
    ledger = Ledger(tmp_path / "runs.json", {})
    baselines = (experiment.RANDOM, experiment.PIXELS, experiment.PCA, experiment.SUPERVISED)
    arms = {arm: {"accuracy": [0.5] * 4} for arm in baselines}
    for negatives in NEGATIVES:
        for steps in experiment.STEPS_AHEAD:
            accuracy = 0.5 + gain - (step if steps == 1 else 0.0)
            information = [1.0 - fall * ahead for ahead in range(steps)]
            arms[experiment.label(steps, negatives)] = {"accuracy": [accuracy] * 4, "information": information}
    for arm, found in arms.items():
        for seed in range(2):
            ledger.run(arm, seed, lambda found=found: found, lambda message: None)

    verdict = experiment.verdict(ledger)
    assert verdict.startswith(expected)
    assert f"over the initial network is {gain:+.3f} and {gain:+.3f}" in verdict
    assert f"pixels by {-gain:+.3f} and {-gain:+.3f}" in verdict


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "lstm"}, "`encoder` must be one of"),
        ({"negatives": "none"}, "`negatives` must be one of"),
        ({"positions": "first"}, "`positions` must be one of"),
        ({"encoder_dims": ()}, "`encoder_dims` must be sizes of at least 1"),
        ({"encoder_dims": (4, 0)}, "`encoder_dims` must be sizes of at least 1"),
        ({"context_dim": 0}, "`context_dim` must be at least 1"),
        ({"num_predictions": 0}, "`num_predictions` must be from 1 to 5"),
        ({"num_predictions": 6}, "`num_predictions` must be from 1 to 5"),
        ({"sequence_shape": (6,)}, "`sequence_shape` must be 2 sizes of at least 1: time and features"),
        ({"sequence_shape": (6, 0)}, "`sequence_shape` must be 2 sizes of at least 1"),
        ({"encoder": "audio", "sequence_shape": (960,)}, "`encoder_dims` must be the filters of 5 convolutions"),
        ({"encoder": "text", "encoder_dims": (3, 4, 5)}, "`encoder_dims` must be the sizes of embedding and latent"),
        ({"encoder": "patches", "sequence_shape": (16, 20, 1)}, "`sequence_shape` must be of a height and a width"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        CPC(**{"sequence_shape": (6, 3), "encoder_dims": (7, 5), "num_predictions": 2} | changes)


X = np.ones((4, 6, 3), "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(X[0]), "`inputs` must be sequences"),
        (lambda m: m(X[:, :, :2]), "`inputs` must be sequences"),
        (lambda m: m.compute_loss(X, y=X, y_pred=m(X)), "`y` must be None"),
        (lambda m: m.compute_loss(X, y_pred=m(X), sample_weight=1.0), "`sample_weight` must be None"),
        (lambda m: m.compute_loss(X, y_pred=m(X[:, :2])), "`inputs` must be sequences of more than 2 frames"),
        (lambda m: m.information(X), "`batch_size` must be from 1 to"),
        (lambda m: m.information(X[:, :5], 4), "`sequence` must have shape"),
        (lambda m: m.information(X * np.nan, 4), "`sequence` must be finite"),
        (lambda m: m.represent(X, "first"), "`pooling` must be 'last' or 'mean'"),
        (lambda m: m.frame(X, 6), "`index` must be from 0 to 5"),
        (lambda m: m.frame(X, -1), "`index` must be from 0 to 5"),
    ],
)
def test_methods_refuse(call, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call(small_model())


@pytest.mark.parametrize("encoder", SMALL)
def test_call_refuses_other_types(encoder):
    model = small_model(encoder)
    wrong = tf.cast(sequences_for(model), "float32" if encoder == "text" else "uint8")

    with pytest.raises(TypeError, match=r"`inputs` must be .*Received: dtype="):
        model(wrong)


def test_images_out_of_range_are_refused():
    model = small_model("patches")

    with pytest.raises(ValueError, match=r"`sequence` must be in \[0, 1\].*Received: "):
        model.represent(255.0 * sequences_for(model).numpy())


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_batch_of_one_has_no_wrong_candidates(negatives):
    model = small_model(negatives=negatives)
    if negatives == "same_sequence":
        assert np.isfinite(loss_of(model, X[:1]))
        return
    message = r"`inputs` must be batches of at least 2 sequences.*Received: 1 sequence"
    with pytest.raises(ValueError, match=message):
        loss_of(model, X[:1])
    with pytest.raises(ValueError, match=message):
        model.information(X, 1)
    model.compile(optimizer="sgd", jit_compile=False)
    with pytest.raises(ValueError, match=message):
        model.fit(X, batch_size=1, verbose=0)
    # The size of batches of a data set whose last one is incomplete is known at run time only.
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(tf.data.Dataset.from_tensor_slices(X[:3]).batch(2), shuffle=False, verbose=0)

"""Training runs: resuming after a kill, determinism, NaN stop, optimiser, streams, strategies."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from zoo.experiments import language_models as lm
from zoo.language.skip_gram import SkipGram
from zoo.sequence.compressive_transformer import CompressiveTransformer
from zoo.training.metrics import BitsPerToken
from zoo.training.optimizers import StreamAdam
from zoo.training.recipe import Recipe, TrainingData
from zoo.training.run import find_recipe, train
from zoo.training.streams import token_streams, token_windows

# A training in a process of its own, slow enough between epochs to be killed in the middle.
SCRIPT = """
import sys, time
import keras, numpy as np
from zoo.experiments import language_models as lm
from zoo.training.recipe import Recipe, TrainingData
from zoo.training.run import train
from zoo.training.streams import token_streams

def data(model, dataset, seed):
    ids = lm.token_ids(dataset, "train")[:4000]
    return TrainingData(token_streams(ids, 2, 8, repeat=True), token_streams(ids[:400], 8, 8))

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        time.sleep(float(sys.argv[2]))

sizes = dict(num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=8, window_length=8, memory_length=8,
             compressed_memory_length=4, dropout=0.2)
recipe = Recipe("compressive_transformer", "austen", "austen", epochs=5, steps_per_epoch=4, prepare=lm.prepare, data=data,
    compile=lm.compiler(1e-2, 2, 0.25, 1e-5, clip_groups=["compression_"], update_periods=[[6, 3]]),
    evaluate=lambda model, dataset, split: {}, monitor="val_bits_per_character", overrides=lambda dataset: sizes)
model = train(recipe, sys.argv[1], seed=5, resume=True, checkpoint_minutes=0, callbacks=[Slow()])
np.savez(sys.argv[1] + "/weights.npz", *model.get_weights())
"""


def start(directory, pause):
    arguments = [sys.executable, "-c", SCRIPT, str(directory), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(directory):
    process = start(directory, 0)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    with np.load(directory / "training.npz", allow_pickle=False) as file:
        state = dict(file)
    history = json.loads(state.pop("progress").tobytes())["history"]
    with np.load(directory / "weights.npz") as file:
        return history, state, dict(file)


def test_killed_and_resumed_training_equals_an_unbroken_one(tmp_path):
    process = start(tmp_path / "killed", 30)
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    process.kill()
    process.communicate()
    assert (tmp_path / "killed" / "training.npz").exists()
    assert not (tmp_path / "killed" / "weights.npz").exists()
    resumed, unbroken = finished(tmp_path / "killed"), finished(tmp_path / "unbroken")
    assert resumed[0] == unbroken[0]
    assert len(resumed[0]) == 5
    for own, other in zip(resumed[1:], unbroken[1:], strict=True):
        assert own.keys() == other.keys()
        for name in own:
            np.testing.assert_array_equal(own[name], other[name], err_msg=name)


def toy_recipe(**changes):
    """A recipe of the smallest language model on a little text."""

    def data(model, dataset, seed):
        ids = lm.token_ids(dataset, "train")[:3000]
        return TrainingData(token_streams(ids, 2, 8, repeat=True), token_streams(ids[:300], 8, 8))

    sizes = dict(num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=8, window_length=8, memory_length=8)
    values = dict(
        method="transformer_xl", preset="austen", dataset="austen", epochs=2, steps_per_epoch=3, prepare=lm.prepare,
        data=data, compile=lm.compiler(1e-2, 1, 0.25, 1e-5), monitor="val_bits_per_character",
        evaluate=lambda model, dataset, split: {}, overrides=lambda dataset: sizes,
    )  # fmt: skip
    return Recipe(**{**values, **changes})


def test_training_saves_a_preset_with_the_metrics_of_what_is_stored(tmp_path, monkeypatch):
    whole = lm.token_ids
    monkeypatch.setattr(lm, "token_ids", lambda dataset, split: whole(dataset, split)[:3000])
    model = train(toy_recipe(evaluate=lm.evaluate), tmp_path / "run")
    metadata = json.loads((tmp_path / "run" / "preset" / "metadata.json").read_text())
    assert metadata["training"]["steps"] == 6
    assert "zoo train transformer_xl --preset austen" in metadata["training"]["command"]
    assert set(metadata["metrics"]) == {"validation_bits_per_character", "test_bits_per_character"}
    from zoo import checkpoints

    stored = checkpoints.load_preset(tmp_path / "run" / "preset")
    again = lm.evaluate(stored, "austen", "test")["bits_per_character"]
    assert again == pytest.approx(metadata["metrics"]["test_bits_per_character"], rel=1e-6)
    assert {**stored.get_config(), "name": ""} == {**model.get_config(), "name": ""}


def test_settings_that_contradict_a_checkpoint_are_named(tmp_path):
    train(toy_recipe(), tmp_path / "run")
    with pytest.raises(ValueError, match="already"):
        train(toy_recipe(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings: \{'seed': 0\}\. Received: \{'seed': 1\}"):
        train(toy_recipe(), tmp_path / "run", seed=1, resume=True)
    (tmp_path / "run" / "training.npz").write_bytes((tmp_path / "run" / "training.npz").read_bytes()[:-100])
    with pytest.raises(ValueError, match="Damaged training checkpoint"):
        train(toy_recipe(), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="strategy"):
        train(toy_recipe(), tmp_path / "other", strategy="horovod")


def test_a_poisoned_batch_stops_the_training_and_keeps_the_checkpoint(tmp_path):
    def poisoned(model, num_updates):
        model.compile(keras.optimizers.SGD(1e38), "sparse_categorical_crossentropy", metrics=[BitsPerToken()])

    with pytest.raises(RuntimeError, match=r"NaN|Invalid loss"):
        train(toy_recipe(compile=poisoned), tmp_path / "run")
    assert not (tmp_path / "run" / "preset").exists()


def test_mixed_precision_trains_and_restores_the_policy(tmp_path):
    model = train(toy_recipe(), tmp_path / "run", mixed_precision=True)
    assert keras.config.dtype_policy().name == "float32"
    assert model.compute_dtype == "bfloat16"
    assert np.isfinite(model.predict(np.zeros((2, 8), "int32"), verbose=0)).all()


def test_mirrored_strategy_trains(tmp_path):
    """On one device: the carried state, metrics and optimiser live under the strategy's scope."""
    model = train(toy_recipe(), tmp_path / "run", strategy="mirrored")
    plain = train(toy_recipe(), tmp_path / "plain")
    for own, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


def test_every_method_with_weights_has_a_recipe():
    assert find_recipe("transformer_xl").preset == "austen"
    with pytest.raises(ValueError, match="has recipes for"):
        find_recipe("transformer_xl", "enwik8_base")


# === Streams ===


def test_windows_continue_row_by_row_and_targets_are_the_next_token():
    inputs, targets = token_windows(np.arange(100), 3, 8)
    assert inputs.shape == (4, 3, 8)
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs[1:, :, 0], inputs[:-1, :, -1] + 1)
    np.testing.assert_array_equal(inputs[0, 1:, 0], inputs[-1, :-1, -1] + 1)


def test_streams_start_once_a_pass():
    batches = list(token_streams(np.arange(100), 3, 8, repeat=True).take(9))
    starts = [bool(x["stream_start"][0]) for x, _ in batches]
    assert starts == [True, False, False, False, True, False, False, False, True]


def test_short_texts_are_refused():
    with pytest.raises(ValueError, match="more than 24 tokens"):
        token_windows(np.arange(24), 3, 8)


# === Optimiser and metric ===


def apply(optimizer, grads, start=0.0):
    variables = [keras.Variable(np.full(2, start, "f"), name=name) for name in ("main", "compression_0")][: len(grads)]
    optimizer.build(variables)
    for gradients in zip(*grads, strict=True):
        optimizer.apply([tf.constant(g, "float32") for g in gradients], variables)
    return [variable.numpy() for variable in variables]


def test_groups_are_clipped_apart():
    optimizer = StreamAdam(1.0, clip_norm=1.0, clip_groups=["compression_"])
    optimizer._groups = [1, 0]
    clipped = optimizer._clip_by_group([tf.constant([3.0, 4.0]), tf.constant([0.3, 0.4])])
    np.testing.assert_allclose(clipped[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [0.3, 0.4], rtol=1e-6)
    joint = StreamAdam(1.0, clip_norm=1.0)
    joint._groups = [0, 0]
    scaled = joint._clip_by_group([tf.constant([3.0, 4.0]), tf.constant([0.3, 0.4])])
    assert float(ops.norm(ops.concatenate(scaled))) == pytest.approx(1.0, rel=1e-5)


def test_clipping_is_part_of_the_first_compiled_step():
    """The first step is traced with an optimiser that is not built yet: clipping must be in that graph."""
    weights = []
    for scale in (1.0, 1000.0):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
        optimizer = StreamAdam(0.1, clip_norm=1e-8, epsilon=1e-8)
        model.compile(optimizer, lambda y, prediction, scale=scale: scale * ops.mean(prediction))
        model.fit(np.ones((8, 1)), np.ones((8, 1)), epochs=1, verbose=0)
        weights.append(model.get_weights()[0].item())
    # A gradient far above epsilon moves a weight by the learning rate, 0.1; one clipped to epsilon hardly at all.
    np.testing.assert_allclose(weights, [0.9969, 0.9969], atol=1e-3)


def test_without_options_it_is_adam():
    grads = [np.random.default_rng(0).normal(size=(5, 2))]
    np.testing.assert_allclose(apply(StreamAdam(0.1), grads), apply(keras.optimizers.Adam(0.1), grads))


def test_update_periods_average_gradients():
    """From step 2 on, two gradients make one update: the same as feeding Adam their mean."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(6, 2))
    rare = apply(StreamAdam(0.1, update_periods=[(2, 2)]), [grads])
    means = np.stack([grads[0], grads[1], grads[2:4].mean(0), grads[4:6].mean(0)])
    np.testing.assert_allclose(rare, apply(keras.optimizers.Adam(0.1), [means]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "arguments", [dict(clip_norm=0.0), dict(update_periods=[(-1, 2)]), dict(update_periods=[(0, 0)])]
)
def test_bad_optimiser_arguments(arguments):
    with pytest.raises(ValueError, match="Received"):
        StreamAdam(**arguments)


def test_optimiser_round_trips():
    optimizer = StreamAdam(1e-3, clip_norm=0.5, clip_groups=["a"], update_periods=[(10, 4)])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_bits_per_token():
    metric = BitsPerToken()
    metric.update_state(np.array([[0, 1]]), np.zeros((1, 2, 8), "f"))
    assert float(metric.result()) == pytest.approx(3.0)


def test_ngram_baseline_is_a_distribution_and_learns():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 8, 20_000)
    assert lm.ngram_bits_per_character(noise, rng.integers(0, 8, 5_000), 8, order=3) == pytest.approx(3.0, abs=0.03)
    cycle = np.tile(np.arange(8), 500)
    assert lm.ngram_bits_per_character(cycle, cycle[:400], 8, order=3) < 0.02
    # Probabilities of all next symbols after one context sum to one.
    total = sum(2 ** -lm.ngram_bits_per_character(noise, np.array([3, 5, c]), 8, order=3) for c in range(8))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_two_runs_with_one_seed_are_bit_equal():
    results = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = CompressiveTransformer(
            75, 1, 8, 2, 8, window_length=8, memory_length=8, compressed_memory_length=4, dropout=0.1
        )
        lm.fit_arm(model.build_from_signature(), "austen", updates=3, seed=0)
        results.append(model.get_weights())
    for own, other in zip(*results, strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_first_step_of_a_plain_fit_is_traced_once():
    class Counted(SkipGram):
        traces = 0

        def train_step(self, data):
            self.traces += 1
            return super().train_step(data)

    model = Counted(10, 4).build_from_signature()
    model.compile("adam", jit_compile=False)
    model.fit({"word_ids": np.zeros(8, "int32"), "candidate_ids": np.ones((8, 6), "int32")}, epochs=2, verbose=0)
    assert model.traces == 1

"""Small models that have what the catalog's have: carried state, attention, convolutions, densities."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.model import Signature, Spec, TaskMetric, ZooModel

VOCABULARY, LENGTH, MEMORY, WIDTH, PERIOD = 13, 12, 6, 64, 4
STEPS = 200


class ToyMetadata:
    """Stands for `zoo.checkpoints.Metadata`, whose fields the exporter reads one by one."""

    method = "toy_language_model"
    preset = "tiny"
    parameters = 1
    weights_sha256 = "0" * 64
    metrics = {"bits_per_token": 3.0}
    licence = "Apache-2.0"


@keras.saving.register_keras_serializable(package="zoo_tests")
class ToyLanguageModel(ZooModel):
    """One block of attention over the tokens and a memory that is carried from call to call.

    Its text repeats itself after `PERIOD` tokens, so that only attention can continue it.
    """

    def __init__(self, mask_value: float = -30.0, **kwargs):
        super().__init__(**kwargs)
        self.mask_value = mask_value
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.position = keras.layers.Embedding(64, WIDTH)
        self.query, self.key, self.value, self.output_dense = (keras.layers.Dense(WIDTH) for _ in range(4))
        self.feedforward = [keras.layers.Dense(4 * WIDTH, activation="gelu"), keras.layers.Dense(WIDTH)]
        self.norms = [keras.layers.LayerNormalization() for _ in range(2)]
        self.logits = keras.layers.Dense(VOCABULARY)

    def get_config(self):
        return {**super().get_config(), "mask_value": self.mask_value}

    def call(self, token_ids, memory):
        x = self.embedding(token_ids)
        context = keras.ops.concatenate([memory, x], axis=1)
        rows, columns = tf.shape(x)[1], tf.shape(context)[1]
        position = self.position(tf.range(columns))
        query = self.query(x + position[columns - rows :])
        key, value = self.key(context + position), self.value(context)
        ahead = tf.reshape(tf.range(columns), [1, 1, -1]) > tf.reshape(tf.range(rows) + columns - rows, [1, -1, 1])
        scores = tf.matmul(query, key, transpose_b=True) / np.float32(np.sqrt(WIDTH))
        scores = scores + tf.cast(ahead, scores.dtype) * np.float32(self.mask_value)
        x = self.norms[0](x + self.output_dense(tf.matmul(tf.nn.softmax(scores), value)))
        hidden = self.norms[1](x + self.feedforward[1](self.feedforward[0](x)))
        return self.logits(hidden), context[:, -MEMORY:]

    def _step(self, token_ids, memory):
        logits, memory_out = self(token_ids, memory)
        return {"logits": logits, "memory_out": memory_out}

    def signatures(self):
        inputs = {
            "token_ids": Spec(("batch", "time"), "int32", "Tokens.", 0, VOCABULARY - 1),
            "memory": Spec(("batch", "memory", WIDTH), "float32", "Hidden states of earlier calls."),
        }
        outputs = {"logits": "Scores of the next token.", "memory_out": "The memory of the next call."}
        return {"step": Signature(self._step, inputs, outputs, {"time": LENGTH, "memory": MEMORY})}

    @property
    def assets(self):
        return {"tokenizer.json": b'{"characters": "abcdefghijklm"}'}

    def _tokens(self, number, seed=0):
        pattern = np.random.default_rng(seed).integers(0, VOCABULARY, (number, PERIOD))
        return np.tile(pattern, LENGTH // PERIOD + 1)[:, : LENGTH + 1].astype("int32")

    def real_inputs(self, signature, batch_size=1):
        tokens = self._tokens(8 * batch_size)[:, :-1]
        for rows in tokens.reshape(8, batch_size, LENGTH):
            yield {"token_ids": rows, "memory": np.zeros((batch_size, MEMORY, WIDTH), "float32")}

    def task_metric(self):
        def compute(run):
            tokens = self._tokens(16)
            memory = np.zeros((16, MEMORY, WIDTH), "float32")
            logits = run("step", {"token_ids": tokens[:, :-1], "memory": memory})["logits"]
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            return float(-np.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean() / np.log(2))

        return TaskMetric(
            "bits_per_token", compute, higher_is_better=False, relative_tolerance=0.02, absolute_tolerance=0.01
        )


def train_language_model(mask_value: float) -> ToyLanguageModel:
    keras.utils.set_random_seed(0)
    model = ToyLanguageModel(mask_value=mask_value)
    model.build_from_signature()
    tokens = tf.constant(model._tokens(1024, seed=1))
    optimizer = keras.optimizers.Adam(3e-3)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            logits, _ = model(batch[:, :-1], tf.zeros((64, MEMORY, WIDTH)))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch[:, 1:], logits=logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for number in range(STEPS):
        step(tf.gather(tokens, tf.range(64) + 64 * (number % 16)))
    return model


@keras.saving.register_keras_serializable(package="zoo_tests")
class ToyDensity(ZooModel):
    """An affine coupling under a normal distribution of TensorFlow Probability."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.shift = keras.Sequential(
            [keras.layers.Dense(64, "gelu"), keras.layers.Dense(64, "gelu"), keras.layers.Dense(2)]
        )

    def _encode(self, x):
        return {"z": tf.concat([x[..., :2], x[..., 2:] + self.shift(x[..., :2])], -1)}

    def _decode(self, z):
        return {"x": tf.concat([z[..., :2], z[..., 2:] - self.shift(z[..., :2])], -1)}

    def _log_prob(self, x):
        import tensorflow_probability as tfp

        base = tfp.distributions.MultivariateNormalDiag(np.zeros(4, "float32"), np.ones(4, "float32"))
        return {"log_prob": base.log_prob(self._encode(x)["z"])}

    def _sample(self, noise):
        return {"sample": self._decode(noise)["x"]}

    def signatures(self):
        spec = Spec(("batch", 4), "float32", "Points.")
        return {
            "log_prob": Signature(self._log_prob, {"x": spec}, {"log_prob": "Nats."}),
            "encode": Signature(self._encode, {"x": spec}, {"z": "Latent."}),
            "decode": Signature(self._decode, {"z": spec}, {"x": "Points."}),
            "sample": Signature(self._sample, {"noise": spec}, {"sample": "Points."}),
        }


def classifier() -> keras.Model:
    """A plain Keras model with convolutions: it has no signatures, metric or data of its own."""
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(16, 3, activation="relu", padding="same")(image)
    x = keras.layers.Conv2D(32, 3, activation="relu", padding="same")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model({"image": image}, {"probabilities": keras.layers.Dense(10, activation="softmax")(x)})


@pytest.fixture(scope="session")
def language_model():
    model = train_language_model(-30.0)
    model.metadata = ToyMetadata()
    return model


@pytest.fixture(scope="session")
def masked_language_model():
    return train_language_model(-1e9)


@pytest.fixture(scope="session")
def density():
    keras.utils.set_random_seed(0)
    return ToyDensity().build_from_signature()


@pytest.fixture(scope="session")
def conv_classifier():
    keras.utils.set_random_seed(0)
    return classifier()


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).random((16, 1, 8, 8, 1)).astype("float32")

"""A healthy toy model and broken ones, each with one defect that a check must see."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.model import Signature, Spec, ZooModel

NUM_FEATURES, NUM_CLASSES = 6, 3

serializable = keras.saving.register_keras_serializable(package="zoo_conformance")


@serializable
class Healthy(ZooModel):
    """A classifier with a running state; every broken toy changes one thing of it."""

    def __init__(self, hidden_dim=256, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim, self.scale = hidden_dim, scale
        self.hidden, self.head = self.make_layers()
        self.build((None, NUM_FEATURES))

    def make_layers(self):
        return [
            keras.layers.Dense(self.hidden_dim, activation="tanh", dtype=self.dtype_policy),
            keras.layers.Dense(NUM_CLASSES, dtype=self.dtype_policy),
        ]

    def build(self, input_shape):
        self.hidden.build((None, NUM_FEATURES))
        self.head.build((None, self.hidden_dim))

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim, "scale": self.scale}

    def call(self, features):
        return ops.cast(self.head(self.hidden(features)), "float32") * self.scale

    def predict_signature(self, features):
        return {"logits": self.call(features)}

    def step_signature(self, features, state):
        state = 0.5 * state + features
        return {"logits": self.call(state), "state_out": state}

    def signatures(self):
        features = Spec(("batch", NUM_FEATURES), "float32", "Features.", -1.0, 1.0)
        state = Spec(("batch", NUM_FEATURES), "float32", "Decayed sum of earlier features.")
        logits = {"logits": "Scores of the classes."}
        return {
            "predict": Signature(self.predict_signature, {"features": features}, logits),
            "step": Signature(
                self.step_signature, {"features": features, "state": state}, {**logits, "state_out": "Next `state`."}
            ),
        }

    def replaced(self, **changes):
        """Returns the signatures with some fields of `predict` changed."""
        predict = self.signatures_of_healthy()["predict"]
        fields = {name: getattr(predict, name) for name in ("function", "inputs", "outputs", "sizes")}
        return {"predict": Signature(**{**fields, **changes})}

    def signatures_of_healthy(self):
        return Healthy.signatures(self)


# === Configuration and saving ===


@serializable
class UnsavedArgument(Healthy):
    def get_config(self):
        config = super().get_config()
        del config["scale"]
        return config


@serializable
class DefaultInsteadOfArgument(Healthy):
    def get_config(self):
        return {**super().get_config(), "scale": 1.0}


class _Box:
    """Hides what it holds from Keras."""

    def __init__(self, content):
        self.content = content


@serializable
class UntrackedWeights(Healthy):
    def build(self, input_shape):
        super().build(input_shape)
        self.box = _Box(tf.Variable(keras.random.normal((NUM_CLASSES,))))

    def call(self, features):
        return super().call(features) + self.box.content


@serializable
class LazyWeights(Healthy):
    def build(self, input_shape):
        """Leaves it to the first call to build the layers."""


@serializable
class UnbuiltWhenLoaded(Healthy):
    def __init__(self, hidden_dim=256, scale=1.0, **kwargs):
        ZooModel.__init__(self, **kwargs)
        self.hidden_dim, self.scale = hidden_dim, scale
        self.hidden, self.head = self.make_layers()

    def build_from_config(self, config):
        pass


@serializable
class LostAssets(Healthy):
    content = None

    @property
    def assets(self):
        return {"labels.txt": self.content} if self.content else {}

    def set_assets(self, assets):
        self.content = assets["labels.txt"]

    def load_assets(self, directory):
        pass


@serializable
class SharedLayers(Healthy):
    made = []

    def make_layers(self):
        if not SharedLayers.made:
            SharedLayers.made = super().make_layers()
        return SharedLayers.made

    def build(self, input_shape):
        if not self.hidden.built:
            super().build(input_shape)


# === Training ===


@serializable
class UnseededStart(Healthy):
    def build(self, input_shape):
        super().build(input_shape)
        self.hidden.bias.assign(np.random.default_rng().normal(size=self.hidden_dim))


@serializable
class HiddenProgress(Healthy):
    def build(self, input_shape):
        super().build(input_shape)
        self.box = _Box(tf.Variable(0.0))

    def call(self, features, training=None):
        if training:
            self.box.content.assign_add(0.1)
        return super().call(features) * (1 + self.box.content)


@serializable
class RandomInTrace(Healthy):
    def call(self, features, training=None):
        return super().call(features) * (np.random.default_rng().uniform(0.5, 1.5) if training else 1.0)


# === Precision ===


@serializable
class LowPrecisionOutput(Healthy):
    def call(self, features):
        return self.head(self.hidden(features))


@serializable
class PinnedToFloat32(Healthy):
    def make_layers(self):
        return [
            keras.layers.Dense(self.hidden_dim, activation="tanh", dtype="float32"),
            keras.layers.Dense(NUM_CLASSES, dtype="float32"),
        ]


@serializable
class Float32Constant(Healthy):
    def call(self, features):
        shifted = tf.add(self.hidden(features), tf.constant(1.0, tf.float32))
        return ops.cast(self.head(shifted), "float32")


@serializable
class HalfVariables(Healthy):
    def make_layers(self):
        hidden, _ = super().make_layers()
        return [hidden, keras.layers.Dense(NUM_CLASSES, dtype="bfloat16")]


@serializable
class ChangesGlobalPolicy(Healthy):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        keras.config.set_dtype_policy("float32")


@serializable
class LosesPolicy(Healthy):
    def make_layers(self):
        return [keras.layers.Dense(self.hidden_dim, activation="tanh"), keras.layers.Dense(NUM_CLASSES)]


# === Signatures ===


@serializable
class UnknownVerb(Healthy):
    def signatures(self):
        return {"classify": self.signatures_of_healthy()["predict"]}


@serializable
class Collision(Healthy):
    def signatures(self):
        return self.replaced(outputs={"features": "The same name as the input."})


@serializable
class StaticBatch(Healthy):
    def signatures(self):
        return self.replaced(inputs={"features": Spec((2, NUM_FEATURES), "float32", "Features.")})


@serializable
class UndeclaredOutput(Healthy):
    def predict_signature(self, features):
        return {**super().predict_signature(features), "hidden": features}


@serializable
class MissingOutput(Healthy):
    def signatures(self):
        return self.replaced(outputs={"logits": "Scores.", "probabilities": "Never returned."})


@serializable
class OneRowForAll(Healthy):
    def predict_signature(self, features):
        return {"logits": ops.sum(self.call(features), axis=0, keepdims=True)}


@serializable
class HalfOutput(Healthy):
    def predict_signature(self, features):
        return {"logits": ops.cast(self.call(features), "float16")}


@serializable
class StateOfAnotherShape(Healthy):
    def step_signature(self, features, state):
        return {"logits": self.call(features), "state_out": state[:, :-1]}


@serializable
class SilentNaN(Healthy):
    def predict_signature(self, features):
        return {"logits": self.call(ops.log(features + 1.0))}


@serializable
class DependsOnBatch(Healthy):
    def predict_signature(self, features):
        return {"logits": self.call(features - ops.mean(features, axis=0, keepdims=True))}


@serializable
class HiddenState(Healthy):
    def predict_signature(self, features):
        self.box = _Box(getattr(self, "box", _Box(0.0)).content + 1.0)
        return {"logits": self.call(features) + self.box.content}


@serializable
class HiddenVariable(Healthy):
    def build(self, input_shape):
        super().build(input_shape)
        self.counter = self.add_weight(name="counter", shape=(), initializer="zeros", trainable=False)

    def predict_signature(self, features):
        self.counter.assign_add(1.0)
        return super().predict_signature(features)


@serializable
class GlobalNoise(Healthy):
    def predict_signature(self, features):
        return {"logits": self.call(features) + np.random.normal()}  # noqa: NPY002 - the defect


@serializable
class AcceptsAnything(Healthy):
    def run(self, signature=None, **inputs):
        outputs = self._signature(signature).function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}


@serializable
class AcceptsNaN(Healthy):
    def run(self, signature=None, **inputs):
        return super().run(signature, **{name: np.nan_to_num(value) for name, value in inputs.items()})


@serializable
class VagueErrors(Healthy):
    def run(self, signature=None, **inputs):
        try:
            return super().run(signature, **inputs)
        except (ValueError, TypeError) as error:
            raise ValueError("Bad input.") from error


# === Export ===


@serializable
class RandomInGraph(Healthy):
    def predict_signature(self, features):
        return {"logits": self.call(features) + tf.random.normal(())}


@serializable
class AnotherGraph(Healthy):
    def predict_signature(self, features):
        return {"logits": self.call(features) + (0.0 if tf.executing_eagerly() else 0.01)}

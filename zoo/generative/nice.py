"""NICE: non-linear independent components estimation, an exactly invertible flow.

Dinh, Krueger, Bengio 2014 (https://arxiv.org/abs/1410.8516). A network h = f(x), made of coupling layers and a diagonal
scaling, is trained by exact maximum likelihood so that the components of h are independent under a fixed prior:

    log p(x) = sum_d log p_H(f_d(x)) + log|det df/dx|

Index sets: I1 the odd and I2 the even positions (counted from 1) or, by choice, the two halves. Couplings alternate:
I2 is changed by a function of I1, then I1 by one of I2, and so on; h = exp(s) * y multiplies by the learned diagonal.

Differs from the paper: couplings may also be affine (Real NVP), for comparison; s may be initialised from data, since
it travels a few units and Adam moves it a learning rate a step.

Checked against: autodiff Jacobians, TensorFlow Probability's bijectors and distributions, numerical integration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from zoo.layers.couplings import COUPLINGS, AdditiveCoupling, AffineCoupling, DenseConditioner
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

PRIORS = ("logistic", "gaussian")
SPLITS = ("odd_even", "halves")
PREPROCESSINGS = ("none", "zca")
# Noise draws a likelihood of discrete data is averaged over in evaluation; they are the same in every evaluation.
EVALUATION_DRAWS = 4
EVALUATION_SEED = 2014
# Uniform noise is kept this far from 0 and 1, where the logistic quantile is infinite: the spacing of float32 below 1.
NOISE_MARGIN = 2.0**-24


def bits_per_dimension(
    log_prob: float | np.ndarray, num_features: int, num_levels: int, value_range: Sequence[float] = (0.0, 1.0)
) -> float | np.ndarray:
    """Converts the log-density of a dequantised image to bits per dimension of the discrete one (an upper bound).

    Args:
        log_prob: float or array. Log-density in nats, over images scaled to `value_range`.
        num_features: int. Number of pixels times channels.
        num_levels: int. Number of levels of the discrete data.
        value_range: pair of floats. What the levels were scaled to.

    Returns:
        `(D log(num_levels / width of the range) - log_prob) / (D log 2)`.
    """
    levels_per_unit = num_levels / (value_range[1] - value_range[0])
    return (num_features * np.log(levels_per_unit) - log_prob) / (num_features * np.log(2.0))


@keras.saving.register_keras_serializable(package="zoo")
class NICE(ZooModel):
    """An exactly invertible image model with exact likelihood.

    The model's input, in `fit` and when called, is a batch of flattened images of integer levels `(batch,
    num_features)`; its output is their log-likelihood in nats, `(batch,)`, averaged over dequantisation noise in
    evaluation and under one fresh draw in training. `fit` needs no targets and no loss. The methods and signatures take
    images scaled to `value_range`; `dequantize` and `to_levels` go between the two.

    Args:
        num_features: int. Number of pixels times channels D; even.
        num_levels: int. Number of levels V of the data; levels are 0 to V - 1. Defaults to 256.
        num_couplings: int. Number of couplings; three let every output depend on every input. Defaults to 4.
        num_hidden_layers: int. Hidden layers of each coupling's network. Defaults to 5.
        hidden_dim: int. Size of each hidden layer. Defaults to 1000.
        coupling: str. `"additive"` or `"affine"`. Defaults to `"additive"`.
        prior: str. `"logistic"` or `"gaussian"`. Defaults to `"logistic"`.
        scaling: bool. Whether there is a diagonal scaling; an additive model without one preserves volume. Defaults to
            True.
        split: str. `"odd_even"` or `"halves"`. Defaults to `"odd_even"`.
        value_range: pair of floats. What levels are scaled to. Defaults to `(0.0, 1.0)`.
        preprocessing: str. `"none"` or `"zca"`, a whitening which `fit_preprocessing` computes. Defaults to `"none"`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("nice")
    image = model.dequantize(levels, seed=0)                    # integer levels (batch, 64) -> floats in [0, 1)
    log_prob = model.log_prob(image)                            # nats, (batch,)
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 64)
    samples = model.sample(16, temperature=0.8, seed=0)
    ```

    Reference:
        Dinh, Krueger, Bengio 2014, "NICE: Non-linear Independent Components Estimation", arXiv 1410.8516.
    """

    def __init__(
        self,
        num_features: int,
        num_levels: int = 256,
        num_couplings: int = 4,
        num_hidden_layers: int = 5,
        hidden_dim: int = 1000,
        coupling: Literal["additive", "affine"] = "additive",
        prior: Literal["logistic", "gaussian"] = "logistic",
        scaling: bool = True,
        split: Literal["odd_even", "halves"] = "odd_even",
        value_range: Sequence[float] = (0.0, 1.0),
        preprocessing: Literal["none", "zca"] = "none",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # Mixed precision belongs inside the couplings' networks: a density needs the signal itself in float32.
        self.autocast = False
        even = num_features >= 2 and num_features % 2 == 0
        _require(even, "num_features", "an even number of at least 2", num_features)
        _require(num_levels >= 2, "num_levels", "at least 2", num_levels)
        _require(num_couplings >= 1, "num_couplings", "at least 1", num_couplings)
        _require(num_hidden_layers >= 0, "num_hidden_layers", "at least 0", num_hidden_layers)
        _require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        for name, value, known in (
            ("coupling", coupling, COUPLINGS),
            ("prior", prior, PRIORS),
            ("split", split, SPLITS),
            ("preprocessing", preprocessing, PREPROCESSINGS),
        ):
            _require(value in known, name, f"one of {known}", value)
        increasing = len(value_range) == 2 and value_range[0] < value_range[1]
        _require(increasing, "value_range", "two increasing numbers", value_range)
        self.num_features = num_features
        self.num_levels = num_levels
        self.num_couplings = num_couplings
        self.num_hidden_layers = num_hidden_layers
        self.hidden_dim = hidden_dim
        self.coupling = coupling
        self.prior = prior
        self.scaling = scaling
        self.split = split
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.preprocessing = preprocessing

        # === Layers ===
        half = num_features // 2
        layer = {"additive": AdditiveCoupling, "affine": AffineCoupling}[coupling]
        outputs = half * (2 if coupling == "affine" else 1)
        self.couplings = [
            layer(
                DenseConditioner(outputs, num_hidden_layers, hidden_dim, dtype=self.dtype_policy),
                dtype=self.dtype_policy,
                name=f"coupling_{index}",
            )
            for index in range(num_couplings)
        ]
        self.seed_generator = keras.random.SeedGenerator()
        self.build((None, num_features))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        half = (None, self.num_features // 2)
        for coupling in self.couplings:
            coupling.build(half, half)
        if self.scaling:
            self.log_scale = self._float32_weight("log_scale", (self.num_features,), "zeros", trainable=True)
        if self.preprocessing == "zca":
            square = (self.num_features, self.num_features)
            self.mean = self._float32_weight("mean", (self.num_features,), "zeros")
            self.whitening = self._float32_weight("whitening", square, "identity")
            self.unwhitening = self._float32_weight("unwhitening", square, "identity")
            self.whitening_log_det = self._float32_weight("whitening_log_det", (), "zeros")

    def call(self, levels: Any, training: bool | None = False) -> Any:
        """Returns the log-likelihood of dequantised images.

        Args:
            levels: tensor `(batch, num_features)`. Integer levels 0 to `num_levels - 1`, of any numeric type.
            training: bool. Whether to draw fresh noise, once, rather than average over fixed draws.

        Returns:
            Tensor `(batch,)`, in nats.
        """
        levels = ops.cast(levels, "float32")
        if training:
            noise = keras.random.uniform(ops.shape(levels), dtype="float32", seed=self.seed_generator)
            return self._log_prob(self._dequantize(levels, noise))
        levels = ops.repeat(levels, EVALUATION_DRAWS, axis=0)
        noise = keras.random.uniform(ops.shape(levels), dtype="float32", seed=EVALUATION_SEED)
        log_prob = self._log_prob(self._dequantize(levels, noise))
        return ops.mean(ops.reshape(log_prob, (-1, EVALUATION_DRAWS)), axis=1)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean negative log-likelihood in nats; `y_pred` is what `call` returned."""
        loss = -y_pred if sample_weight is None else -y_pred * ops.cast(sample_weight, y_pred.dtype)
        return ops.mean(loss)

    # === Data ===

    def dequantize(self, levels: Any, seed: int | None = None) -> np.ndarray:
        """Returns images of continuous values: the levels plus uniform noise, scaled to `value_range`.

        Args:
            levels: array-like `(batch, num_features)`. Whole numbers 0 to `num_levels - 1`.
            seed: int or None. Seed of the noise; fresh noise by default.

        Returns:
            float32 array `(batch, num_features)`.

        Raises:
            ValueError: for another shape, or values that are no levels.
        """
        levels = np.asarray(levels)
        _require(
            levels.ndim == 2 and levels.shape[1] == self.num_features,
            "levels",
            f"of shape (batch, {self.num_features})",
            f"shape={levels.shape}",
        )
        whole = np.issubdtype(levels.dtype, np.number) and np.array_equal(levels, np.floor(levels))
        _require(
            bool(whole) and levels.size > 0 and levels.min() >= 0 and levels.max() < self.num_levels,
            "levels",
            f"whole numbers from 0 to {self.num_levels - 1}",
            f"dtype={levels.dtype}, values={levels.ravel()[:5]}...",
        )
        noise = np.random.default_rng(seed).random(levels.shape, dtype=np.float32)
        image = np.asarray(self._dequantize(tf.constant(levels, tf.float32), tf.constant(noise)))
        # Level plus noise may round up to the next level; in the last one that would leave the range.
        return np.minimum(image, np.float32(self.value_range[1]))

    def evaluation_images(self, levels: Any) -> np.ndarray:
        """Returns each image a few times, dequantised under noise that is the same in every evaluation.

        Args:
            levels: array-like `(num_images, num_features)`. Integer levels.

        Returns:
            float32 array `(EVALUATION_DRAWS * num_images, num_features)`.
        """
        return self.dequantize(np.repeat(np.asarray(levels), EVALUATION_DRAWS, axis=0), seed=EVALUATION_SEED)

    def to_levels(self, image: Any) -> np.ndarray:
        """Returns the levels nearest to an image, clipped to valid ones.

        Args:
            image: array-like `(..., num_features)`. Values around `value_range`.

        Returns:
            int32 array of the same shape.
        """
        low, high = self.value_range
        levels = np.floor((np.asarray(image) - low) / (high - low) * self.num_levels)
        return np.clip(levels, 0, self.num_levels - 1).astype(np.int32)

    def bits_per_dimension(self, log_prob: float | np.ndarray) -> float | np.ndarray:
        """Converts log-densities of this model's images to bits per dimension of the discrete data."""
        return bits_per_dimension(log_prob, self.num_features, self.num_levels, self.value_range)

    def fit_preprocessing(self, levels: Any, epsilon: float = 1e-6, seed: int = 0) -> None:
        """Computes the ZCA whitening of dequantised training data: W = U (L + epsilon)^(-1/2) U^T.

        Args:
            levels: array-like `(num_images, num_features)`. Integer levels of the training images.
            epsilon: float. Added to the eigenvalues L of the covariance (in squared units of `value_range`); larger
                values whiten approximately. The map is invertible for every positive value.
            seed: int. Seed of the dequantisation noise.

        Raises:
            ValueError: for a model without whitening, bad levels, or an `epsilon` that is not positive.
        """
        _require(
            self.preprocessing == "zca", "preprocessing", "'zca' for a whitening to be computed", self.preprocessing
        )
        _require(epsilon > 0, "epsilon", "positive", epsilon)
        image = self.dequantize(levels, seed).astype(np.float64)
        mean = image.mean(axis=0)
        centred = image - mean
        eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(image))
        # Rounding can leave the eigenvalues of a singular covariance slightly below zero.
        deviations = np.sqrt(np.maximum(eigenvalues, 0.0) + epsilon)
        self.mean.assign(mean)
        self.whitening.assign((vectors / deviations) @ vectors.T)
        self.unwhitening.assign((vectors * deviations) @ vectors.T)
        self.whitening_log_det.assign(-np.log(deviations).sum())

    def initialize_scaling(self, levels: Any, seed: int = 0) -> None:
        """Sets s so that every latent component has the prior's standard deviation on the given data.

        Args:
            levels: array-like `(num_images, num_features)`. Integer levels of training images.
            seed: int. Seed of the dequantisation noise.

        Raises:
            ValueError: for a model without scaling, or bad levels.
        """
        _require(self.scaling, "scaling", "True for a scaling to be initialised", self.scaling)
        latent, _ = self._encode(tf.constant(self.dequantize(levels, seed)))
        wanted = float(self._prior().stddev())
        self.log_scale.assign(self.log_scale + ops.log(wanted) - ops.log(ops.std(latent, axis=0)))

    # === Use ===

    def log_prob(self, image: Any) -> np.ndarray:
        """Returns the log-density of images, in nats.

        Args:
            image: array-like `(batch, num_features)`. Dequantised values in `value_range`.

        Returns:
            float32 array `(batch,)`.

        Raises:
            ValueError: for another shape, NaN, or values out of `value_range`.
            TypeError: for values that are no numbers.
        """
        return self.run("log_prob", image=image)["log_prob"]

    def encode(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns latents `(batch, num_features)` and log-determinants `(batch,)`; refuses what `log_prob` refuses."""
        outputs = self.run("encode", image=image)
        return outputs["latent"], outputs["log_det"]

    def decode(self, latent: Any) -> np.ndarray:
        """Returns the images of latents: the inverse of `encode`.

        Args:
            latent: array-like `(batch, num_features)`.

        Returns:
            float32 array `(batch, num_features)`; values may leave `value_range` where the latent is improbable.
        """
        return self.run("decode", latent=latent)["image"]

    def sample(self, num_samples: int, temperature: float = 1.0, seed: int | None = None) -> np.ndarray:
        """Draws images from the model.

        Args:
            num_samples: int.
            temperature: float. Factor on the latents; below 1 samples are more typical and less varied.
            seed: int or None. Fresh noise by default.

        Returns:
            float32 array `(num_samples, num_features)`, not clipped to `value_range`.
        """
        _require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        _require(0 <= temperature < float("inf"), "temperature", "finite and not negative", temperature)
        rng = np.random.default_rng(seed)
        noise = self.signatures()["sample"].inputs["noise"].draw(rng, {"batch": num_samples})
        latent = np.asarray(self._prior_quantile(tf.constant(noise)))
        return self.decode(latent * np.float32(temperature))

    def interpolate(
        self, start: Any, end: Any, num_steps: int = 9, method: Literal["linear", "slerp"] = "linear"
    ) -> np.ndarray:
        """Returns images on the way between two batches of images, by way of their latents.

        Args:
            start: array-like `(batch, num_features)`. Images in `value_range`.
            end: array-like of the same shape.
            num_steps: int. Number of images on each way, both ends included.
            method: str. `"linear"`, or `"slerp"`, which turns from one latent to the other at an even angle.

        Returns:
            float32 array `(batch, num_steps, num_features)`; the first and last images are `start` and `end`.
        """
        _require(num_steps >= 2, "num_steps", "at least 2", num_steps)
        paths = {"linear": _linear_path, "slerp": _slerp_path}
        _require(method in paths, "method", f"one of {tuple(paths)}", method)
        first, last = self.encode(start)[0], self.encode(end)[0]
        _require(first.shape == last.shape, "end", f"of the shape {first.shape} of `start`", f"shape={last.shape}")
        path = paths[method](first, last, np.linspace(0.0, 1.0, num_steps)[None, :, None])
        images = self.decode(path.reshape(-1, self.num_features).astype(np.float32))
        return images.reshape(path.shape)

    def inpaint(
        self, image: Any, missing: Any, num_steps: int = 300, step_size: float = 0.1, seed: int | None = None
    ) -> np.ndarray:
        """Fills in missing pixels by projected gradient ascent on the log-density, with noise.

            x <- clip(x + a_i (gradient + noise)) on the missing pixels,  a_i = 100 * step_size / (100 + i)

        Args:
            image: array-like `(batch, num_features)`. Images in `value_range`; missing pixels may hold any such value.
            missing: bool array-like, broadcastable to the images. True where a pixel is to be filled in.
            num_steps: int. Number of ascent steps.
            step_size: float. First step; the paper's by default. Steps far beyond the square of the smallest `exp(-s)`
                jump across the density's peak, until they have shrunk enough: 0.001 suits the digits.
            seed: int or None. Seed of the starting values and the noise.

        Returns:
            float32 array `(batch, num_features)`; pixels that are not missing are returned unchanged.

        Reference:
            NICE, section 5.2.
        """
        image = self.signatures()["log_prob"].check({"image": image})["image"]
        missing = np.asarray(missing)
        _require(missing.dtype == bool, "missing", "boolean", f"dtype={missing.dtype}")
        fits = missing.ndim in (1, 2) and all(
            size in (1, wanted) for size, wanted in zip(missing.shape[::-1], image.shape[::-1], strict=False)
        )
        _require(fits, "missing", f"broadcastable to {image.shape}", f"shape={missing.shape}")
        _require(num_steps >= 1, "num_steps", "at least 1", num_steps)
        _require(0 < step_size < float("inf"), "step_size", "positive and finite", step_size)
        rng = np.random.default_rng(seed)
        gradient = tf.function(self._log_prob_gradient)
        current = np.where(missing, rng.uniform(*self.value_range, image.shape), image).astype(np.float32)
        for step in range(num_steps):
            noise = rng.standard_normal(image.shape)
            moved = current + 100.0 * step_size / (100.0 + step) * (gradient(tf.constant(current)).numpy() + noise)
            current = np.where(missing, np.clip(moved, *self.value_range), image).astype(np.float32)
        return current

    # === The flow, as functions of tensors ===

    def _dequantize(self, levels: Any, noise: Any) -> Any:
        low, high = self.value_range
        return low + (levels + noise) * ((high - low) / self.num_levels)

    def _encode(self, image: Any) -> tuple[Any, Any]:
        latent, log_det = image, 0.0
        if self.preprocessing == "zca":
            latent, log_det = ops.matmul(image - self.mean, self.whitening), self.whitening_log_det
        parts = self._split(latent)
        for index, coupling in enumerate(self.couplings):
            kept, changed = index % 2, 1 - index % 2
            parts[changed], term = coupling(parts[kept], parts[changed])
            log_det = log_det + term
        latent = self._merge(parts)
        if self.scaling:
            latent, log_det = latent * ops.exp(self.log_scale), log_det + ops.sum(self.log_scale)
        return latent, log_det

    def _decode(self, latent: Any) -> Any:
        if self.scaling:
            latent = latent * ops.exp(-self.log_scale)
        parts = self._split(latent)
        for index, coupling in reversed(list(enumerate(self.couplings))):
            kept, changed = index % 2, 1 - index % 2
            parts[changed] = coupling.inverse(parts[kept], parts[changed])
        image = self._merge(parts)
        if self.preprocessing == "zca":
            image = ops.matmul(image, self.unwhitening) + self.mean
        return image

    def _log_prob(self, image: Any) -> Any:
        latent, log_det = self._encode(image)
        return ops.sum(self._prior().log_prob(latent), axis=1) + log_det

    def _log_prob_gradient(self, image: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(image)
            log_prob = self._log_prob(image)
        return tape.gradient(log_prob, image)

    def _prior(self) -> tfp.distributions.Distribution:
        # Made anew each time: a distribution kept from one traced function would leak its tensors into the next.
        family = {"logistic": tfp.distributions.Logistic, "gaussian": tfp.distributions.Normal}[self.prior]
        return family(0.0, 1.0)

    def _prior_quantile(self, noise: Any) -> Any:
        # The Gaussian quantile exists in no deployment runtime; there the noise is Gaussian itself.
        if self.prior == "gaussian":
            return noise
        noise = ops.clip(noise, NOISE_MARGIN, 1.0 - NOISE_MARGIN)
        return ops.log(noise) - ops.log(1.0 - noise)

    def _split(self, values: Any) -> list[Any]:
        half = self.num_features // 2
        if self.split == "halves":
            return [values[:, :half], values[:, half:]]
        pairs = ops.reshape(values, (-1, half, 2))
        return [pairs[:, :, 0], pairs[:, :, 1]]

    def _merge(self, parts: list[Any]) -> Any:
        if self.split == "halves":
            return ops.concatenate(parts, axis=1)
        return ops.reshape(ops.stack(parts, axis=2), (-1, self.num_features))

    def _float32_weight(
        self, name: str, shape: tuple[int, ...], initializer: str, trainable: bool = False
    ) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable, autocast=False)

    # === Held-out data ===

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields inputs from the validation split of the data set the checkpoint names; nothing without a checkpoint.

        The latents and the noise are those of real images: `decode` and `sample` give the images back.

        Args:
            signature: str.
            batch_size: int. Number of images; an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        for images in self._images("validation", batch_size):
            if len(images) == batch_size:
                yield self._inputs_from_images(signature, images)

    def task_metric(self) -> TaskMetric | None:
        """Returns the mean log-likelihood of the test images in nats; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        return TaskMetric("nats", self._held_out_nats, higher_is_better=True, absolute_tolerance=0.05, two_sided=True)

    def _held_out_nats(self, run: Runner) -> float:
        log_probs = [run("log_prob", {"image": images})["log_prob"] for images in self._images("test", 256)]
        return float(np.mean(np.concatenate(log_probs)))

    def _images(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        from zoo.datasets import load_arrays

        levels = load_arrays(self.metadata.dataset["name"], split)["image"]
        images = self.evaluation_images(levels.reshape(len(levels), -1))
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]

    def _inputs_from_images(self, signature: str, images: np.ndarray) -> Arrays:
        if signature in ("log_prob", "encode"):
            return {"image": images}
        latent, _ = self.encode(images)
        if signature == "decode":
            return {"latent": latent}
        uniform = self.prior == "logistic"
        return {"noise": np.asarray(tf.sigmoid(latent)) if uniform else latent}

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_features": self.num_features,
            "num_levels": self.num_levels,
            "num_couplings": self.num_couplings,
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_dim": self.hidden_dim,
            "coupling": self.coupling,
            "prior": self.prior,
            "scaling": self.scaling,
            "split": self.split,
            "value_range": list(self.value_range),
            "preprocessing": self.preprocessing,
        }

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `log_prob`, `encode`, `decode` and `sample`."""
        shape = ("batch", self.num_features)
        image = Spec(shape, "float32", "Dequantised flattened image.", *self.value_range)
        latent = Spec(shape, "float32", "Latent components.")
        uniform = Spec(shape, "float32", "Uniform noise.", 0.0, 1.0)
        normal = Spec(shape, "float32", "Standard normal noise.")
        return {
            "log_prob": Signature(
                lambda image: {"log_prob": self._log_prob(image)},
                {"image": image},
                {"log_prob": "Log-density in nats, (batch,)."},
            ),
            "encode": Signature(
                lambda image: dict(zip(("latent", "log_det"), self._encode(image), strict=True)),
                {"image": image},
                {"latent": "Latent components.", "log_det": "Log-determinant of the Jacobian, (batch,)."},
            ),
            "decode": Signature(
                lambda latent: {"image": self._decode(latent)},
                {"latent": latent},
                {"image": "Image, not clipped."},
            ),
            "sample": Signature(
                lambda noise: {"image": self._decode(self._prior_quantile(noise))},
                {"noise": uniform if self.prior == "logistic" else normal},
                {"image": "Image, not clipped."},
            ),
        }


def _require(holds: bool, name: str, expected: str, received: Any) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {expected}. Received: {received}")


def _linear_path(first: np.ndarray, last: np.ndarray, time: np.ndarray) -> np.ndarray:
    return (1.0 - time) * first[:, None] + time * last[:, None]


def _slerp_path(first: np.ndarray, last: np.ndarray, time: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(last, axis=1)
    cosine = np.sum(first * last, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))[:, None, None]
    sine = np.sin(angle)
    # Latents in one line have no unique arc between them (and a vanishing divisor): there the straight way is taken.
    straight = sine < 1e-6
    sine = np.where(straight, 1.0, sine)
    weights = np.sin((1.0 - time) * angle) / sine, np.sin(time * angle) / sine
    curved = weights[0] * first[:, None] + weights[1] * last[:, None]
    return np.where(straight, _linear_path(first, last, time), curved)

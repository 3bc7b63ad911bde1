"""What image models with exact likelihood share: data of discrete levels, densities, samples, interpolation.

A flow is an invertible map h = f(x) of images onto latents whose components are independent under a fixed prior:

    log p(x) = sum_d log p_H(f_d(x)) + log|det df/dx|

A method brings f and its inverse, as functions of tensors. A factored-out part whose distribution depends on the rest is
no exception: standardised by its mean and deviation it is one more step of f.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from zoo.arguments import require
from zoo.generative.image_levels import check_levels
from zoo.generative.interpolation import interpolate_latents
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

PRIORS = ("logistic", "gaussian")
# Noise draws a likelihood of discrete data is averaged over in evaluation; they are the same in every evaluation.
EVALUATION_DRAWS = 4
EVALUATION_SEED = 2014
ENCODED_AT_ONCE = 64
EVALUATION_BATCH = 256
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


class ImageFlow(ZooModel):
    """An exactly invertible image model with exact likelihood; the base of `NICE`, `RealNVP` and `Glow`.

    The model's input, in `fit` and when called, is a batch of images of integer levels; its output is their
    log-likelihood in nats, `(batch,)`, averaged over dequantisation noise in evaluation and under one fresh draw in
    training. `fit` needs no targets and no loss. The methods and signatures take images scaled to `value_range`;
    `dequantize` and `to_levels` go between the two.

    Subclasses implement `_encode` and `_decode`.

    Args:
        image_shape: tuple of int. Shape of one image as the model takes it.
        num_levels: int. Number of levels V of the data; levels are 0 to V - 1.
        value_range: pair of floats. What levels are scaled to.
        prior: str. `"logistic"` or `"gaussian"`.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_levels: int,
        value_range: Sequence[float],
        prior: Literal["logistic", "gaussian"],
        /,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # Mixed precision belongs inside the couplings' networks: a density needs the signal itself in float32.
        self.autocast = False
        require(num_levels >= 2, "num_levels", "at least 2", num_levels)
        increasing = len(value_range) == 2 and value_range[0] < value_range[1]
        require(increasing, "value_range", "two increasing numbers", value_range)
        require(prior in PRIORS, "prior", f"one of {PRIORS}", prior)
        self._image_shape = tuple(image_shape)
        self.num_levels = num_levels
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.prior = prior
        self.seed_generator = keras.random.SeedGenerator()

    @property
    def latent_dim(self) -> int:
        """Number of latent components: as many as an image has values."""
        return math.prod(self._image_shape)

    def call(self, levels: Any, training: bool | None = False) -> Any:
        """Returns the log-likelihood of dequantised images.

        Args:
            levels: tensor `(batch, *image_shape)`. Integer levels 0 to `num_levels - 1`, of any numeric type.
            training: bool. Whether to draw fresh noise, once, rather than average over fixed draws.

        Returns:
            Tensor `(batch,)`, in nats.
        """
        levels = ops.cast(levels, "float32")
        if training:
            noise = keras.random.uniform(ops.shape(levels), dtype="float32", seed=self.seed_generator)
            return self._log_prob(self._dequantize(levels, noise), training=True)
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
            levels: array-like `(batch, *image_shape)`. Whole numbers 0 to `num_levels - 1`.
            seed: int or None. Seed of the noise; fresh noise by default.

        Returns:
            float32 array of the same shape.

        Raises:
            ValueError: for another shape, or values that are no levels.
        """
        levels = np.asarray(levels)
        check_levels(levels, self._image_shape, self.num_levels)
        noise = np.random.default_rng(seed).random(levels.shape, dtype=np.float32)
        image = np.asarray(self._dequantize(tf.constant(levels, tf.float32), tf.constant(noise)))
        # Level plus noise may round up to the next level; in the last one that would leave the range.
        return np.minimum(image, np.float32(self.value_range[1]))

    def evaluation_images(self, levels: Any) -> np.ndarray:
        """Returns each image a few times, dequantised under noise that is the same in every evaluation.

        Args:
            levels: array-like `(num_images, *image_shape)`. Integer levels.

        Returns:
            float32 array `(EVALUATION_DRAWS * num_images, *image_shape)`.
        """
        return self.dequantize(np.repeat(np.asarray(levels), EVALUATION_DRAWS, axis=0), seed=EVALUATION_SEED)

    def to_levels(self, image: Any) -> np.ndarray:
        """Returns the levels nearest to an image, clipped to valid ones.

        Args:
            image: array-like. Values around `value_range`.

        Returns:
            int32 array of the same shape.
        """
        low, high = self.value_range
        levels = np.floor((np.asarray(image) - low) / (high - low) * self.num_levels)
        return np.clip(levels, 0, self.num_levels - 1).astype(np.int32)

    def bits_per_dimension(self, log_prob: float | np.ndarray) -> float | np.ndarray:
        """Converts log-densities of this model's images to bits per dimension of the discrete data."""
        return bits_per_dimension(log_prob, self.latent_dim, self.num_levels, self.value_range)

    # === Use ===

    def log_prob(self, image: Any) -> np.ndarray:
        """Returns the log-density of images, in nats.

        Args:
            image: array-like `(batch, *image_shape)`. Dequantised values in `value_range`.

        Returns:
            float32 array `(batch,)`.

        Raises:
            ValueError: for another shape, NaN, or values out of `value_range`.
            TypeError: for integer levels, and values that are no numbers.
        """
        return self.run("log_prob", image=self._scaled(image))["log_prob"]

    def encode(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns latents `(batch, latent_dim)` and log-determinants `(batch,)`; refuses what `log_prob` refuses."""
        outputs = self.run("encode", image=self._scaled(image))
        return outputs["latent"], outputs["log_det"]

    def decode(self, latent: Any) -> np.ndarray:
        """Returns the images of latents: the inverse of `encode`.

        Args:
            latent: array-like `(batch, latent_dim)`.

        Returns:
            float32 array `(batch, *image_shape)`; values may leave `value_range` where the latent is improbable.
        """
        return self.run("decode", latent=latent)["image"]

    def sample(self, num_samples: int, temperature: float = 1.0, seed: int | None = None) -> np.ndarray:
        """Draws images from the model.

        Args:
            num_samples: int.
            temperature: float. Factor on the latents; below 1 samples are more typical and less varied.
            seed: int or None. Fresh noise by default.

        Returns:
            float32 array `(num_samples, *image_shape)`, not clipped to `value_range`.
        """
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        require(0 <= temperature < float("inf"), "temperature", "finite and not negative", temperature)
        rng = np.random.default_rng(seed)
        noise = self.signatures()["sample"].inputs["noise"].draw(rng, {"batch": num_samples})
        latent = np.asarray(self._prior_quantile(tf.constant(noise)))
        return self.decode(latent * np.float32(temperature))

    def interpolate(
        self, start: Any, end: Any, num_steps: int = 9, method: Literal["linear", "slerp"] = "linear"
    ) -> np.ndarray:
        """Returns images on the way between two batches of images, by way of their latents.

        Args:
            start: array-like `(batch, *image_shape)`. Images in `value_range`.
            end: array-like of the same shape.
            num_steps: int. Number of images on each way, both ends included.
            method: str. `"linear"`, or `"slerp"`, which turns from one latent to the other at an even angle.

        Returns:
            float32 array `(batch, num_steps, *image_shape)`; the first and last images are `start` and `end`.
        """
        path = interpolate_latents(self.encode(start)[0], self.encode(end)[0], num_steps, method)
        return self.decode(path.reshape(-1, self.latent_dim)).reshape(*path.shape[:2], *self._image_shape)

    def inpaint(
        self, image: Any, missing: Any, num_steps: int = 300, step_size: float = 0.1, seed: int | None = None
    ) -> np.ndarray:
        """Fills in missing pixels by projected gradient ascent on the log-density, with noise.

            x <- clip(x + a_i (gradient + noise)) on the missing pixels,  a_i = 100 * step_size / (100 + i)

        Args:
            image: array-like `(batch, *image_shape)`. Images in `value_range`; missing pixels may hold any such value.
            missing: bool array-like, broadcastable to the images. True where a pixel is to be filled in.
            num_steps: int. Number of ascent steps.
            step_size: float. First step; the paper's by default. Steps far beyond the square of the smallest `exp(-s)`
                jump across the density's peak, until they have shrunk enough: 0.001 suits the digits.
            seed: int or None. Seed of the starting values and the noise.

        Returns:
            float32 array like `image`; pixels that are not missing are returned unchanged.

        Reference:
            NICE, section 5.2.
        """
        image = self.signatures()["log_prob"].check({"image": self._scaled(image)})["image"]
        missing = np.asarray(missing)
        require(missing.dtype == bool, "missing", "boolean", f"dtype={missing.dtype}")
        fits = 1 <= missing.ndim <= image.ndim and all(
            size in (1, wanted) for size, wanted in zip(missing.shape[::-1], image.shape[::-1], strict=False)
        )
        require(fits, "missing", f"broadcastable to {image.shape}", f"shape={missing.shape}")
        require(num_steps >= 1, "num_steps", "at least 1", num_steps)
        require(0 < step_size < float("inf"), "step_size", "positive and finite", step_size)
        rng = np.random.default_rng(seed)
        gradient = tf.function(self._log_prob_gradient)
        current = np.where(missing, rng.uniform(*self.value_range, image.shape), image).astype(np.float32)
        for step in range(num_steps):
            noise = rng.standard_normal(image.shape)
            moved = current + 100.0 * step_size / (100.0 + step) * (gradient(tf.constant(current)).numpy() + noise)
            current = np.where(missing, np.clip(moved, *self.value_range), image).astype(np.float32)
        return current

    def _scaled(self, image: Any) -> np.ndarray:
        image = np.asarray(image)
        if np.issubdtype(image.dtype, np.integer):
            raise TypeError(
                f"`image` must be of floats in [{self.value_range[0]}, {self.value_range[1]}]; `dequantize` makes them "
                f"of integer levels. Received: dtype={image.dtype}"
            )
        return image

    # === The flow, as functions of tensors ===

    def _encode(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps images to latents `(batch, latent_dim)`; also returns log|det|, `(batch,)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no map of images to latents.")

    def _decode(self, latent: Any) -> Any:
        """Maps latents `(batch, latent_dim)` to images."""
        raise NotImplementedError(f"{type(self).__name__} defines no map of latents to images.")

    def _dequantize(self, levels: Any, noise: Any) -> Any:
        low, high = self.value_range
        return low + (levels + noise) * ((high - low) / self.num_levels)

    def _log_prob(self, image: Any, training: bool = False) -> Any:
        latent, log_det = self._encode(image, training)
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
        # Many images are encoded at once, which takes hardly longer than one
        at_once = batch_size * max(1, ENCODED_AT_ONCE // batch_size)
        for images in self._images("validation", at_once):
            inputs = self._inputs_from_images(signature, images)
            for start in range(0, len(images) - batch_size + 1, batch_size):
                yield {name: value[start : start + batch_size] for name, value in inputs.items()}

    def task_metric(self) -> TaskMetric | None:
        """Returns the mean log-likelihood of the test images in nats; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        return TaskMetric("nats", self._held_out_nats, higher_is_better=True, absolute_tolerance=0.05, two_sided=True)

    def _held_out_nats(self, run: Runner) -> float:
        batches = self._images("test", EVALUATION_BATCH)
        return float(np.mean(np.concatenate([run("log_prob", {"image": images})["log_prob"] for images in batches])))

    def _images(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        from zoo.datasets import load_arrays

        levels = load_arrays(self.metadata.evaluation_dataset, split)["image"]
        images = self.evaluation_images(levels.reshape(len(levels), *self._image_shape))
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

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `log_prob`, `encode`, `decode` and `sample`."""
        image = Spec(("batch", *self._image_shape), "float32", "Dequantised image.", *self.value_range)
        shape = ("batch", self.latent_dim)
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

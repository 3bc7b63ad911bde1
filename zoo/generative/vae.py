"""Variational autoencoder (auto-encoding variational Bayes): a latent-variable model of images with an amortised posterior.

Kingma, Welling 2014 (https://arxiv.org/abs/1312.6114); the same model independently in Rezende, Mohamed, Wierstra 2014.
Latents z ~ p(z) give images by p(x|z), a decoder; an encoder approximates the posterior, q(z|x) = N(mu(x), diag s(x)^2).
Both are trained on the evidence lower bound, by samples whose noise does not depend on the weights, z = mu + s * e:

    log p(x) >= E_q log p(x|z) - KL(q(z|x) || p(z))          estimator B: the divergence in closed form (section 2.3)
    log p(x) >= E_q [log p(x, z) - log q(z|x)]               estimator A: of samples, for any prior
    log p(x) >= E log (1/K) sum_k p(x, z_k) / q(z_k|x)       importance-weighted (Burda et al. 2016), tighter as K grows

All are sums over pixels and latents, in nats.

Differs from the paper: by choice, a weighted divergence, free bits, a learned mixture as the prior (as in TensorFlow
Probability's example), convolutions, and likelihoods of grey levels; densities of pixels have a smallest variance.

Checked against: closed forms, probabilistic principal components, TensorFlow Probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_networks import EVALUATION_SEED, ImageAutoencoder
from zoo.generative.likelihoods import MEAN_ACTIVATIONS, Bernoulli, Categorical, DiscretizedLogistic, Gaussian
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.ops.probability import log_mean_exp, standard_normal_log_prob

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian_shared", "discretized_logistic", "categorical")
PRIORS = ("normal", "mixture")
KLS = ("analytic", "sampled")
POSTERIOR_SCALES = ("exp", "softplus")
# The task metric is an importance-weighted bound of this many samples.
EVALUATION_SAMPLES = 10
EVALUATION_BATCH = 100
# Values of decoded images that `log_likelihood` holds at once: 16 MB, and a few such arrays.
VALUES_AT_ONCE = 2**22
# Uniform noise is kept this far from 0 and 1 where it goes through a quantile function.
NOISE_MARGIN = 2.0**-24


def kl_to_standard_normal(mean: Any, log_variance: Any) -> Any:
    """Returns KL(N(mean, exp(log_variance)) || N(0, 1)) of each component, in nats.

    Args:
        mean: tensor.
        log_variance: tensor of the same shape.

    Reference:
        Kingma, Welling 2014, appendix B.
    """
    return 0.5 * (ops.square(mean) + ops.exp(log_variance) - log_variance - 1.0)


@keras.saving.register_keras_serializable(package="zoo")
class VAE(ImageAutoencoder):
    """A variational autoencoder of images.

    `fit` takes batches of float images in [0, 1], `(batch, height, width, channels)`, and needs no targets and no loss. It
    reports the two parts of the negative bound, in nats: `reconstruction_loss`, -E log p(x|z), and `kl_loss`. Called, the
    model returns a dict of nats for each image: `elbo` and `log_likelihood` `(batch,)`, and `kl` `(batch, terms)`, a term
    for each latent where the divergence is analytic, else one.

    Args:
        image_shape: tuple of int. Height, width and channels.
        latent_dim: int. Number of latents J.
        likelihood: str. p(x|z): `"bernoulli"` for black and white, `"gaussian"` (mean and variance of each pixel),
            `"gaussian_shared"` (one learned variance), `"discretized_logistic"` or `"categorical"` for grey levels.
            Defaults to `"bernoulli"`.
        mean_activation: str. `"sigmoid"` keeps the means of the Gaussians and of the logistic in (0, 1), `"linear"` does
            not. Defaults to `"sigmoid"`.
        prior: str. `"normal"`, the standard one, or `"mixture"`, a learned mixture of diagonal Gaussians. Defaults to
            `"normal"`.
        num_components: int. Components of that mixture. Defaults to 100.
        posterior_scale: str. How the encoder's second output gives s: `"exp"`, as log s^2, or `"softplus"`, shifted so
            that 0 gives 1. Defaults to `"exp"`.
        kl: str. `"analytic"`, or `"sampled"`, which a mixture and importance weights need. Defaults to `"analytic"`.
        beta: float. Weight of the divergence. Defaults to 1.
        free_bits: float. Nats of each latent's divergence, averaged over a batch, that cost nothing. Defaults to 0.
        kl_warmup_steps: int. Updates in which the divergence's weight grows from 0 to `beta`. Defaults to 0.
        num_samples: int. Samples L that the bound is averaged over. Defaults to 1.
        num_importance_samples: int. Samples K of an importance-weighted bound. Defaults to 1.
        weight_decay: float. In training, times the sum of squares of all weights, in nats. 1 / (2 N) is the paper's prior
            N(0, I) of the weights, for N images. Defaults to 0.
        **kwargs: sizes of the networks, and `num_levels` of stored pixels: see `ImageAutoencoder`.

    Example:

    ```python
    model = zoo.get("vae")
    image = model.preprocess(levels)                                # black and white, for the Bernoulli likelihood
    mean, log_variance = model.encode(image)                        # (batch, latent_dim) each
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 8, 8, 1)
    samples = model.sample(16, seed=0)                              # probabilities of white
    nats = model.log_likelihood(image, num_samples=500)             # (batch,)
    ```

    Reference:
        Kingma, Welling 2014, "Auto-Encoding Variational Bayes", arXiv 1312.6114; Burda, Grosse, Salakhutdinov 2016,
        "Importance Weighted Autoencoders", arXiv 1509.00519.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: Literal[
            "bernoulli", "gaussian", "gaussian_shared", "discretized_logistic", "categorical"
        ] = "bernoulli",
        mean_activation: Literal["sigmoid", "linear"] = "sigmoid",
        prior: Literal["normal", "mixture"] = "normal",
        num_components: int = 100,
        posterior_scale: Literal["exp", "softplus"] = "exp",
        kl: Literal["analytic", "sampled"] = "analytic",
        beta: float = 1.0,
        free_bits: float = 0.0,
        kl_warmup_steps: int = 0,
        num_samples: int = 1,
        num_importance_samples: int = 1,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(image_shape, latent_dim, **kwargs)
        for name, value, known in (
            ("likelihood", likelihood, LIKELIHOODS),
            ("mean_activation", mean_activation, MEAN_ACTIVATIONS),
            ("prior", prior, PRIORS),
            ("posterior_scale", posterior_scale, POSTERIOR_SCALES),
            ("kl", kl, KLS),
        ):
            require(value in known, name, f"one of {known}", value)
        for name, value in (("num_components", num_components), ("num_samples", num_samples)):
            require(value >= 1, name, "at least 1", value)
        require(num_importance_samples >= 1, "num_importance_samples", "at least 1", num_importance_samples)
        for name, value in (("beta", beta), ("free_bits", free_bits), ("weight_decay", weight_decay)):
            require(0 <= value < float("inf"), name, "finite and not negative", value)
        require(kl_warmup_steps >= 0, "kl_warmup_steps", "at least 0", kl_warmup_steps)
        closed = prior == "normal" and num_importance_samples == 1
        require(kl == "sampled" or closed, "kl", "'sampled' with a mixture or importance weights", kl)
        require(kl == "analytic" or free_bits == 0, "free_bits", "0 with a sampled divergence", free_bits)
        plain = num_importance_samples == 1 or (beta == 1 and kl_warmup_steps == 0)
        weights = (beta, kl_warmup_steps)
        require(plain, "beta", "1, and `kl_warmup_steps` 0, with importance weights", weights)
        self.likelihood = likelihood
        self.mean_activation = mean_activation
        self.prior = prior
        self.num_components = num_components
        self.posterior_scale = posterior_scale
        self.kl = kl
        self.beta = beta
        self.free_bits = free_bits
        self.kl_warmup_steps = kl_warmup_steps
        self.num_samples = num_samples
        self.num_importance_samples = num_importance_samples
        self.weight_decay = weight_decay

        # === Layers ===
        self._pixels = _pixel_likelihood(likelihood, mean_activation, self.num_levels)
        self.make_networks([latent_dim, latent_dim], self._pixels.depths)
        self.seed_generator = keras.random.SeedGenerator()
        self.reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss = keras.metrics.Mean(name="kl_loss")
        self.build((None, *self.image_shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        super().build(input_shape)
        if self.likelihood == "gaussian_shared":
            self.pixel_log_variance = self._float32_weight("pixel_log_variance", (), "zeros")
        if self.prior == "mixture":
            shape = (self.num_components, self.latent_dim)
            self.component_means = self._float32_weight("component_means", shape, "glorot_uniform")
            self.component_raw_scales = self._float32_weight("component_raw_scales", shape, "glorot_uniform")
            self.component_logits = self._float32_weight("component_logits", shape[:1], "glorot_uniform")

    def _float32_weight(self, name: str, shape: tuple[int, ...], initializer: str) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def scale(self, levels: Any) -> Any:
        """Returns stored pixels as the model takes them; black and white, from one half on, for a Bernoulli likelihood."""
        image = super().scale(levels)
        return tf.cast(image >= 0.5, tf.float32) if self.likelihood == "bernoulli" else image

    # === Training ===

    def call(self, image: Any, training: bool | None = False) -> dict[str, Any]:
        """Returns the bound on the log-likelihood of images, and its parts.

        Args:
            image: float tensor `(batch, height, width, channels)`, in [0, 1].
            training: bool. Whether the noise is fresh; it is the same each time otherwise.

        Returns:
            Dict of `elbo`, `log_likelihood` and `kl`, in nats.

        Raises:
            ValueError: for images of another shape.
            TypeError: for images of whole numbers.
        """
        image = self.check_images(image)
        num_draws = self.num_samples * self.num_importance_samples
        seed = self.seed_generator if training else EVALUATION_SEED
        noise = keras.random.normal((ops.shape(image)[0], num_draws, self.latent_dim), dtype="float32", seed=seed)
        return self._bound(image, noise)

    def _bound(self, image: Any, noise: Any) -> dict[str, Any]:
        mean, log_variance = self._encode(image)
        latent = self._reparameterize(mean, log_variance, noise)
        log_likelihood = self._log_likelihood(image, latent)
        if self.kl == "analytic":
            kl = kl_to_standard_normal(mean, log_variance)
            log_likelihood = ops.mean(log_likelihood, axis=1)
            return {"elbo": log_likelihood - ops.sum(kl, axis=1), "log_likelihood": log_likelihood, "kl": kl}
        kl = self._posterior_log_prob(log_variance, noise) - self._prior_log_prob(latent)
        log_weights = ops.reshape(log_likelihood - kl, (-1, self.num_samples, self.num_importance_samples))
        return {
            "elbo": ops.mean(log_mean_exp(log_weights, axis=2), axis=1),
            "log_likelihood": ops.mean(log_likelihood, axis=1),
            "kl": ops.mean(kl, axis=1, keepdims=True),
        }

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean negative bound in nats, with the options' weights; `y_pred` is what `call` returned."""
        reconstruction, kl = -y_pred["log_likelihood"], ops.sum(y_pred["kl"], axis=1)
        self.reconstruction_loss.update_state(reconstruction, sample_weight)
        self.kl_loss.update_state(kl, sample_weight)
        weight = self._kl_weight(training)
        if self.num_importance_samples > 1:
            loss = _weighted_mean(-y_pred["elbo"], sample_weight)
        elif self.free_bits > 0:
            averages = _weighted_mean(y_pred["kl"], sample_weight)
            charged = ops.sum(ops.maximum(averages, self.free_bits))
            loss = _weighted_mean(reconstruction, sample_weight) + weight * charged
        else:
            loss = _weighted_mean(reconstruction + weight * kl, sample_weight)
        if training and self.weight_decay > 0:
            loss += self.weight_decay * sum(ops.sum(ops.square(weight)) for weight in self.trainable_variables)
        return loss

    def _kl_weight(self, training: bool) -> Any:
        if not training or self.kl_warmup_steps == 0:
            return self.beta
        progress = ops.cast(self.optimizer.iterations, "float32") / self.kl_warmup_steps
        return self.beta * ops.minimum(progress, 1.0)

    # === The model, as functions of tensors ===

    def _encode(self, image: Any) -> tuple[Any, Any]:
        mean, raw = self.encoder(image)
        if self.posterior_scale == "exp":
            return mean, raw
        return mean, 2.0 * ops.log(ops.softplus(raw + math.log(math.expm1(1.0))))

    def _reparameterize(self, mean: Any, log_variance: Any, noise: Any) -> Any:
        """Returns z = mu + s * e, `(batch, draws, latent_dim)`."""
        return ops.expand_dims(mean, 1) + ops.expand_dims(ops.exp(0.5 * log_variance), 1) * noise

    def _posterior_log_prob(self, log_variance: Any, noise: Any) -> Any:
        """Returns log q(z|x) of z = mu + s * e, `(batch, draws)`."""
        return standard_normal_log_prob(noise) - 0.5 * ops.expand_dims(ops.sum(log_variance, axis=1), 1)

    def _prior_log_prob(self, latent: Any) -> Any:
        """Returns log p(z), `(batch, draws)`."""
        if self.prior == "normal":
            return standard_normal_log_prob(latent)
        scale = self._component_scales()
        # Components on the second axis of rows: more than four dimensions have no broadcast on phones
        rows = ops.reshape(latent, (-1, 1, self.latent_dim))
        log_probs = standard_normal_log_prob((rows - self.component_means) / scale) - ops.sum(ops.log(scale), axis=-1)
        log_weights = ops.log_softmax(self.component_logits) + math.log(self.num_components)
        return ops.reshape(log_mean_exp(log_probs + log_weights, axis=1), ops.shape(latent)[:2])

    def _component_scales(self) -> Any:
        return ops.softplus(self.component_raw_scales)

    def _prior_latent(self, noise: Any, component_noise: Any = None) -> Any:
        """Returns draws of the prior made of normal noise, and of uniform noise that picks the mixture's component."""
        if self.prior == "normal":
            return noise
        weights = ops.softmax(self.component_logits)
        begins = ops.cumsum(weights) - weights
        reached = ops.cast(ops.expand_dims(component_noise, 1) >= begins, "float32")
        # One in the last column that is reached
        chosen = reached - ops.concatenate([reached[:, 1:], ops.zeros_like(reached[:, :1])], axis=1)
        return ops.matmul(chosen, self.component_means) + ops.matmul(chosen, self._component_scales()) * noise

    def _parameters(self, latent: Any) -> list[Any]:
        """Returns what the likelihood of a pixel takes, for latents `(batch, latent_dim)`."""
        heads = self.decoder(latent)
        return [*heads, self.pixel_log_variance] if self.likelihood == "gaussian_shared" else heads

    def _log_likelihood(self, image: Any, latent: Any) -> Any:
        """Returns log p(x|z) `(batch, draws)` for latents `(batch, draws, latent_dim)`."""
        leading = ops.shape(latent)[:2]
        parameters = [
            ops.reshape(values, (*leading, *values.shape[1:])) if len(values.shape) else values
            for values in self._parameters(ops.reshape(latent, (-1, self.latent_dim)))
        ]
        values = ops.reshape(image, (-1, 1, math.prod(self.image_shape)))
        return ops.sum(self._pixels.log_prob(values, *parameters), axis=-1)

    def _log_weights(self, image: Any, noise: Any) -> Any:
        """Returns log p(x, z) - log q(z|x), `(batch, draws)`."""
        mean, log_variance = self._encode(image)
        latent = self._reparameterize(mean, log_variance, noise)
        log_joint = self._log_likelihood(image, latent) + self._prior_log_prob(latent)
        return log_joint - self._posterior_log_prob(log_variance, noise)

    def _decode(self, latent: Any) -> Any:
        """Returns the means of images."""
        return self._as_images(self._pixels.mean(*self._parameters(latent)))

    # === Use ===

    def encode(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and log-variance of the posterior of latents.

        Args:
            image: array-like `(batch, height, width, channels)`. Floats in [0, 1].

        Returns:
            Two float32 arrays `(batch, latent_dim)`.

        Raises:
            ValueError: for another shape, NaN, or values out of [0, 1].
            TypeError: for whole numbers, and values that are no numbers.
        """
        outputs = self.run("encode", image=self._float_images(image))
        return outputs["mean"], outputs["log_variance"]

    def reconstruct(self, image: Any, sample: bool = False, seed: int | None = None) -> np.ndarray:
        """Encodes and decodes images; refuses what `encode` refuses.

        Args:
            image: array-like `(batch, height, width, channels)`. Floats in [0, 1].
            sample: bool. Whether to draw the latents rather than take their means.
            seed: int or None. Seed of that; fresh noise by default.

        Returns:
            float32 array like `image`: the means of the pixels.
        """
        image = self._float_images(image)
        noise = np.zeros((len(image), self.latent_dim), np.float32)
        if sample:
            noise = np.random.default_rng(seed).standard_normal(noise.shape, np.float32)
        return self.run("reconstruct", image=image, noise=noise)["reconstruction"]

    def sample(
        self, num_samples: int, temperature: float = 1.0, draw_pixels: bool = False, seed: int | None = None
    ) -> np.ndarray:
        """Draws images from the model.

        Args:
            num_samples: int.
            temperature: float. Factor on the latents' noise; below 1 samples are more typical and less varied.
            draw_pixels: bool. Whether to draw the pixels too rather than take their means.
            seed: int or None. Fresh noise by default.

        Returns:
            float32 array `(num_samples, height, width, channels)`.
        """
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        require(0 <= temperature < float("inf"), "temperature", "finite and not negative", temperature)
        rng = np.random.default_rng(seed)
        inputs = self.signatures()["sample"].inputs
        noise = {name: spec.draw(rng, {"batch": num_samples}) for name, spec in inputs.items()}
        noise["noise"] *= np.float32(temperature)
        if not draw_pixels:
            return self.run("sample", **noise)["image"]
        latent = self._prior_latent(**{name: tf.constant(value) for name, value in noise.items()})
        uniform = rng.uniform(NOISE_MARGIN, 1 - NOISE_MARGIN, (num_samples, math.prod(self.image_shape)))
        drawn = self._pixels.sample(tf.constant(uniform, tf.float32), *self._parameters(latent))
        return np.asarray(self._as_images(drawn))

    def log_likelihood(self, image: Any, num_samples: int = 500, seed: int | None = None) -> np.ndarray:
        """Estimates log p(x) by importance sampling from the posterior: L_K, a lower bound that grows with K.

        Memory does not grow with the number of images or samples.

        Args:
            image: array-like `(num_images, height, width, channels)`. Floats in [0, 1]; black and white for a Bernoulli
                likelihood, or the number is none.
            num_samples: int. K.
            seed: int or None. Fresh noise by default.

        Returns:
            float32 array `(num_images,)`, in nats.

        Raises:
            ValueError: for another shape, NaN, or values out of [0, 1].
            TypeError: for whole numbers, and values that are no numbers.
        """
        image = self.signatures()["encode"].check({"image": self._float_images(image)})["image"]
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        rng = np.random.default_rng(seed)
        log_weights = tf.function(self._log_weights, reduce_retracing=True)
        rows = max(VALUES_AT_ONCE // math.prod(self.image_shape), 1)
        draws = min(num_samples, rows)
        results = []
        for start in range(0, len(image), max(rows // draws, 1)):
            chosen = tf.constant(image[start : start + max(rows // draws, 1)])
            total = np.full(len(chosen), -np.inf)
            for done in range(0, num_samples, draws):
                shape = (len(chosen), min(draws, num_samples - done), self.latent_dim)
                found = log_weights(chosen, tf.constant(rng.standard_normal(shape, np.float32)))
                total = np.logaddexp(total, np.logaddexp.reduce(found.numpy().astype(np.float64), axis=1))
            results.append(total - math.log(num_samples))
        return np.concatenate(results).astype(np.float32)

    def _codes(self, image: Any) -> np.ndarray:
        return self.encode(image)[0]

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns the importance-weighted bound of the test images in nats; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        # Two-sided: a likelihood that quantisation raised is no longer normalised
        return TaskMetric(
            f"nats_{EVALUATION_SAMPLES}",
            lambda run: self.held_out_nats(run, dataset, "test"),
            higher_is_better=True,
            relative_tolerance=0.01,
            two_sided=True,
        )

    def held_out_nats(self, run: Runner, dataset: str, split: str) -> float:
        """Returns the mean importance-weighted bound of a split's images, of samples that are the same each time.

        Args:
            run: `Runner`.
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        images = self.held_out_images(dataset, split)
        rng = np.random.default_rng(EVALUATION_SEED)
        nats = []
        for batch in np.split(images, range(EVALUATION_BATCH, len(images), EVALUATION_BATCH)):
            noise = rng.standard_normal((len(batch), EVALUATION_SAMPLES, self.latent_dim), np.float32)
            nats.append(run("log_prob", {"image": batch, "noise": noise})["log_prob"])
        return float(np.mean(np.concatenate(nats)))

    def inputs_from_images(self, signature: str, images: np.ndarray, others: np.ndarray) -> Arrays:
        """Returns inputs of a signature made of two batches of real images; latents and noise are those of the images."""
        mean, log_variance = self.encode(images)
        rng = np.random.default_rng(EVALUATION_SEED)
        noise = rng.standard_normal(mean.shape, np.float32)
        draws = rng.standard_normal((len(images), EVALUATION_SAMPLES, self.latent_dim), np.float32)
        uniform = rng.random(len(images), dtype=np.float32)
        drawn = mean + np.exp(0.5 * log_variance) * noise
        return {
            "encode": {"image": images},
            "decode": {"latent": drawn},
            "reconstruct": {"image": images, "noise": noise},
            # The latents of images are draws of a standard prior; a mixture needs noise of its own
            "sample": {"noise": drawn} if self.prior == "normal" else {"noise": noise, "component_noise": uniform},
            "log_prob": {"image": images, "noise": draws},
            "interpolate": {"start": images, "end": others, "position": uniform},
        }[signature]

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `encode`, `decode`, `reconstruct`, `sample`, `log_prob` and `interpolate`."""
        image = self.image_spec()
        latent = Spec(("batch", self.latent_dim), "float32", "Latents.")
        noise = Spec(("batch", self.latent_dim), "float32", "Standard normal noise; zeros for the mean.")
        draws = Spec(("batch", "num_samples", self.latent_dim), "float32", "Standard normal noise of each sample.")
        component = Spec(("batch",), "float32", "Uniform noise, which picks a component of the prior.", 0.0, 1.0)
        prior_noise = {"noise": noise} if self.prior == "normal" else {"noise": noise, "component_noise": component}
        return {
            "encode": Signature(
                lambda image: dict(zip(("mean", "log_variance"), self._encode(image), strict=True)),
                {"image": image},
                {"mean": "Mean of the posterior of latents.", "log_variance": "Logarithm of its variance."},
            ),
            "decode": Signature(
                lambda latent: {"image": self._decode(latent)}, {"latent": latent}, {"image": "Means of the pixels."}
            ),
            "reconstruct": Signature(
                self._reconstruct, {"image": image, "noise": noise}, {"reconstruction": "Means of the pixels."}
            ),
            "sample": Signature(
                lambda **noise: {"image": self._decode(self._prior_latent(**noise))},
                prior_noise,
                {"image": "Means of the pixels."},
            ),
            "log_prob": Signature(
                lambda image, noise: {"log_prob": log_mean_exp(self._log_weights(image, noise), axis=1)},
                {"image": image, "noise": draws},
                {"log_prob": "Importance-weighted lower bound on the log-likelihood in nats, (batch,)."},
                sizes={"num_samples": EVALUATION_SAMPLES},
            ),
            "interpolate": Signature(
                self._interpolate,
                self.interpolation_specs(),
                {"image": "Images between the two, by way of the means of their latents."},
            ),
        }

    def _reconstruct(self, image: tf.Tensor, noise: tf.Tensor) -> dict[str, Any]:
        mean, log_variance = self._encode(image)
        return {"reconstruction": self._decode(mean + ops.exp(0.5 * log_variance) * noise)}

    def _interpolate(self, start: tf.Tensor, end: tf.Tensor, position: tf.Tensor) -> dict[str, Any]:
        means = (self._encode(image)[0] for image in (start, end))
        return {"image": self._decode(self._between(*means, position))}

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "likelihood": self.likelihood,
            "mean_activation": self.mean_activation,
            "prior": self.prior,
            "num_components": self.num_components,
            "posterior_scale": self.posterior_scale,
            "kl": self.kl,
            "beta": self.beta,
            "free_bits": self.free_bits,
            "kl_warmup_steps": self.kl_warmup_steps,
            "num_samples": self.num_samples,
            "num_importance_samples": self.num_importance_samples,
            "weight_decay": self.weight_decay,
        }


def _pixel_likelihood(name: str, mean_activation: str, num_levels: int) -> Any:
    return {
        "bernoulli": Bernoulli(),
        "gaussian": Gaussian(mean_activation),
        "gaussian_shared": Gaussian(mean_activation, num_heads=1),
        "discretized_logistic": DiscretizedLogistic(num_levels, mean_activation),
        "categorical": Categorical(num_levels),
    }[name]


def _weighted_mean(values: Any, sample_weight: Any) -> Any:
    """Returns the mean over images, the first axis."""
    if sample_weight is not None:
        weight = ops.cast(sample_weight, values.dtype)
        values = values * ops.reshape(weight, (-1, *[1] * (len(values.shape) - 1)))
    return ops.mean(values, axis=0)

"""Multi-view InfoMax: representations of two views of an image, trained to have much mutual information.

Tschannen, Djolonga, Rubenstein, Gelly, Lucic 2020 (https://arxiv.org/abs/1907.13625). The upper and the lower half of an
image are encoded by networks of their own, and a critic f scores pairs of codes, S[i, j] = f(g1(x1_i), g2(x2_j)):

    max over g1, g2, f of I_EST(g1(X1); g2(X2)) <= I(g1(X1); g2(X2)) <= I(X; g1(X1), g2(X2))

I_EST is InfoNCE (`nce`) or the bound of Nguyen, Wainwright and Jordan (`nwj`); what the code g1(x1) is good for is told by
a linear classifier on it. The paper's point is that the first does not decide the second. Its means are here: encoders
that are invertible whatever their weights, so that I(g1(X1); g2(X2)) = I(X1; X2) all along, encoders that begin as the
identity but may lose information, critics of different capacity, and trainings for a bound of a given value.

Differs from the paper: held-out bounds are of held-out pairs, while the curves of the authors' notebook, labelled so, are
of training batches; the linear classifier is fitted to convergence, by another solver.

Checked against: autodiff and finite differences, double loops over pairs, the closed form of Gaussian pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.datasets import load_arrays
from zoo.information import bounds
from zoo.information.critics import make_critic
from zoo.information.image_pairs import batches, image_halves
from zoo.layers.chain import apply_chain, build_chain
from zoo.layers.couplings import COUPLINGS, AdditiveCoupling, DenseConditioner
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

ENCODERS = ("mlp", "convnet", "mlp_skip", "real_nvp")
# Encoders whose code is of the size of the view.
SIZE_KEEPING = ("mlp_skip", "real_nvp")
ESTIMATORS = ("nce", "nwj")
# Seed of the noise in evaluation: the same at any time.
EVALUATION_SEED = 1907
# Candidates of held-out scores.
EVALUATION_CANDIDATES = 60
ENCODING_BATCH = 500
INITIAL_STDDEV = 1e-4


# === Encoders ===


def near_zero() -> keras.initializers.Initializer:
    """Returns the initialiser of networks that are added to an identity: they begin with almost no effect."""
    return keras.initializers.TruncatedNormal(stddev=INITIAL_STDDEV)


@keras.saving.register_keras_serializable(package="zoo")
class ConvEncoder(keras.layers.Layer):
    """Two convolutions with stride 2, a normalisation over all their outputs, the mean over places, a dense layer.

    Args:
        view_shape: pair of int. Height and width of the image that a flattened view is of.
        filters: int. Filters of the first convolution; the second has twice as many.
        code_dim: int.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, view_shape: Sequence[int], filters: int, code_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.view_shape = tuple(view_shape)
        self.filters = filters
        self.code_dim = code_dim
        convolution = {"kernel_size": 5, "strides": 2, "padding": "same", "activation": "relu"}
        self.stages = [
            keras.layers.Reshape((*self.view_shape, 1), dtype=self.dtype_policy),
            keras.layers.Conv2D(filters, **convolution, dtype=self.dtype_policy),
            keras.layers.Conv2D(2 * filters, **convolution, dtype=self.dtype_policy),
            # One group: over height, width and channels, with a scale and an offset for each channel.
            keras.layers.GroupNormalization(groups=1, epsilon=1e-12, dtype=self.dtype_policy),
            keras.layers.GlobalAveragePooling2D(dtype=self.dtype_policy),
            keras.layers.Dense(code_dim, dtype=self.dtype_policy),
        ]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the weights."""
        build_chain(self.stages, input_shape)

    def call(self, view: Any) -> Any:
        """Maps views `(batch, height * width)` to codes `(batch, code_dim)`."""
        return apply_chain(self.stages, view)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "view_shape": list(self.view_shape),
            "filters": self.filters,
            "code_dim": self.code_dim,
        }


@keras.saving.register_keras_serializable(package="zoo")
class SkipEncoder(keras.layers.Layer):
    """Dense layers that are added to their inputs, `y = relu(W x + b) + x`, the last one without a rectifier.

    It begins next to the identity, and may become a map that cannot be inverted.

    Args:
        num_hidden_layers: int. Layers before the last one.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, num_hidden_layers: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_hidden_layers = num_hidden_layers

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the layers, each of the size of the view."""
        activations = ["relu"] * self.num_hidden_layers + [None]
        self.stages = [
            keras.layers.Dense(
                input_shape[-1], activation=activation, kernel_initializer=near_zero(), dtype=self.dtype_policy
            )
            for activation in activations
        ]
        for stage in self.stages:
            stage.build(input_shape)

    def call(self, view: Any) -> Any:
        """Maps views `(batch, view_dim)` to codes of the same size."""
        for stage in self.stages:
            view = stage(view) + view
        return view

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "num_hidden_layers": self.num_hidden_layers}


@keras.saving.register_keras_serializable(package="zoo")
class SoftplusCoupling(AdditiveCoupling):
    """An affine coupling whose scale grows linearly, where that of Real NVP, an exponential, is unstable.

        y = x * (softplus(a) + 1e-7) + b,    log|det| = sum(log(softplus(a) + 1e-7))

    Args:
        conditioner: layer. Maps the kept part to twice the features of the changed part: a, then b, along the last axis.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Tschannen et al. 2020, section 3.1, adversarial encoder; constants of the authors' notebook.
    """

    @property
    def outputs_per_feature(self) -> int:
        """Number of conditioner outputs for each changed feature."""
        return 2

    def call(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps the changed part; see `AdditiveCoupling.call`."""
        scale, shift = self._scale_and_shift(kept, changed, training)
        return changed * scale + shift, ops.sum(ops.log(scale), axis=-1)

    def inverse(self, kept: Any, changed: Any) -> Any:
        """Undoes `call`: recovers the changed part from the mapped one."""
        scale, shift = self._scale_and_shift(kept, changed)
        return (changed - shift) / scale

    def _scale_and_shift(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        raw, shift = ops.split(self._condition(kept, changed, training), 2, axis=-1)
        return ops.softplus(raw) + 1e-7, shift


@keras.saving.register_keras_serializable(package="zoo")
class RealNVPEncoder(keras.layers.Layer):
    """Couplings of the two halves of a vector, each followed by a fixed random permutation: invertible at any weights.

    The signal stays in the variables' type under mixed precision.

    Args:
        num_couplings: int.
        num_hidden_layers: int. Hidden layers of each coupling's network.
        hidden_dim: int. Size of each hidden layer.
        coupling: str. `"additive"`, which preserves volume and begins next to a permutation, or `"affine"`.
        permutation_seed: int.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        num_couplings: int,
        num_hidden_layers: int,
        hidden_dim: int,
        coupling: Literal["additive", "affine"],
        permutation_seed: int,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_couplings = num_couplings
        self.num_hidden_layers = num_hidden_layers
        self.hidden_dim = hidden_dim
        self.coupling = coupling
        self.permutation_seed = permutation_seed

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the couplings and draws the permutations."""
        dim = input_shape[-1]
        self.kept_dim = dim // 2
        kept, changed = (None, self.kept_dim), (None, dim - self.kept_dim)
        self.couplings = [self._coupling(changed[1], index) for index in range(self.num_couplings)]
        for coupling in self.couplings:
            coupling.build(kept, changed)
        # Of NumPy's generators the one whose stream never changes: a checkpoint has to find its permutations again.
        rng = np.random.RandomState(self.permutation_seed)
        self.permutations = [rng.permutation(dim).astype("int32") for _ in range(self.num_couplings)]

    def _coupling(self, changed_dim: int, index: int) -> AdditiveCoupling:
        layer = {"additive": AdditiveCoupling, "affine": SoftplusCoupling}[self.coupling]
        outputs = changed_dim * (2 if self.coupling == "affine" else 1)
        conditioner = DenseConditioner(outputs, self.num_hidden_layers, self.hidden_dim, dtype=self.dtype_policy)
        for stage in conditioner.stages:
            stage.kernel_initializer = near_zero()
        return layer(conditioner, dtype=self.dtype_policy, name=f"coupling_{index}")

    def call(self, view: Any) -> Any:
        """Maps views `(batch, view_dim)` to codes of the same size."""
        return self.transform(view)[0]

    def transform(self, view: Any) -> tuple[Any, Any]:
        """Returns codes `(batch, view_dim)` and log-determinants of their Jacobians `(batch,)`."""
        code, log_det = ops.cast(view, self.variable_dtype), 0.0
        for coupling, permutation in zip(self.couplings, self.permutations, strict=True):
            kept, changed = code[:, : self.kept_dim], code[:, self.kept_dim :]
            mapped, term = coupling(kept, changed)
            code = ops.take(ops.concatenate([kept, mapped], axis=1), permutation, axis=1)
            log_det = log_det + term
        return code, log_det

    def inverse(self, code: Any) -> Any:
        """Returns the views of codes."""
        view = ops.cast(code, self.variable_dtype)
        for coupling, permutation in reversed(list(zip(self.couplings, self.permutations, strict=True))):
            view = ops.take(view, np.argsort(permutation).astype("int32"), axis=1)
            kept, mapped = view[:, : self.kept_dim], view[:, self.kept_dim :]
            view = ops.concatenate([kept, coupling.inverse(kept, mapped)], axis=1)
        return view

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_couplings": self.num_couplings,
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_dim": self.hidden_dim,
            "coupling": self.coupling,
            "permutation_seed": self.permutation_seed,
        }


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class MultiViewInfoMax(ZooModel):
    """Two encoders and a critic, trained on a lower bound on the mutual information of the codes of two views.

    The model's input, in `fit` and when called, is a dict of flattened views in [0, 1], `"view1"` and `"view2"`
    `(batch, height * width)`: the upper and the lower halves of images, or any others of one size. Its output is the matrix
    of scores `(batch, batch)` of every first view (row) with every second one (column). `fit` needs no targets and no loss;
    it reports the bound of a batch, in nats, as `bound`.

    Args:
        view_shape: pair of int. Height and width of a view.
        encoder: str. `"mlp"`, `"convnet"`, `"mlp_skip"` (a network that begins as the identity) or `"real_nvp"` (invertible
            at any weights). Defaults to `"mlp"`.
        code_dim: int or None. Size of the codes of `"mlp"` and `"convnet"`; that of a view by default. The other encoders
            keep the size of the view.
        hidden_dim: int. Hidden units of `"mlp"` and of the networks in couplings; filters of the first convolution, half of
            the second's. Defaults to 300.
        num_hidden_layers: int. Hidden layers of these networks, and of `"mlp_skip"`. Defaults to 2.
        num_couplings: int. Of `"real_nvp"`. Defaults to 30.
        coupling: str. `"additive"` or `"affine"` couplings. Defaults to `"additive"`.
        permutation_seed: int. Seed of the permutations between couplings; the second encoder has the next one's. Defaults
            to 0.
        critic: str. `"bilinear"`, `"inner"`, `"separable"` or `"mlp"`. Defaults to `"bilinear"`.
        critic_hidden_dims: sequence of int. Hidden layers of `"separable"` and `"mlp"` critics. Defaults to `(100,)`.
        critic_embedding_dim: int. Output size of the networks of a `"separable"` critic. Defaults to 100.
        estimator: str. `"nce"`, or `"nwj"` with all pairs but the right ones as negatives. Defaults to `"nce"`.
        target_bound: float or None. Where it is given, the loss is the distance of the bound to it, in nats.
        input_noise: float. Standard deviation of Gaussian noise, one draw of which is added to both views, as the paper
            does it: it is information that the views share. Defaults to 0.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("mi_representation")                               # halves of digits
    views = halves("digits", "test")
    code = model.run("encode", view1=views["view1"])["code"]           # (batch, code_dim)
    scores = model.run("score", **views)["scores"]                     # every upper half with every lower one
    ```

    Reference:
        Tschannen, Djolonga, Rubenstein, Gelly, Lucic 2020, "On Mutual Information Maximization for Representation
        Learning", ICLR 2020, arXiv 1907.13625.
    """

    def __init__(
        self,
        view_shape: Sequence[int],
        encoder: Literal["mlp", "convnet", "mlp_skip", "real_nvp"] = "mlp",
        code_dim: int | None = None,
        hidden_dim: int = 300,
        num_hidden_layers: int = 2,
        num_couplings: int = 30,
        coupling: Literal["additive", "affine"] = "additive",
        permutation_seed: int = 0,
        critic: Literal["bilinear", "inner", "separable", "mlp"] = "bilinear",
        critic_hidden_dims: Sequence[int] = (100,),
        critic_embedding_dim: int = 100,
        estimator: Literal["nce", "nwj"] = "nce",
        target_bound: float | None = None,
        input_noise: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.view_shape = tuple(int(size) for size in view_shape)
        sized = len(self.view_shape) == 2 and min(self.view_shape) >= 1 and math.prod(self.view_shape) >= 2
        require(sized, "view_shape", "a height and a width, of at least 2 pixels together", view_shape)
        for name, value, known in (
            ("encoder", encoder, ENCODERS),
            ("coupling", coupling, COUPLINGS),
            ("estimator", estimator, ESTIMATORS),
        ):
            require(value in known, name, f"one of {known}", value)
        keeps = encoder in SIZE_KEEPING
        require(not keeps or code_dim is None, "code_dim", f"None: {encoder!r} keeps the view's size", code_dim)
        for name, size in (("code_dim", code_dim), ("hidden_dim", hidden_dim), ("num_couplings", num_couplings)):
            require(size is None or size >= 1, name, "at least 1", size)
        require(num_hidden_layers >= 0, "num_hidden_layers", "at least 0", num_hidden_layers)
        require(permutation_seed >= 0, "permutation_seed", "at least 0", permutation_seed)
        finite = target_bound is None or math.isfinite(target_bound)
        require(finite, "target_bound", "finite, or None", target_bound)
        require(0 <= input_noise < math.inf, "input_noise", "finite and not negative", input_noise)
        self.encoder_name = encoder
        self.code_dim = code_dim
        self.hidden_dim = hidden_dim
        self.num_hidden_layers = num_hidden_layers
        self.num_couplings = num_couplings
        self.coupling = coupling
        self.permutation_seed = permutation_seed
        self.critic_name = critic
        self.critic_hidden_dims = tuple(critic_hidden_dims)
        self.critic_embedding_dim = critic_embedding_dim
        self.estimator = estimator
        self.target_bound = target_bound
        self.input_noise = float(input_noise)

        # === Layers ===
        self.encoders = [self._make_encoder(index) for index in range(2)]
        self.critic = make_critic(
            critic, self.critic_hidden_dims, critic_embedding_dim, dtype=self.dtype_policy, name="critic"
        )
        self.seed_generator = keras.random.SeedGenerator()
        self.bound_tracker = keras.metrics.Mean(name="bound")
        self.build({name: (None, self.view_dim) for name in ("view1", "view2")})

    def _make_encoder(self, index: int) -> keras.layers.Layer:
        shared = {"dtype": self.dtype_policy, "name": f"encoder_{index + 1}"}
        if self.encoder_name == "mlp":
            return DenseConditioner(self.output_dim, self.num_hidden_layers, self.hidden_dim, **shared)
        if self.encoder_name == "convnet":
            return ConvEncoder(self.view_shape, self.hidden_dim, self.output_dim, **shared)
        if self.encoder_name == "mlp_skip":
            return SkipEncoder(self.num_hidden_layers, **shared)
        return RealNVPEncoder(
            self.num_couplings,
            self.num_hidden_layers,
            self.hidden_dim,
            self.coupling,
            self.permutation_seed + index,
            **shared,
        )

    @property
    def view_dim(self) -> int:
        """Number of pixels of a view."""
        return math.prod(self.view_shape)

    @property
    def output_dim(self) -> int:
        """Size of a code."""
        return self.code_dim or self.view_dim

    def build(self, input_shape: Mapping[str, Sequence[int | None]]) -> None:
        """Creates the encoders and the critic."""
        for encoder, name in zip(self.encoders, ("view1", "view2"), strict=True):
            encoder.build(input_shape[name])
        self.critic.build((None, self.output_dim), (None, self.output_dim))

    # === Training ===

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Scores every first view with every second one.

        Args:
            inputs: dict of tensors, `"view1"` `(rows, view_dim)` and `"view2"` `(columns, view_dim)`.
            training: bool. Whether the input noise, if any, is fresh; it is the same each time otherwise.

        Returns:
            Tensor `(rows, columns)`.
        """
        require(
            isinstance(inputs, Mapping) and set(inputs) == {"view1", "view2"},
            "inputs",
            "a dict of 'view1' and 'view2'",
            sorted(inputs) if isinstance(inputs, Mapping) else type(inputs),
        )
        view1, view2 = inputs["view1"], inputs["view2"]
        if self.input_noise > 0:
            seed = self.seed_generator if training else EVALUATION_SEED
            noise = self.input_noise * keras.random.normal(ops.shape(view1), dtype=view1.dtype, seed=seed)
            view1, view2 = view1 + noise, view2 + noise
        return self._scores(view1, view2)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the negative bound, or its distance to the target, in nats; `y_pred` is what `call` returned."""
        require(y is None, "y", "None: both views are in one dict, {'view1': ..., 'view2': ...}", type(y))
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        bound = self.bound(y_pred)
        self.bound_tracker.update_state(bound)
        return -bound if self.target_bound is None else ops.abs(bound - self.target_bound)

    def bound(self, scores: Any) -> Any:
        """Returns the estimator's bound of scores `(..., K, K)`, in nats.

        Reference:
            Tschannen et al. 2020, equations 3 and 4.
        """
        if self.estimator == "nce":
            return bounds.info_nce(scores)
        return bounds.nwj(*bounds.joint_and_marginal(scores))

    # === The model, as functions of tensors ===

    def _encode(self, index: int, view: Any) -> Any:
        return self.encoders[index](view)

    def _scores(self, view1: Any, view2: Any) -> Any:
        return ops.cast(self.critic(self._encode(0, view1), self._encode(1, view2)), "float32")

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `encode` (of first views), `score`, and `decode` where the encoder is invertible."""
        view1 = Spec(("batch", self.view_dim), "float32", "First views, such as upper halves of images.", 0.0, 1.0)
        view2 = Spec(("candidates", self.view_dim), "float32", "Second views, such as lower halves.", 0.0, 1.0)
        signatures = {
            "encode": Signature(
                lambda view1: {"code": ops.cast(self._encode(0, view1), "float32")},
                {"view1": view1},
                {"code": "Representation of each first view, (batch, code_dim)."},
            ),
            "score": Signature(
                lambda view1, view2: {"scores": self._scores(view1, view2)},
                {"view1": view1, "view2": view2},
                {"scores": "Score of each second view for each first one, the higher the better, (batch, candidates)."},
                sizes={"candidates": 5},
            ),
        }
        if self.encoder_name == "real_nvp":
            signatures["decode"] = Signature(
                lambda code: {"view1": self.encoders[0].inverse(code)},
                {"code": Spec(("batch", self.output_dim), "float32", "Codes of first views.")},
                {"view1": "The view that has this code, not clipped."},
            )
        return signatures

    # === Held-out data ===

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields held-out halves of images of the data set the checkpoint names, or codes of such; nothing without one.

        Args:
            signature: str.
            batch_size: int. Number of images; an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        views = halves(self.metadata.evaluation_dataset, "validation")
        for batch in batches(views, batch_size):
            if signature == "score":
                yield {"view1": batch["view1"], "view2": views["view2"][:EVALUATION_CANDIDATES]}
            elif signature == "encode":
                yield {"view1": batch["view1"]}
            else:
                yield self.run("encode", view1=batch["view1"])

    def task_metric(self) -> TaskMetric | None:
        """Returns the accuracy of a linear classifier on codes of test images; `None` without a checkpoint."""
        if self.metadata is None:
            return None

        def compute(run: Runner) -> float:
            return linear_accuracy(
                lambda view: run("encode", {"view1": view})["code"], self.metadata.evaluation_dataset, "test"
            )

        return TaskMetric("accuracy", compute, higher_is_better=True, absolute_tolerance=0.02)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "view_shape": list(self.view_shape),
            "encoder": self.encoder_name,
            "code_dim": self.code_dim,
            "hidden_dim": self.hidden_dim,
            "num_hidden_layers": self.num_hidden_layers,
            "num_couplings": self.num_couplings,
            "coupling": self.coupling,
            "permutation_seed": self.permutation_seed,
            "critic": self.critic_name,
            "critic_hidden_dims": list(self.critic_hidden_dims),
            "critic_embedding_dim": self.critic_embedding_dim,
            "estimator": self.estimator,
            "target_bound": self.target_bound,
            "input_noise": self.input_noise,
        }


# === What a representation is like ===


def halves(dataset: str, split: str) -> Arrays:
    """Returns the upper halves of a split's images, flattened, as first views, and the lower ones as second views.

    Args:
        dataset: str. Name for `zoo.datasets.load`.
        split: str.

    Returns:
        Dict of two float32 arrays `(num_images, num_pixels / 2)`, in [0, 1].
    """
    pairs = image_halves(dataset, split)
    return {"view1": pairs["context"], "view2": pairs["x"]}


def linear_accuracy(encode: Callable[[np.ndarray], Any], dataset: str, split: str, input_noise: float = 0.0) -> float:
    """Returns how often a linear classifier tells an image's class from the code of its upper half.

    Codes are scaled to [0, 1] on the training images, which multinomial logistic regression, C = 10, is fitted to.

    Args:
        encode: callable from views `(batch, view_dim)` to codes `(batch, code_dim)`.
        dataset: str. Name for `zoo.datasets.load`.
        split: str. Held-out split.
        input_noise: float. Standard deviation of noise on the views of both splits. Defaults to 0.

    Reference:
        Tschannen et al. 2020, section 3, linear evaluation protocol.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import MinMaxScaler

    rng = np.random.default_rng(EVALUATION_SEED)

    def codes_of(name: str) -> np.ndarray:
        views = halves(dataset, name)["view1"]
        if input_noise > 0:
            views = views + np.float32(input_noise) * rng.standard_normal(views.shape, "float32")
        parts = np.split(views, range(ENCODING_BATCH, len(views), ENCODING_BATCH))
        return np.concatenate([np.asarray(encode(part), "float32") for part in parts])

    # Scaled at single precision, a component that varies by rounding alone counts as constant; the solver needs double.
    train, held_out = codes_of("train"), codes_of(split)
    scaler = MinMaxScaler().fit(train)
    train, held_out = (scaler.transform(codes).astype("float64") for codes in (train, held_out))
    labels = {name: load_arrays(dataset, name)["label"] for name in ("train", split)}
    classifier = LogisticRegression(C=10.0, tol=1e-6, max_iter=5000).fit(train, labels["train"])
    return float(classifier.score(held_out, labels[split]))


def log_condition_numbers(encoder: Callable[[Any], Any], view: Any) -> np.ndarray:
    """Returns how unevenly an encoder stretches the surroundings of each view: log(largest / smallest singular value).

    Args:
        encoder: callable from a tensor of views `(batch, view_dim)` to codes `(batch, code_dim)`.
        view: float array `(batch, view_dim)`.

    Returns:
        float64 array `(batch,)`: of the Jacobians at the views; 0 where the encoder is locally a rotation.

    Reference:
        Tschannen et al. 2020, section 3.1, figure 2.
    """
    view = tf.convert_to_tensor(view)
    with tf.GradientTape() as tape:
        tape.watch(view)
        code = encoder(view)
    jacobian = tape.batch_jacobian(code, view)
    values = np.linalg.svd(np.asarray(jacobian, "float64"), compute_uv=False)
    return np.log(values[:, 0]) - np.log(values[:, -1])

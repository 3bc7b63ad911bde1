"""Training a sequence of networks, each more binary than its teacher, by one `compile` and one `fit`.

Martinez, Yang, Bulat, Tzimiropoulos 2020, section 4.2 (https://arxiv.org/abs/2003.11535). Every stage has a network of its
own, made from the final model's configuration; a later stage begins with the weights of an earlier one and may be taught
by it: by its logits, and by where its blocks are active (attention maps).

Differs from the paper: signs are some 20 times as large as the real weights they replace, so that a student whose weights
become binary has its output scales multiplied by mean |W| of each filter, the nearest multiple of the signs to W.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

OPTIMIZERS = ("adam", "sgd")
# Shares of a stage: linear warm-up, then drops of the learning rate (epochs 5, and 40, 60, 70, of 75)
WARMUP = 1 / 15
DROPS = (40 / 75, 60 / 75, 70 / 75)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One network of a sequence, and how it is trained.

    Args:
        name: str.
        share: float. Share of all updates, relative to the other stages' shares.
        real: bool. Whether the network is the float teacher, whose blocks are ordinary ones.
        activation_mode: str. `"sign"`, `"tanh"` or `"none"`.
        weight_mode: str. The same for the weights.
        initial: str or None. Earlier stage whose weights this one begins with.
        teacher: str or None. Earlier stage that teaches this one.
        attention_weight: float. Weight of the distance between attention maps.
        distillation_weight: float. Weight of the distance between predictions.
        temperature: float. Temperature T of the predictions that are compared.
        optimizer: str. `"adam"`, with warm-up and drops of the learning rate, or `"sgd"`, with momentum 0.9 and cosine
            decay.
        learning_rate: float. Its largest value.
        drop: float. Factor of each drop.
        weight_decay: float. Decoupled; 0 once weights are binary, since it pulls them to where their signs flip.
    """

    name: str
    share: float = 1.0
    real: bool = False
    activation_mode: Literal["sign", "tanh", "none"] = "sign"
    weight_mode: Literal["sign", "tanh", "none"] = "sign"
    initial: str | None = None
    teacher: str | None = None
    attention_weight: float = 0.0
    distillation_weight: float = 0.0
    temperature: float = 1.0
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    drop: float = 0.3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        taught = self.attention_weight > 0 or self.distillation_weight > 0
        for name, valid, what in (
            ("share", self.share > 0, "positive"),
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {OPTIMIZERS}"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("temperature", self.temperature > 0, "positive"),
            ("attention_weight", self.attention_weight >= 0, "not negative"),
            ("distillation_weight", self.distillation_weight >= 0, "not negative"),
            ("teacher", not taught or self.teacher is not None, "a stage where a loss compares with it"),
            ("weight_decay", self.weight_decay == 0 or self.real or self.weight_mode != "sign", "0 for binary weights"),
        ):
            if not valid:
                raise ValueError(f"`{name}` must be {what}. Received: {name}={getattr(self, name)!r}")

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments in which the stage's network differs from the final one."""
        return {"real": self.real, "activation_mode": self.activation_mode, "weight_mode": self.weight_mode}

    def make_optimizer(self, num_updates: int) -> keras.optimizers.Optimizer:
        """Returns the optimiser of a stage of `num_updates` updates."""
        if self.optimizer == "sgd":
            schedule = keras.optimizers.schedules.CosineDecay(self.learning_rate, max(num_updates, 1))
            return keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=self.weight_decay or None)
        schedule = WarmupAndDrops(self.learning_rate, num_updates, self.drop)
        return keras.optimizers.Adam(schedule, weight_decay=self.weight_decay or None)


# The paper's stages. The public replication weighs attention by 30, but takes mean squares of maps over their maxima; on the
# distance used here 4 pulls as hard: the same norm of the gradient with 3.6 in a new network, with 4.5 after 1,200 updates.
ATTENTION_WEIGHT = 4.0
REAL_TO_BINARY_STAGES = (
    Stage("float", 100, real=True, optimizer="sgd", learning_rate=0.1, weight_decay=1e-5),
    Stage(
        "tanh", 75, activation_mode="tanh", weight_mode="none", teacher="float", attention_weight=ATTENTION_WEIGHT,
        distillation_weight=3.0, weight_decay=1e-5,
    ),
    Stage(
        "binary activations", 75, weight_mode="none", initial="tanh", teacher="tanh",
        attention_weight=ATTENTION_WEIGHT, distillation_weight=3.0, weight_decay=1e-5,
    ),
    Stage(
        "binary", 75, initial="binary activations", teacher="binary activations",
        distillation_weight=0.8, learning_rate=2e-4,
    ),
)  # fmt: skip
STRONG_BASELINE_STAGES = (
    Stage("binary activations", 75, weight_mode="none", drop=0.1, weight_decay=1e-5),
    Stage("binary", 75, initial="binary activations", learning_rate=2e-4, drop=0.1),
)


@keras.saving.register_keras_serializable(package="zoo")
class WarmupAndDrops(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over a fifteenth of the updates, then three drops by a factor.

    Args:
        peak: float. Largest learning rate.
        num_updates: int. Length of the training.
        drop: float. Factor of each drop.

    Reference:
        Martinez et al. 2020, section 5: 5 of 75 epochs of warm-up, drops at epochs 40, 60 and 70.
    """

    def __init__(self, peak: float, num_updates: int, drop: float):
        self.peak = peak
        self.num_updates = num_updates
        self.drop = drop

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of an update, counted from 0."""
        # Counted so that the first update moves, too
        progress = (ops.cast(step, "float32") + 1.0) / max(self.num_updates, 1)
        drops = ops.sum(ops.cast(progress > ops.convert_to_tensor(DROPS, "float32"), "float32"))
        return self.peak * ops.minimum(progress / WARMUP, 1.0) * self.drop**drops

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"peak": self.peak, "num_updates": self.num_updates, "drop": self.drop}


# === Losses ===


def attention_map(features: Any) -> Any:
    """Returns where a layer is active: the sum of squares over channels, flattened over positions.

    Args:
        features: float tensor `(batch, height, width, channels)`.

    Returns:
        float32 tensor `(batch, height * width)`.
    """
    energy = ops.sum(ops.square(ops.cast(features, "float32")), axis=-1)
    return ops.reshape(energy, (-1, energy.shape[1] * energy.shape[2]))


@keras.saving.register_keras_serializable(package="zoo")
class AttentionMatching(keras.losses.Loss):
    """Distance between attention maps of two networks, summed over blocks.

        sum_j || Q_S^j / ||Q_S^j|| - Q_T^j / ||Q_T^j|| ||,   Q = sum over channels of |A|^2, norms over positions

    `call` takes the teacher's and the student's block outputs: sequences of tensors `(batch, height, width, channels)`, of
    any numbers of channels. No gradient reaches the teacher.

    Reference:
        Martinez et al. 2020, section 4.2, equation 3.
    """

    def call(self, y_true: Sequence[Any], y_pred: Sequence[Any]) -> Any:
        """Returns the distance of every example `(batch,)`.

        Raises:
            ValueError: if the networks' blocks differ in number or in size.
        """
        sizes = [[tuple(each.shape[1:3]) for each in features] for features in (y_true, y_pred)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"Teacher and student must have block outputs of one size. Received: {sizes}")
        return sum(
            _norm(_unit(attention_map(student)) - _unit(attention_map(ops.stop_gradient(teacher))))[..., 0]
            for teacher, student in zip(y_true, y_pred, strict=True)
        )


@keras.saving.register_keras_serializable(package="zoo")
class Distillation(keras.losses.Loss):
    """Divergence of a student's predictions from a teacher's: `T^2 KL(softmax(z_T / T) || softmax(z_S / T))`.

    Args:
        temperature: float. T. Defaults to 1.

    `call` takes logits `(batch, num_classes)` of both. No gradient reaches the teacher.
    """

    def __init__(self, temperature: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the divergence of every example `(batch,)`."""
        wanted = ops.log_softmax(ops.stop_gradient(y_true) / self.temperature)
        found = ops.log_softmax(y_pred / self.temperature)
        return self.temperature**2 * ops.sum(ops.exp(wanted) * (wanted - found), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "temperature": self.temperature}


def _norm(values: Any) -> Any:
    squares = ops.sum(ops.square(values), axis=-1, keepdims=True)
    # The root has no gradient at 0, where a student meets its teacher
    positive = squares > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)


def _unit(values: Any) -> Any:
    # Scaled first: squares of squares leave the range of float32
    values = values / ops.maximum(ops.max(values, axis=-1, keepdims=True), keras.config.epsilon())
    return values / ops.maximum(_norm(values), keras.config.epsilon())


# === Training ===


class Distiller(keras.Model):
    """Trains a student, taught by a teacher that stays as it is.

    `compile` takes the optimiser and the loss of labels; `fit` the data of the student.

    Args:
        student: model with `forward(image, training) -> (logits, block outputs)`.
        teacher: model of that kind with blocks of the same output sizes, or None. It is called as in inference.
        attention_weight: float. Weight of `AttentionMatching`.
        distillation_weight: float. Weight of `Distillation`.
        temperature: float. Temperature of `Distillation`.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        attention_weight: float = 0.0,
        distillation_weight: float = 0.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.student = student
        self.teacher = teacher
        self.attention_weight = attention_weight
        self.distillation_weight = distillation_weight
        self.attention = AttentionMatching()
        self.distillation = Distillation(temperature)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        self.cross_entropy = keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy", from_logits=True)
        self.built = True

    @property
    def trainable_weights(self) -> list[Any]:
        """The student's: the teacher is not trained, and its normalisation keeps its statistics."""
        return self.student.trainable_weights

    def call(self, image: Any, training: bool | None = False) -> Any:
        """Returns the student's logits and block outputs."""
        return self.student.forward(image, training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss of labels, and in training the distances to the teacher."""
        logits, features = y_pred
        loss = super().compute_loss(x, y, logits, sample_weight, training)
        if self.teacher is None or not training:
            return loss
        teacher_logits, teacher_features = self.teacher.forward(x, training=False)
        if self.attention_weight > 0:
            loss += self.attention_weight * self.attention(teacher_features, features, sample_weight)
        if self.distillation_weight > 0:
            loss += self.distillation_weight * self.distillation(teacher_logits, logits, sample_weight)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns loss and accuracy so far."""
        self.accuracy.update_state(y, y_pred[0], sample_weight)
        self.cross_entropy.update_state(y, y_pred[0], sample_weight)
        return self.get_metrics_result()


class Progression(keras.callbacks.Callback):
    """The networks of all stages, and whose turn it is; a callback of the `fit` that trains them.

    Whose turn it is follows from the number of updates, so that a resumed training goes on in its stage.

    Args:
        model: the final model, which the last stage trains.
        stages: sequence of `Stage`.
        num_updates: int. Updates of all stages together.

    Raises:
        ValueError: for no stages, two of one name, one that names no earlier one, or a last one of another kind than the
            model.
    """

    def __init__(self, model: keras.Model, stages: Sequence[Stage], num_updates: int) -> None:
        super().__init__()
        _check_stages(stages, model)
        self.stages = tuple(stages)
        self.starts = _starts(stages, num_updates)
        config = model.get_config()
        self.networks = {
            stage.name: type(model).from_config({**config, **stage.config, "name": f"{model.name}_stage_{index}"})
            for index, stage in enumerate(stages[:-1])
        }
        self.networks[stages[-1].name] = model
        ends = [*self.starts[1:], num_updates]
        self.distillers = [
            self._distiller(stage, end - start) for stage, start, end in zip(stages, self.starts, ends, strict=True)
        ]
        self.index = 0

    def _distiller(self, stage: Stage, num_updates: int) -> Distiller:
        distiller = Distiller(
            self.networks[stage.name],
            None if stage.teacher is None else self.networks[stage.teacher],
            stage.attention_weight,
            stage.distillation_weight,
            stage.temperature,
        )
        optimizer = stage.make_optimizer(num_updates)
        optimizer.build(distiller.trainable_weights)
        distiller.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        return distiller

    @property
    def active(self) -> Distiller:
        """Trains the network whose turn it is."""
        return self.distillers[self.index]

    @property
    def is_last(self) -> bool:
        """Whether the final model is being trained."""
        return self.index == len(self.stages) - 1

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimiser of the final model."""
        return self.distillers[-1].optimizer

    @property
    def variables(self) -> list[keras.Variable]:
        """What must be restored beside the final model and its optimiser."""
        earlier = self.distillers[:-1]
        return [v for each in earlier for v in (*each.student.variables, *each.optimizer.variables)]

    @property
    def num_updates_done(self) -> int:
        """Updates of all stages so far."""
        return sum(int(each.optimizer.iterations) for each in self.distillers)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Gives the turn to the next network when a stage is over."""
        index = bisect.bisect_right(self.starts, self.num_updates_done) - 1
        if index != self.index:
            self._enter(index)

    def _enter(self, index: int) -> None:
        self.index = index
        stage, distiller = self.stages[index], self.active
        # A resumed stage has its own weights
        if stage.initial is not None and int(distiller.optimizer.iterations) == 0:
            source = self.networks[stage.initial]
            hand_over(source, distiller.student)
            if stage.weight_mode == "sign" and source.weight_mode != "sign":
                distiller.student.scale_signs_like_weights()
        for metric in distiller.metrics:
            metric.reset_state()
        # Each stage has a graph of its own, without what the others need
        self.model.make_train_function(force=True)
        self.model.make_test_function(force=True)


def hand_over(source: keras.Model, target: keras.Model) -> None:
    """Gives a network the weights of another one, by their paths below the models.

    Args:
        source: built `keras.Model`.
        target: built `keras.Model` with the same layers.

    Raises:
        ValueError: for networks whose weights differ in paths or shapes.
    """
    given, wanted = _by_path(source), _by_path(target)
    fits = given.keys() == wanted.keys() and all(given[path].shape == wanted[path].shape for path in wanted)
    if not fits:
        differing = sorted(given.keys() ^ wanted.keys())[:5]
        raise ValueError(f"`source` and `target` must have the same weights. Received: differing in {differing}")
    for path, variable in wanted.items():
        variable.assign(given[path])


def _by_path(model: keras.Model) -> dict[str, keras.Variable]:
    return {variable.path.removeprefix(f"{model.name}/"): variable for variable in model.weights}


def _starts(stages: Sequence[Stage], num_updates: int) -> list[int]:
    """Returns how many updates are done when each stage begins."""
    total, before = sum(stage.share for stage in stages), 0.0
    starts = []
    for stage in stages:
        starts.append(round(num_updates * before / total))
        before += stage.share
    return starts


def _check_stages(stages: Sequence[Stage], model: keras.Model) -> None:
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`stages` must be at least one, of different names. Received: {names}")
    for index, stage in enumerate(stages):
        for other in (stage.initial, stage.teacher):
            if other is not None and other not in names[:index]:
                raise ValueError(f"`stages` must name earlier stages only. Received: {other!r} in {stage.name!r}")
    config = model.get_config()
    own = {name: config[name] for name in stages[-1].config}
    # Blocks of a float model have no modes
    same = own == stages[-1].config or (own["real"] and stages[-1].real)
    if not same:
        raise ValueError(f"The last of `stages` must be as binary as the model, {own}. Received: {stages[-1].config}")

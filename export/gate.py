"""Whether a compressed artifact is still good at its task."""

from __future__ import annotations

import math

import keras

from zoo.export.calibration import Calibration
from zoo.export.errors import GateError
from zoo.export.report import MetricChange
from zoo.export.verify import keras_runner, relative_distance
from zoo.model import Runner, Signature, TaskMetric

RELATIVE_LIMIT = 0.1


class Gate:
    """Judges artifacts by one metric, whose value for Keras is computed once.

    Args:
        model: Keras model. A `zoo.model.ZooModel` may bring its own metric.
        signatures: dict from name to `zoo.model.Signature`.
        calibration: `Calibration`, the inputs of `relative_output_error`.
        metric: `zoo.model.TaskMetric` or None. The model's own, else `relative_output_error`, by default.

    Raises:
        TypeError: if `metric` is none.
    """

    def __init__(
        self,
        model: keras.Model,
        signatures: dict[str, Signature],
        calibration: Calibration,
        metric: TaskMetric | None = None,
    ):
        if metric is not None and not isinstance(metric, TaskMetric):
            raise TypeError(f"`metric` must be a zoo.model.TaskMetric. Received: {type(metric).__name__}")
        # The model's metric calls the model's signatures, which given ones may have replaced.
        has_own = hasattr(model, "task_metric") and set(model.signatures()) <= set(signatures)
        own = model.task_metric() if has_own else None
        reference = keras_runner(signatures, traced=True)
        self.metric = metric or own or relative_output_error(reference, signatures, calibration)
        self.reference = float(self.metric.compute(reference))
        if not math.isfinite(self.reference):
            raise GateError(f"The Keras model's own {self.metric.name} is not finite. Received: {self.reference}")

    def measure(self, run: Runner) -> MetricChange:
        """Returns the metric of an artifact beside that of Keras."""
        value = float(self.metric.compute(run))
        return MetricChange(self.metric.name, self.reference, value, self.metric.allowed(self.reference))

    def check(self, artifact: str, change: MetricChange) -> None:
        """Refuses an artifact that is worse than allowed.

        Raises:
            GateError: naming the artifact, the metric, both values and the limit.
        """
        worsening = self.metric.worsening(change.reference, change.value)
        # Written so that NaN fails.
        if not worsening <= change.allowed:
            raise GateError(
                f"{artifact}: {change.name} goes from {change.reference:.6g} to {change.value:.6g}, by {worsening:.3g} "
                f"where {change.allowed:.3g} is allowed. Received: {change.value:.6g}"
            )


def relative_output_error(reference: Runner, signatures: dict[str, Signature], calibration: Calibration) -> TaskMetric:
    """Returns a metric for models without a task: how far outputs are from Keras's, relative to their size.

    The value is the largest, over signatures and outputs, of `|output - Keras's| / |Keras's|` in the L2 norm over all
    example inputs. Integer and boolean outputs count as the share of values that differ.

    Args:
        reference: `Runner` of Keras.
        signatures: dict from name to `zoo.model.Signature`.
        calibration: `Calibration`. Real inputs where there are any, else random ones.
    """
    calls = {name: [(item, reference(name, item)) for item in calibration.any(name)] for name in signatures}

    def compute(run: Runner) -> float:
        return max(
            relative_distance([(expected, run(name, item)) for item, expected in pairs])
            for name, pairs in calls.items()
        )

    return TaskMetric("relative_output_error", compute, higher_is_better=False, absolute_tolerance=RELATIVE_LIMIT)

"""Learning rates over a training."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from zoo.arguments import require


@keras.saving.register_keras_serializable(package="zoo")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly until it meets the line that falls from the peak at step 0 to 0 at the end, and follows it.

    Differs from the released optimiser, which starts from 0 and leaves the rise, above that line, for it at `warmup_steps`:
    the first step has a rate here, and the rate never jumps.

    Args:
        peak: float. The rate that the falling line starts from; the largest rate is a little less.
        warmup_steps: int. Steps of the rise.
        total_steps: int. Steps of the training, the rise included.

    Reference:
        Devlin et al. 2019, appendix A.2.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int) -> None:
        require(peak > 0, "peak", "positive", peak)
        require(0 <= warmup_steps < total_steps, "warmup_steps", f"from 0 to {total_steps - 1}", warmup_steps)
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step."""
        step = ops.cast(step, "float32")
        falling = self.peak * ops.maximum(1 - step / self.total_steps, 0.0)
        rising = self.peak * (step + 1) / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, ops.minimum(rising, falling), falling)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}

"""Mutual information: bounds on it, critics that score pairs, and the estimators made of both.

The bounds are functions of scores, to be maximised in any Keras model or to be read as estimates, in nats:

    from zoo.information import SeparableCritic, bounds

    scores = SeparableCritic()(context, x)              # (K, K), pairs that belong together on the diagonal
    loss = -bounds.info_nce(scores)
    estimate = bounds.nwj(*bounds.joint_and_marginal(scores))

Importing this package loads no TensorFlow; the first use does.
"""

import importlib
from typing import Any

_LAZY = {
    "BilinearCritic": "zoo.information.critics",
    "CPC": "zoo.information.cpc",
    "ConcatenatedCritic": "zoo.information.critics",
    "InfoNCE": "zoo.information.info_nce",
    "InnerProductCritic": "zoo.information.critics",
    "MINE": "zoo.information.mine",
    "SeparableCritic": "zoo.information.critics",
    "adaptive_clip": "zoo.information.mine",
    "bias_corrected": "zoo.information.mine",
    "make_critic": "zoo.information.critics",
    "update_log_average": "zoo.information.mine",
}
# A module, not its functions: `info_nce` is also the name of a module here.
_SUBMODULES = ("bounds",)

__all__ = [*_LAZY, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"zoo.information.{name}")
    raise AttributeError(f"module 'zoo.information' has no attribute {name!r}")

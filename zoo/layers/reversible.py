"""Reversible residual networks: activations are computed again from the outputs, so that none are kept for training.

Gomez et al. 2017, https://arxiv.org/abs/1707.04585; Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, section 3.

Two streams take turns, each branch adding to one of them what it makes of the other:

    forward    (a, b) -> (b, a + f(b))
    backward   (p, q) -> (q - f(p), p)

With an attention and a feed-forward branch per block this is y1 = x1 + Attention(x2), y2 = x2 + FeedForward(y1). Between the
forward and the backward pass only the last pair, one random seed, and what branches choose to remember are kept. The streams
are added up in a type twice as precise as the branches', so that what comes back is what had been there: dozens of branches
would magnify any rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Gradients = dict[Any, tf.Tensor]  # by reference of a variable
PRECISE = {tf.float16: tf.float32, tf.bfloat16: tf.float32, tf.float32: tf.float64, tf.float64: tf.float64}


@dataclasses.dataclass(frozen=True)
class Branch:
    """What adds to a stream.

    Args:
        function: callable of (inputs, context, seed, plan) to (outputs, plan). It must be a pure function of these and of
            its weights: random numbers come from `seed`, `None` where there are to be none. A `plan` of `None` lets it
            decide what could come out otherwise in a repetition, such as the buckets of a hash; it returns the decision and
            is given it at the repetition.
        num_chunks: int. Pieces along axis 1 that the function treats one after another, if they do not depend on each
            other.
    """

    function: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    num_chunks: int = 1

    def __call__(self, inputs: Any, context: Any = None, seed: Any = None, plan: Any = None) -> tuple[Any, Any]:
        """Returns outputs, in the type of the inputs, and the plan."""
        pieces = chunked(inputs, self.num_chunks)
        if len(pieces) == 1:
            return self.piece(inputs, context, seed, plan, 0)
        outputs = [self.piece(piece, context, seed, plan, index)[0] for index, piece in enumerate(pieces)]
        return tf.concat(outputs, axis=1), None

    def piece(self, inputs: Any, context: Any, seed: Any, plan: Any, index: int) -> tuple[Any, Any]:
        """Returns outputs and plan of one piece."""
        outputs, plan = self.function(inputs, context, folded(seed, index), plan)
        return tf.cast(outputs, inputs.dtype), plan


def chunked(inputs: Any, num_chunks: int) -> list[Any]:
    """Cuts along axis 1 into at most `num_chunks` pieces of one size, the last one maybe shorter."""
    if num_chunks == 1:
        return [inputs]
    size = -(-inputs.shape[1] // num_chunks)
    return [inputs[:, start : start + size] for start in range(0, inputs.shape[1], size)]


def folded(seed: Any, index: int) -> Any:
    """Returns another seed for every index; `None` for `None`."""
    return None if seed is None else tf.random.experimental.stateless_fold_in(seed, index)


def replayed_dropout(inputs: Any, rate: float, seed: Any) -> Any:
    """Dropout that a repetition with the same seed repeats; none without a seed.

    Args:
        inputs: float tensor.
        rate: float in [0, 1).
        seed: int32 tensor `(2,)` or None.
    """
    if seed is None or not rate:
        return inputs
    keep = tf.random.stateless_uniform(tf.shape(inputs), seed) >= rate
    return tf.where(keep, inputs / (1 - rate), tf.zeros((), inputs.dtype))


def run_branches(
    branches: Sequence[Branch],
    first: Any,
    second: Any,
    context: Any = None,
    seed: Any = None,
    precise: bool = False,
    recompute: bool = False,
) -> tuple[Any, Any]:
    """Runs branches in turn.

    Args:
        branches: sequence of `Branch`.
        first: float tensor `(batch, length, dim)`, the stream that the first branch adds to.
        second: float tensor of the same shape and type.
        context: float tensor or None. What branches read beside the streams, such as an encoder's outputs.
        seed: int32 tensor `(2,)` or None. Every branch gets a seed made of it.
        precise: bool. Add up in a type twice as precise.
        recompute: bool. Keep nothing of a branch for the backward pass, which computes it again. It is precise.

    Returns:
        Both streams.
    """
    if not recompute:
        return run_and_plan(branches, first, second, context, seed, precise)[0]
    return _run_recomputed(branches, first, second, context, seed)


def reconstruct(
    branches: Sequence[Branch], first: Any, second: Any, context: Any = None, seed: Any = None
) -> tuple[Any, Any]:
    """Returns the inputs of `run_branches` from its outputs."""
    for index in reversed(range(len(branches))):
        added, _ = branches[index](first, context, folded(seed, index))
        first, second = second - added, first
    return first, second


def run_and_plan(
    branches: Sequence[Branch], first: Any, second: Any, context: Any = None, seed: Any = None, precise: bool = False
) -> tuple[tuple[Any, Any], list[Any]]:
    """Runs branches in turn, and returns both streams and the plan of every branch."""
    streams, plans = _run_summed(branches, first, second, context, seed, precise)
    return tuple(tf.cast(stream, first.dtype) for stream in streams), plans


def _run_summed(
    branches: Sequence[Branch], first: Any, second: Any, context: Any, seed: Any, precise: bool
) -> tuple[tuple[Any, Any], list[Any]]:
    """Does so, with both streams in the type they are added up in."""
    dtype, plans = first.dtype, []
    if precise:
        first, second = (tf.cast(stream, PRECISE[dtype]) for stream in (first, second))
    for index, branch in enumerate(branches):
        added, plan = branch(tf.cast(second, dtype), context, folded(seed, index))
        first, second = second, first + tf.cast(added, first.dtype)
        plans.append(plan)
    return (first, second), plans


def _run_recomputed(branches: Sequence[Branch], first: Any, second: Any, context: Any, seed: Any) -> tuple[Any, Any]:
    places = [place for place, value in enumerate((context, seed)) if value is not None]
    planned: list[int] = []

    def unpack(given: Sequence[Any]) -> list[Any]:
        return [given[places.index(place)] if place in places else None for place in (0, 1)]

    def forward(first: Any, second: Any, *given: Any) -> tuple[Any, ...]:
        outputs, plans = _run_summed(branches, first, second, *unpack(given), precise=True)
        planned[:] = [index for index, plan in enumerate(plans) if plan is not None]
        return *outputs, *(plans[index] for index in planned)

    @tf.custom_gradient
    def run(first: Any, second: Any, *given: Any) -> tuple[tuple[Any, Any], Callable]:
        # Hidden from an eager tape around us, which would keep what every operation computed
        p, q, *plans = tf.recompute_grad(forward)(first, second, *given)

        def backward(dp: Any, dq: Any, variables: Sequence[tf.Variable] = ()) -> tuple[list[Any], list[Any]]:
            plan_of = dict(zip(planned, plans, strict=True))
            streams, of_context, totals = _backward(branches, p, q, dp, dq, *unpack(given), plan_of)
            of_given = [of_context if place == 0 else None for place in places]
            return [*streams, *of_given], [totals.get(variable.ref()) for variable in variables]

        return (tf.cast(p, first.dtype), tf.cast(q, first.dtype)), backward

    return run(first, second, *(value for value in (context, seed) if value is not None))


def _backward(
    branches: Sequence[Branch], p: Any, q: Any, dp: Any, dq: Any, context: Any, seed: Any, plans: dict[int, Any]
) -> tuple[tuple[Any, Any], Any, Gradients]:
    """Walks back from the outputs; returns the gradients of both inputs, of the context and of all variables."""
    of_context, totals = None, {}
    for index in reversed(range(len(branches))):
        added, change, of_context_here, of_variables = _pull_back(
            branches[index], tf.cast(p, dq.dtype), dq, context, folded(seed, index), plans.get(index)
        )
        of_context = _sum(of_context, of_context_here)
        for reference, gradient in of_variables.items():
            totals[reference] = _sum(totals.get(reference), gradient)
        dp, dq = dq, dp + change
        p, q = _after([dp, dq, *of_variables.values()], (q - tf.cast(added, q.dtype), p))
    return (dp, dq), of_context, totals


def _pull_back(
    branch: Branch, inputs: Any, gradient: Any, context: Any, seed: Any, plan: Any
) -> tuple[Any, Any, Any, Gradients]:
    """Computes a branch again, piece by piece; returns its outputs and what its gradient is."""
    outputs, changes, of_context, totals = [], [], None, {}
    pieces = zip(chunked(inputs, branch.num_chunks), chunked(gradient, branch.num_chunks), strict=True)
    for index, (piece, of_piece) in enumerate(pieces):
        # All that a branch reads: what follows from a seed or a plan alone would be there for all branches from the start
        piece, read, drawn, planned = _after([of_piece, *changes, *totals.values()], (piece, context, seed, plan))
        with tf.GradientTape() as tape:
            sources = [piece] if context is None else [piece, read]
            tape.watch(sources)
            added, _ = branch.piece(piece, read, drawn, planned, index)
        variables = list(tape.watched_variables())
        change, *others = tape.gradient(added, [*sources, *variables], of_piece)
        if context is not None:
            of_context = _sum(of_context, others.pop(0))
        for variable, found in zip(variables, others, strict=True):
            if found is not None:
                totals[variable.ref()] = _sum(totals.get(variable.ref()), tf.convert_to_tensor(found))
        outputs.append(added)
        changes.append(change)
    return tf.concat(outputs, axis=1), tf.concat(changes, axis=1), of_context, totals


def _after(before: Sequence[Any], tensors: Any) -> Any:
    """Returns the tensors, for use once others are computed: all at once would be in memory at once."""
    with tf.control_dependencies(before):
        return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.identity(tensor), tensors)


def _sum(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return first + second

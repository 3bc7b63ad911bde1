"""Variational lower bounds on mutual information, as functions of a critic's scores, in nats.

A critic f scores pairs. Each bound compares the scores of joint samples (pairs that belong together) with those of samples
from the product of marginals. It is maximised over the critic, so that its negative is a loss, and its value on held-out
pairs is an estimate. Two forms of scores:

- vectors: `joint_scores (..., N)` and `marginal_scores (..., M)`, for `donsker_varadhan`, `nwj` and `jensen_shannon`;
- a matrix of all pairs of a batch, for `info_nce` and `interpolated`: `scores (..., K, K)`, S[i, j] = f(x_j, c_i), with a
  row for each context c_i (or first view) and a column for each candidate x_j (or second view). Joint samples are on the
  diagonal; the other K (K - 1) entries are samples of the product of marginals.

`joint_and_marginal` makes the first of the second:

    nwj(*joint_and_marginal(scores))

The last axis (the last two of a matrix) is averaged over; leading axes stay. Scores of less than 32 bits are computed with
in float32.

References: Donsker, Varadhan 1983; Nguyen, Wainwright, Jordan 2010 (https://arxiv.org/abs/0809.0853); van den Oord, Li,
Vinyals 2018 (https://arxiv.org/abs/1807.03748); Poole, Ozair, van den Oord, Alemi, Tucker 2019
(https://arxiv.org/abs/1905.06922). Checked against: `tfp.vi.mutual_information`.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from zoo.ops.probability import log_mean_exp


def joint_and_marginal(scores: Any) -> tuple[Any, Any]:
    """Splits a matrix of scores into its diagonal and the rest.

    Args:
        scores: float tensor `(..., K, K)`, K at least 2.

    Returns:
        Scores of joint samples `(..., K)` and of samples of the product of marginals `(..., K (K - 1))`, row by row.

    Raises:
        ValueError: for scores that are no square matrix, or of a single pair.
    """
    scores = _matrix(scores, square=True)
    size = ops.shape(scores)[-1]
    leading = ops.shape(scores)[:-2]
    # Without its first entry, a flattened matrix has its diagonal at every (K + 1)-th place: the last of each row here.
    flat = ops.reshape(scores, (*leading, size * size))[..., 1:]
    rest = ops.reshape(flat, (*leading, size - 1, size + 1))[..., :-1]
    return ops.diagonal(scores, axis1=-2, axis2=-1), ops.reshape(rest, (*leading, size * (size - 1)))


def donsker_varadhan(joint_scores: Any, marginal_scores: Any) -> Any:
    """Donsker-Varadhan bound, `E_joint[f] - log E_marginal[exp f]`.

    The logarithm of a mean over samples makes both the estimate and its gradient biased: on a finite sample it may exceed
    the mutual information. It does not change when a constant is added to all scores.

    Args:
        joint_scores: float tensor `(..., N)`.
        marginal_scores: float tensor `(..., M)`.

    Returns:
        Tensor `(...)`, nats. Largest for f = log p(x, z) / (p(x) p(z)) + constant.

    Reference:
        Belghazi et al. 2018, equation 3; Poole et al. 2019, equation 5.
    """
    joint_scores, marginal_scores = _vectors(joint_scores, marginal_scores)
    return ops.mean(joint_scores, axis=-1) - log_mean_exp(marginal_scores)


def nwj(joint_scores: Any, marginal_scores: Any) -> Any:
    """Bound of Nguyen, Wainwright and Jordan (MINE-f, f-GAN KL), `E_joint[f] - E_marginal[exp(f - 1)]`.

    Unbiased, of a variance that grows as the exponential of the mutual information, and never above the Donsker-Varadhan
    value of the same scores. Scores above 89 overflow float32, as their exponentials are part of the value.

    Args:
        joint_scores: float tensor `(..., N)`.
        marginal_scores: float tensor `(..., M)`.

    Returns:
        Tensor `(...)`, nats. Largest for f = 1 + log p(x, z) / (p(x) p(z)).

    Reference:
        Nguyen et al. 2010; Poole et al. 2019, equation 6.
    """
    joint_scores, marginal_scores = _vectors(joint_scores, marginal_scores)
    return ops.mean(joint_scores, axis=-1) - ops.exp(log_mean_exp(marginal_scores) - 1.0)


def jensen_shannon_objective(joint_scores: Any, marginal_scores: Any) -> Any:
    """Objective of a GAN's discriminator, `-E_joint[softplus(-f)] - E_marginal[softplus(f)]`.

    A lower bound on 2 JSD - log 4, with the Jensen-Shannon divergence between joint and product of marginals: stable to
    train a critic with, but no estimate of mutual information; `jensen_shannon` is.

    Args:
        joint_scores: float tensor `(..., N)`.
        marginal_scores: float tensor `(..., M)`.

    Returns:
        Tensor `(...)`, at most 0. Largest for f = log p(x, z) / (p(x) p(z)).

    Reference:
        Nowozin et al. 2016, equations 7 and 8; Poole et al. 2019, section 2.2.
    """
    joint_scores, marginal_scores = _vectors(joint_scores, marginal_scores)
    return -ops.mean(ops.softplus(-joint_scores), axis=-1) - ops.mean(ops.softplus(marginal_scores), axis=-1)


def jensen_shannon(joint_scores: Any, marginal_scores: Any) -> Any:
    """Estimate with a critic that the Jensen-Shannon objective trains: its gradient, the value of NWJ.

    The best critic of that objective is the log-ratio of densities; with 1 added it is the best one of `nwj`, whose value
    `1 + E_joint[f] - E_marginal[exp f]` is returned.

    Args:
        joint_scores: float tensor `(..., N)`.
        marginal_scores: float tensor `(..., M)`.

    Returns:
        Tensor `(...)`, nats; its gradient is that of `jensen_shannon_objective`.

    Reference:
        Poole et al. 2019, section 2.2.
    """
    objective = jensen_shannon_objective(joint_scores, marginal_scores)
    value = nwj(joint_scores + 1.0, marginal_scores + 1.0)
    return objective + ops.stop_gradient(value - objective)


def info_nce(
    scores: Any, *, positives: Any = None, mask: Any = None, symmetric: bool = False, temperature: Any = 1.0
) -> Any:
    """InfoNCE, `E[f(x_i, c_i) - log (1/N) sum_j exp f(x_j, c_i)]`: log N less the cross-entropy of finding the right one.

    Of low variance, and never above log N, where N counts the candidates with the right one among them: it saturates there
    when the mutual information is larger. It does not change when a constant is added to a row (a context).

    Explicit negatives come as columns beside the right candidate, which `positives` points to:

        info_nce(ops.concatenate([positive[:, None], negatives], axis=1), positives=ops.zeros(K, "int32"))

    Args:
        scores: float tensor `(..., K, N)`. A row for each context, a column for each candidate.
        positives: int tensor `(..., K)`: the column of each row's right candidate; the diagonal by default.
        mask: bool tensor like `scores`, or None. False where a candidate does not count for a context.
        symmetric: bool. Whether to average with the same of the transpose: contexts as candidates. For square matrices with
            the positives on the diagonal. Defaults to False.
        temperature: float or scalar tensor by which scores are divided. Defaults to 1.

    Returns:
        Tensor `(...)`, nats.

    Raises:
        ValueError: for a single candidate (the bound is then 0, whatever the critic), scores that are no matrix or too
            narrow to have the positives on the diagonal, a `temperature` that is not positive, and `symmetric` with other
            positives than the diagonal.

    Reference:
        van den Oord et al. 2018, equation 4; Poole et al. 2019, equation 10.
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
    if symmetric and positives is not None:
        raise ValueError(f"`positives` must be None for a symmetric bound. Received: positives={positives}")
    scores = _matrix(scores, square=symmetric)
    if scores.shape[-1] == 1:
        raise ValueError(
            f"`scores` must have at least 2 candidates: of a single one the bound is always 0. Received: {scores.shape}"
        )
    scores = scores / ops.cast(temperature, scores.dtype)
    if positives is None:
        _require_diagonal(scores)
        right = ops.diagonal(scores, axis1=-2, axis2=-1)
    else:
        right = ops.take_along_axis(scores, ops.expand_dims(positives, -1), axis=-1)[..., 0]
    bound = _contrast(right, scores, mask)
    if symmetric:
        transposed = None if mask is None else ops.swapaxes(mask, -2, -1)
        bound = (bound + _contrast(right, ops.swapaxes(scores, -2, -1), transposed)) / 2.0
    return bound


def interpolated(scores: Any, alpha: float, log_baseline: Any = 1.0) -> Any:
    """Bound between NWJ (`alpha = 0`) and InfoNCE (`alpha = 1`): less biased than this, less variable than that.

    With m(c) the mean of exp f over K - 1 candidates and a baseline q(c):

        1 + E_joint[log exp f / (alpha m + (1 - alpha) q)] - E_marginal[exp f / (alpha m + (1 - alpha) q)]

    In the first term m holds the right candidate and each choice of K - 2 others, in the second the K - 1 others. At
    `alpha = 1` the second term is 1, which leaves InfoNCE of K - 1 candidates; at `alpha = 0` and the default baseline this
    is `nwj`, at others TUBA. Never above 1 + log((K - 1) / alpha).

    Args:
        scores: float tensor `(..., K, K)`.
        alpha: float in [0, 1].
        log_baseline: float, or tensor `(..., K)` with a value for each context. log q(c); learned baselines are the output
            of a network on c. Defaults to 1, the baseline of NWJ.

    Returns:
        Tensor `(...)`, nats.

    Raises:
        ValueError: for an `alpha` out of [0, 1], scores that are no square matrix, or of a single pair.

    Reference:
        Poole et al. 2019, equation 14.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1]. Received: alpha={alpha}")
    scores = _matrix(scores, square=True)
    baseline = ops.broadcast_to(_column(log_baseline, scores), ops.shape(scores))
    # Entry [i, j] leaves candidate j out.
    denominator = _log_interpolate(alpha, _log_mean_exp_of_others(scores), baseline)
    joint, _ = joint_and_marginal(scores)
    # Both terms over i != j: the right candidate with all but one other, and each other with all the others.
    _, left_out = joint_and_marginal(ops.expand_dims(joint, -1) - denominator)
    all_others = ops.diagonal(denominator, axis1=-2, axis2=-1)
    _, marginal = joint_and_marginal(scores - ops.expand_dims(all_others, -1))
    return 1.0 + ops.mean(left_out, axis=-1) - ops.exp(log_mean_exp(marginal))


# === Parts ===


def _contrast(right: Any, scores: Any, mask: Any) -> Any:
    # Differences first: between large scores a sum would round them away.
    return -ops.mean(log_mean_exp(scores - ops.expand_dims(right, -1), mask=mask), axis=-1)


def _column(value: Any, scores: Any) -> Any:
    value = ops.cast(value, scores.dtype)
    return ops.expand_dims(value, -1) if len(value.shape) else value


def _log_interpolate(alpha: float, first: Any, second: Any) -> Any:
    """Returns `log(alpha exp(first) + (1 - alpha) exp(second))`."""
    if alpha == 1:
        return first
    if alpha == 0:
        return second
    return ops.logaddexp(first + math.log(alpha), second + math.log1p(-alpha))


def _log_mean_exp_of_others(scores: Any) -> Any:
    """Returns at each entry the logarithm of the mean exponential of all *other* entries of its row."""
    columns = ops.arange(ops.shape(scores)[-1])
    largest = ops.equal(columns, ops.expand_dims(ops.argmax(scores, axis=-1), -1))
    total = ops.logsumexp(scores, axis=-1, keepdims=True)
    # log(exp(total) - exp(score)): exact unless the score makes up most of the total, as only the largest can.
    gap = ops.where(largest, 1.0, total - scores)
    others = scores + gap + ops.log(-ops.expm1(-gap))
    without_largest = ops.logsumexp(ops.where(largest, -1e30, scores), axis=-1, keepdims=True)
    return ops.where(largest, without_largest, others) - ops.log(ops.cast(ops.shape(scores)[-1] - 1, scores.dtype))


# === Checks ===


def _float(scores: Any) -> Any:
    scores = ops.convert_to_tensor(scores)
    dtype = keras.backend.standardize_dtype(scores.dtype)
    return scores if dtype in ("float32", "float64") else ops.cast(scores, "float32")


def _vectors(joint_scores: Any, marginal_scores: Any) -> tuple[Any, Any]:
    joint_scores, marginal_scores = _float(joint_scores), _float(marginal_scores)
    for name, scores in (("joint_scores", joint_scores), ("marginal_scores", marginal_scores)):
        if len(scores.shape) == 0 or scores.shape[-1] == 0:
            raise ValueError(f"`{name}` must have a last axis with samples. Received: shape={scores.shape}")
    return joint_scores, marginal_scores


def _matrix(scores: Any, square: bool) -> Any:
    scores = _float(scores)
    if len(scores.shape) < 2:
        raise ValueError(f"`scores` must be a matrix (..., contexts, candidates). Received: shape={scores.shape}")
    rows, columns = scores.shape[-2:]
    if square and rows is not None and columns is not None and (rows != columns or rows == 1):
        raise ValueError(f"`scores` must be a square matrix of at least 2 pairs. Received: shape={scores.shape}")
    return scores


def _require_diagonal(scores: Any) -> None:
    rows, columns = scores.shape[-2:]
    if rows is not None and columns is not None and rows > columns:
        raise ValueError(
            f"`scores` must have a column for each row, or `positives` say the right ones. Received: shape={scores.shape}"
        )

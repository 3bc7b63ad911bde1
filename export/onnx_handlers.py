"""TensorFlow operations that tf2onnx lacks, or converts to something else than what TensorFlow computes.

`HANDLERS` goes to `tf2onnx.convert.from_function(custom_op_handlers=...)`. Four of them replace tf2onnx's own: its
`ScatterNd` lets the last of several updates to one place win where TensorFlow adds them up, and its integer `FloorDiv`
and `FloorMod` round towards zero where TensorFlow rounds down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tf2onnx import utils


class Rewrite:
    """Replaces one TensorFlow node by ONNX nodes.

    Args:
        graph: the tf2onnx graph.
        node: the node to replace. It is removed; the node made by `finish` takes over its outputs.
    """

    def __init__(self, graph: Any, node: Any):
        self.graph = graph
        self.name = node.name
        self.inputs = list(node.input)
        self.attribute = node.get_attr_value
        self.dtype = np.dtype(utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0])))
        self.output_dtype = np.dtype(utils.map_onnx_to_numpy_type(node.output_dtypes[0]))
        self._outputs = {"outputs": list(node.output), "shapes": node.output_shapes, "dtypes": node.output_dtypes}
        graph.remove_node(node.name)

    @property
    def is_float(self) -> bool:
        """Whether the first input is floating point."""
        return np.issubdtype(self.dtype, np.floating)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of a constant, of the first input's type by default."""
        array = np.asarray(value, dtype or self.dtype)
        return self.graph.make_const(utils.make_name(f"{self.name}_constant"), array).output[0]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        return self.graph.make_node(op, list(inputs), attr=attributes or None).output[0]

    def int64(self, tensor: str) -> str:
        """Returns a tensor cast to the type ONNX wants for indices and shapes."""
        return self.add("Cast", tensor, to=TensorProto.INT64)

    def finish(self, op: str, *inputs: str, **attributes: Any) -> None:
        """Adds the last node, which produces the outputs of the one replaced."""
        self.graph.make_node(op, list(inputs), attr=attributes or None, name=self.name, **self._outputs)


Handler = Callable[[Rewrite], None]


# === Elementwise functions ===


def erfc(rewrite: Rewrite) -> None:
    """`erfc(x) = 1 - erf(x)`, which exact GELU is built on."""
    rewrite.finish("Sub", rewrite.constant(1), rewrite.add("Erf", rewrite.inputs[0]))


def expm1(rewrite: Rewrite) -> None:
    """`exp(x) - 1`; near zero as `2 t / (1 - t)` with `t = tanh(x / 2)`, which cancels nothing."""
    x = rewrite.inputs[0]
    half = rewrite.add("Tanh", rewrite.add("Mul", x, rewrite.constant(0.5)))
    one = rewrite.constant(1)
    near = rewrite.add("Div", rewrite.add("Mul", half, rewrite.constant(2)), rewrite.add("Sub", one, half))
    far = rewrite.add("Sub", rewrite.add("Exp", x), one)
    is_near = rewrite.add("Less", rewrite.add("Abs", x), rewrite.constant(0.5))
    rewrite.finish("Where", is_near, near, far)


def _log1p(rewrite: Rewrite, x: str) -> str:
    # With u = fl(1 + x), log(u) * x / (u - 1) corrects the rounding of u (Kahan); for u = 1 the answer is x itself.
    one, zero = rewrite.constant(1), rewrite.constant(0)
    shifted = rewrite.add("Add", x, one)
    rounded = rewrite.add("Sub", shifted, one)
    tiny = rewrite.add("Equal", rounded, zero)
    log = rewrite.add("Log", shifted)
    correction = rewrite.add("Div", x, rewrite.add("Where", tiny, one, rounded))
    # At infinity the correction is inf / inf; the logarithm alone is right there.
    infinite = rewrite.add("IsInf", x)
    correction = rewrite.add("Where", infinite, one, correction)
    return rewrite.add("Where", tiny, x, rewrite.add("Mul", log, correction))


def log1p(rewrite: Rewrite) -> None:
    """`log(1 + x)`, accurate for tiny `x`."""
    rewrite.finish("Identity", _log1p(rewrite, rewrite.inputs[0]))


def _zero_where_first_is(rewrite: Rewrite, logarithm: Callable[[str], str], neutral: float) -> None:
    x, y = rewrite.inputs
    zero = rewrite.constant(0)
    is_zero = rewrite.add("Equal", x, zero)
    log = logarithm(rewrite.add("Where", is_zero, rewrite.constant(neutral), y))
    rewrite.finish("Where", is_zero, zero, rewrite.add("Mul", x, log))


def xlogy(rewrite: Rewrite) -> None:
    """`x log(y)`, zero where `x` is."""
    _zero_where_first_is(rewrite, lambda y: rewrite.add("Log", y), 1.0)


def xlog1py(rewrite: Rewrite) -> None:
    """`x log(1 + y)`, zero where `x` is."""
    _zero_where_first_is(rewrite, lambda y: _log1p(rewrite, y), 0.0)


def mul_no_nan(rewrite: Rewrite) -> None:
    """`x y`, zero where `y` is, even for infinite or undefined `x`."""
    x, y = rewrite.inputs
    zero = rewrite.constant(0)
    rewrite.finish("Where", rewrite.add("Equal", y, zero), zero, rewrite.add("Mul", x, y))


def lgamma(rewrite: Rewrite) -> None:
    """`log(gamma(x))` for positive `x`: Stirling's series at `x + 8`, less `log(x (x + 1) ... (x + 7))`.

    Abramowitz and Stegun, 6.1.40 and 6.1.15.
    """
    x = rewrite.inputs[0]
    # In two halves: the whole product would leave float32's range from x = 2e4 on.
    products = []
    for start in (0, 4):
        factors = [rewrite.add("Add", x, rewrite.constant(start + k)) for k in range(4)]
        low, high = rewrite.add("Mul", *factors[:2]), rewrite.add("Mul", *factors[2:])
        products.append(rewrite.add("Log", rewrite.add("Mul", low, high)))
    z = rewrite.add("Add", x, rewrite.constant(8))
    inverse = rewrite.add("Div", rewrite.constant(1), z)
    square = rewrite.add("Mul", inverse, inverse)
    series = rewrite.constant(1 / 1260)
    for coefficient in (-1 / 360, 1 / 12):
        series = rewrite.add("Add", rewrite.constant(coefficient), rewrite.add("Mul", square, series))
    series = rewrite.add("Mul", inverse, series)
    main = rewrite.add("Mul", rewrite.add("Sub", z, rewrite.constant(0.5)), rewrite.add("Log", z))
    main = rewrite.add("Add", rewrite.add("Sub", main, z), rewrite.constant(0.5 * math.log(2 * math.pi)))
    rewrite.finish("Sub", rewrite.add("Add", main, series), rewrite.add("Add", *products))


# === Gradients of activations, for models that differentiate inside their graph ===


def tanh_grad(rewrite: Rewrite) -> None:
    """`dy (1 - y^2)`."""
    y, dy = rewrite.inputs
    rewrite.finish("Mul", dy, rewrite.add("Sub", rewrite.constant(1), rewrite.add("Mul", y, y)))


def sigmoid_grad(rewrite: Rewrite) -> None:
    """`dy y (1 - y)`."""
    y, dy = rewrite.inputs
    rewrite.finish("Mul", dy, rewrite.add("Mul", y, rewrite.add("Sub", rewrite.constant(1), y)))


def relu_grad(rewrite: Rewrite) -> None:
    """`dy` where the feature is positive, else zero."""
    dy, feature = rewrite.inputs
    zero = rewrite.constant(0)
    rewrite.finish("Where", rewrite.add("Greater", feature, zero), dy, zero)


def elu_grad(rewrite: Rewrite) -> None:
    """`dy (y + 1)` where the output `y` is negative, else `dy`."""
    dy, y = rewrite.inputs
    falling = rewrite.add("Mul", dy, rewrite.add("Add", y, rewrite.constant(1)))
    rewrite.finish("Where", rewrite.add("Less", y, rewrite.constant(0)), falling, dy)


def rsqrt_grad(rewrite: Rewrite) -> None:
    """`-dy y^3 / 2`."""
    y, dy = rewrite.inputs
    cube = rewrite.add("Mul", y, rewrite.add("Mul", y, y))
    rewrite.finish("Mul", rewrite.add("Mul", dy, rewrite.constant(-0.5)), cube)


# === Integers, indices and shapes ===


def floor_div(rewrite: Rewrite) -> None:
    """The largest integer not above `x / y`; ONNX's integer division rounds towards zero."""
    x, y = rewrite.inputs
    quotient = rewrite.add("Div", x, y)
    if rewrite.is_float:
        rewrite.finish("Floor", quotient)
        return
    # ONNX's Mod has the divisor's sign, as the wanted remainder has: where Div left another one, it rounded up.
    remainder = rewrite.add("Sub", x, rewrite.add("Mul", quotient, y))
    agrees = rewrite.add("Equal", rewrite.add("Mod", x, y), remainder)
    rewrite.finish("Where", agrees, quotient, rewrite.add("Sub", quotient, rewrite.constant(1)))


def floor_mod(rewrite: Rewrite) -> None:
    """`x - floor(x / y) y`: the remainder with the divisor's sign."""
    x, y = rewrite.inputs
    if not rewrite.is_float:
        rewrite.finish("Mod", x, y, fmod=0)
        return
    # From the exact remainder with the dividend's sign, as TensorFlow does: floor(x / y) is off by one near multiples.
    remainder = rewrite.add("Mod", x, y, fmod=1)
    zero = rewrite.constant(0)
    signs = rewrite.add("Xor", rewrite.add("Less", remainder, zero), rewrite.add("Less", y, zero))
    exact = rewrite.add("Equal", remainder, zero)
    differs = rewrite.add("And", signs, rewrite.add("Not", exact))
    rewrite.finish("Where", differs, rewrite.add("Add", remainder, y), remainder)


def scatter_nd(rewrite: Rewrite) -> None:
    """Scatters updates into zeros; several updates to one place add up."""
    indices, updates, shape = rewrite.inputs
    zero = helper.make_tensor("value", helper.np_dtype_to_tensor_dtype(rewrite.output_dtype), [1], [0])
    empty = rewrite.add("ConstantOfShape", rewrite.int64(shape), value=zero)
    rewrite.finish("ScatterND", empty, rewrite.int64(indices), updates, reduction="add")


def broadcast_args(rewrite: Rewrite) -> None:
    """The shape two shapes broadcast to: that of a tensor of the one expanded to the other."""
    tensor = rewrite.add("ConstantOfShape", rewrite.int64(rewrite.inputs[0]))
    expanded = rewrite.add("Expand", tensor, rewrite.int64(rewrite.inputs[1]))
    rewrite.finish("Cast", rewrite.add("Shape", expanded), to=helper.np_dtype_to_tensor_dtype(rewrite.output_dtype))


def _bound(comparison: str) -> Handler:
    def bound(rewrite: Rewrite) -> None:
        # (batch, n) sorted, (batch, m) values: compare all pairs and count along n.
        edges = rewrite.add("Unsqueeze", rewrite.inputs[0], rewrite.constant([1], np.int64))
        values = rewrite.add("Unsqueeze", rewrite.inputs[1], rewrite.constant([2], np.int64))
        below = rewrite.add(comparison, edges, values)
        wanted = helper.np_dtype_to_tensor_dtype(rewrite.output_dtype)
        rewrite.finish("ReduceSum", rewrite.add("Cast", below, to=wanted), rewrite.constant([2], np.int64), keepdims=0)

    bound.__doc__ = f"How many sorted edges are `{comparison}` in relation to each value, by comparing all pairs."
    return bound


def cumulative_logsumexp(rewrite: Rewrite) -> None:
    """`log(cumsum(exp(x - max))) + max` along an axis.

    Partial sums more than about 87 below the largest element underflow to minus infinity.
    """
    x, axis = rewrite.inputs
    axes = rewrite.add("Unsqueeze", rewrite.int64(axis), rewrite.constant([0], np.int64))
    peak = rewrite.add("ReduceMax", x, axes, keepdims=1)
    direction = {name: int(rewrite.attribute(name, 0)) for name in ("exclusive", "reverse")}
    total = rewrite.add("CumSum", rewrite.add("Exp", rewrite.add("Sub", x, peak)), axis, **direction)
    rewrite.finish("Add", rewrite.add("Log", total), peak)


_CONVERSIONS: dict[str, Handler] = {
    "Erfc": erfc,
    "Expm1": expm1,
    "Log1p": log1p,
    "Xlogy": xlogy,
    "Xlog1py": xlog1py,
    "MulNoNan": mul_no_nan,
    "Lgamma": lgamma,
    "TanhGrad": tanh_grad,
    "SigmoidGrad": sigmoid_grad,
    "ReluGrad": relu_grad,
    "EluGrad": elu_grad,
    "RsqrtGrad": rsqrt_grad,
    "FloorDiv": floor_div,
    "FloorMod": floor_mod,
    "ScatterNd": scatter_nd,
    "BroadcastArgs": broadcast_args,
    "LowerBound": _bound("Less"),
    "UpperBound": _bound("LessOrEqual"),
    "CumulativeLogsumexp": cumulative_logsumexp,
}


def _registered(conversion: Handler) -> tuple[Callable[..., None], list[str]]:
    return (lambda graph, node, name, args: conversion(Rewrite(graph, node))), []


HANDLERS = {op: _registered(conversion) for op, conversion in _CONVERSIONS.items()}

"""Networks as policies act with them: a few rows at a time, in compiled code that needs neither Python nor its lock.

Libraries of linear algebra are made for many rows. Here the product of a few rows with a matrix is so many dot
products, ten at a time, which read the matrix once and in order. A row's numbers do not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mtrl.data import Array
from mtrl.networks.compiled.maths import compiled, sigmoid, tanh

_CACHE_LINE = 64  # bytes
_FLOAT = 4  # bytes

_RELU, _TANH, _ELU, _SILU, _GELU = range(5)
_ZERO, _HALF, _ONE = (np.float32(number) for number in (0.0, 0.5, 1.0))
_SQRT_HALF = np.float32(0.5**0.5)

ACTIVATION_NUMBERS = {"relu": _RELU, "tanh": _TANH, "elu": _ELU, "silu": _SILU, "gelu": _GELU}
"""By what the functions here know the activations of `mtrl.networks.stack`."""


@cast("Callable[..., Any]", intrinsic)
def _fetch(typing_context: Any, address: Any) -> Any:
    """`_fetch(address)` lets the processor read the memory there before it is asked for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        to_read, into_second_cache, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(fetch, [builder.inttoptr(arguments[0], pointer), to_read, into_second_cache, data])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


@compiled
def _linear(rows: Array, weight: Array, bias: Array, out: Array) -> None:
    """Fills `out` [row, out] with rows [row, in] @ weight [out, in].T + bias [out].

    Five rows by two columns at a time, whose sums a processor keeps in registers; where fewer are left, the last one
    takes the others' places. The two columns that come next are fetched meanwhile, a piece for each five rows, as the
    weights of many networks lie far from a core.
    """
    num_rows, width = rows.shape
    num_columns = len(bias)
    last_row, last_column = num_rows - 1, num_columns - 1
    pair = 2 * width * _FLOAT  # bytes of two columns
    piece = pair // max(1, num_rows // 5)
    for column in range(0, num_columns, 2):
        beside = min(column + 1, last_column)
        v, w = weight[column], weight[beside]
        fetched = v.ctypes.data + pair
        end = fetched + pair if column + 3 < num_columns else fetched
        for row in range(0, num_rows, 5):
            until = min(fetched + piece, end)
            while fetched < until:
                _fetch(np.uintp(fetched))
                fetched += _CACHE_LINE
            second, third = min(row + 1, last_row), min(row + 2, last_row)
            fourth, fifth = min(row + 3, last_row), min(row + 4, last_row)
            a, b, c, d, e = rows[row], rows[second], rows[third], rows[fourth], rows[fifth]
            av = bv = cv = dv = ev = bias[column]
            aw = bw = cw = dw = ew = bias[beside]
            for k in range(width):
                av += a[k] * v[k]
                bv += b[k] * v[k]
                cv += c[k] * v[k]
                dv += d[k] * v[k]
                ev += e[k] * v[k]
                aw += a[k] * w[k]
                bw += b[k] * w[k]
                cw += c[k] * w[k]
                dw += d[k] * w[k]
                ew += e[k] * w[k]
            out[row, column], out[row, beside] = av, aw
            out[second, column], out[second, beside] = bv, bw
            out[third, column], out[third, beside] = cv, cw
            out[fourth, column], out[fourth, beside] = dv, dw
            out[fifth, column], out[fifth, beside] = ev, ew


@compiled
def _activate(activation: int, numbers: Array) -> None:
    """Puts numbers [any] through an activation, in place."""
    if activation == _RELU:
        for index in range(len(numbers)):
            numbers[index] = _ZERO if numbers[index] < _ZERO else numbers[index]
    elif activation == _TANH:
        for index in range(len(numbers)):
            numbers[index] = tanh(numbers[index])
    elif activation == _ELU:
        for index in range(len(numbers)):
            x = numbers[index]
            numbers[index] = np.expm1(x) if x < _ZERO else x
    elif activation == _SILU:
        for index in range(len(numbers)):
            numbers[index] *= sigmoid(numbers[index])
    elif activation == _GELU:
        for index in range(len(numbers)):
            x = numbers[index]
            numbers[index] = _HALF * x * (_ONE + np.float32(math.erf(x * _SQRT_HALF)))


@compiled
def _perceptron(sizes: Array, activation: int, numbers: Array, num_activated: int, rows: Array) -> Array:
    """Returns [row, sizes[-1]] for rows [row, sizes[0]]; numbers as `recurrent_step`."""
    at = 0
    for layer in range(len(sizes) - 1):
        fan_in, width = sizes[layer], sizes[layer + 1]
        bias_at = at + fan_in * width
        found = np.empty((len(rows), width), np.float32)
        _linear(rows, numbers[at:bias_at].reshape(width, fan_in), numbers[bias_at : bias_at + width], found)
        if layer < num_activated:
            _activate(activation, found.reshape(-1))
        rows, at = found, bias_at + width
    return rows


@compiled
def one_perceptron(sizes: Array, activation: int, numbers: Array, rows: Array) -> Array:
    """Returns [row, sizes[-1]] for rows [row, sizes[0]], without an activation on the last layer; see `perceptrons`."""
    return _perceptron(sizes, activation, numbers, len(sizes) - 2, rows)


@compiled
def perceptrons(
    sizes: Array,
    activation: int,
    numbers: Array,
    number_of: Array,
    members: Array,
    rows: Array,
    out: Array,
) -> None:
    """Puts groups of rows through perceptrons with activations between their layers, each group through its own.

    Args:
        sizes: int64 [layer + 1], of input and of each layer's output.
        activation: one of `ACTIVATION_NUMBERS`.
        numbers: float32 [perceptron, number], of each layer the weight [out, in], then the bias [out].
        number_of: int64 [group], the perceptron of each.
        members: int64 [group, place], rows of each; a row may stand there several times.
        rows: float32 [row, in].
        out: float32 [row, out], of the groups' rows.
    """
    for group in range(len(members)):
        own = members[group]
        found = one_perceptron(sizes, activation, numbers[number_of[group]], rows[own])
        for place in range(len(own)):
            out[own[place]] = found[place]


@compiled
def recurrent_step(
    sizes: Array,
    activation: int,
    encoder: Array,
    recurrence: tuple[Array, Array, Array, Array],
    head: tuple[Array, Array],
    rows: Array,
    hidden: Array,
    out: Array,
) -> None:
    """Makes one step of perceptron, gated recurrent unit and linear layer; all float32 but `sizes`.

    Args:
        sizes: int64 [layer + 1], of input and of each layer's output; activations follow on all of them.
        activation: one of `ACTIVATION_NUMBERS`.
        encoder: [number], of each layer the weight [out, in], then the bias [out].
        recurrence: `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh` of `torch.nn.GRU`.
        head: Weight [out, hidden_size] and bias [out].
        rows: [row, in].
        hidden: [row, hidden_size], in and out.
        out: [row, out].
    """
    weight_ih, weight_hh, bias_ih, bias_hh = recurrence
    num_rows, size = hidden.shape
    encoded = _perceptron(sizes, activation, encoder, len(sizes) - 1, rows)
    given, recurrent = np.empty((num_rows, 3 * size), np.float32), np.empty((num_rows, 3 * size), np.float32)
    _linear(encoded, weight_ih, bias_ih, given)
    _linear(hidden, weight_hh, bias_hh, recurrent)
    for row in range(num_rows):
        now, from_input, from_hidden = hidden[row], given[row], recurrent[row]
        for unit in range(size):
            reset = sigmoid(from_input[unit] + from_hidden[unit])
            update = sigmoid(from_input[size + unit] + from_hidden[size + unit])
            candidate = tanh(from_input[2 * size + unit] + reset * from_hidden[2 * size + unit])
            now[unit] = candidate + update * (now[unit] - candidate)
    _linear(hidden, head[0], head[1], out)

"""A gated recurrent unit over long sequences of few rows, on the CPU (arXiv 1406.1078, in the form that torch has).

torch walks a sequence through its graph and multiplies out a gradient of the weights at every step. Here each row walks
through in compiled code, rows side by side in threads, and the gradient of the weights is one product at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.data import Array
from mtrl.networks.compiling import compiled


def gru_sequence(from_input: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the hidden state after each step, [row, step, hidden_size]; differentiable once, by all arguments.

    Args:
        from_input: [row, step, 3 * hidden_size], the inputs' part of reset gate, update gate and candidate, with bias.
        hidden: [row, hidden_size], before the first step.
        weight: [3 * hidden_size, hidden_size], as `torch.nn.GRU.weight_hh_l0`.
        bias: [3 * hidden_size], as `torch.nn.GRU.bias_hh_l0`.
    """
    found: Tensor = _GruSequence.apply(from_input, hidden, weight, bias)  # type: ignore[no-untyped-call] # not annotated
    return found


class _GruSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_input: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, steps, size = from_input.shape[0], from_input.shape[1], hidden.shape[1]
        hiddens = from_input.new_empty(rows, steps, size)
        gates = from_input.new_empty(rows, steps, 4 * size)
        shared = [_array(weight), _array(bias)]
        of_rows = [_array(tensor) for tensor in (from_input, hidden, hiddens, gates)]
        _each_row(_compiled(_walk), of_rows, shared)
        ctx.save_for_backward(hidden, weight, hiddens, gates)
        return hiddens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, weight, hiddens, gates = ctx.saved_tensors
        rows, steps, size = hiddens.shape
        by_input, by_recurrence = (gates.new_empty(rows, steps, 3 * size) for _ in range(2))
        by_hidden = gates.new_empty(rows, size)
        of_rows = [_array(t) for t in (slope, hidden, hiddens, gates, by_input, by_recurrence, by_hidden)]
        _each_row(_compiled(_walk_back), of_rows, [_array(weight.T)])
        before = torch.cat([hidden.unsqueeze(1), hiddens[:, :-1]], dim=1)
        flat = by_recurrence.flatten(0, 1)
        return by_input, by_hidden, flat.T @ before.flatten(0, 1), flat.sum(dim=0)


def _each_row(walk: Callable[..., None], of_rows: Sequence[Array], shared: Sequence[Array]) -> None:
    """Calls `walk` with each row of some arrays, as many at once as torch has threads."""
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="recurrence") as threads:
        done = [threads.submit(walk, *(array[row] for array in of_rows), *shared) for row in range(len(of_rows[0]))]
    for one in done:
        one.result()


def _array(tensor: Tensor) -> Array:
    """Returns the tensor's memory, or a copy in which its rows lie one after the other."""
    return tensor.detach().contiguous().numpy()


_compiled = cache(compiled)  # when it is first needed


def _walk(from_input: Array, hidden: Array, hiddens: Array, gates: Array, weight: Array, bias: Array) -> None:
    """Fills `hiddens` [step, size] and `gates` [step, 4 * size].

    The latter are reset gate, update gate, candidate, and recurrence's part of the candidate.
    """
    one = weight.dtype.type(1.0)
    steps, size = hiddens.shape
    recurrence = np.empty_like(bias)
    last = hidden
    for step in range(steps):
        for row in range(3 * size):
            total = bias[row]
            for column in range(size):
                total += weight[row, column] * last[column]
            recurrence[row] = total
        now, gate, given = hiddens[step], gates[step], from_input[step]
        for unit in range(size):
            reset = one / (one + np.exp(-(given[unit] + recurrence[unit])))
            update = one / (one + np.exp(-(given[size + unit] + recurrence[size + unit])))
            candidate = np.tanh(given[2 * size + unit] + reset * recurrence[2 * size + unit])
            gate[unit], gate[size + unit], gate[2 * size + unit] = reset, update, candidate
            gate[3 * size + unit] = recurrence[2 * size + unit]
            now[unit] = candidate + update * (last[unit] - candidate)
        last = now


def _walk_back(
    slope: Array,
    hidden: Array,
    hiddens: Array,
    gates: Array,
    by_input: Array,
    by_recurrence: Array,
    by_hidden: Array,
    transposed: Array,
) -> None:
    """Fills gradients by the inputs' part and recurrence's part of the gates [step, 3 * size] and by `hidden`."""
    one = transposed.dtype.type(1.0)
    steps, size = hiddens.shape
    by_hidden[:] = 0
    for step in range(steps - 1, -1, -1):
        last = hiddens[step - 1] if step else hidden
        gate, given, recurrent = gates[step], by_input[step], by_recurrence[step]
        for unit in range(size):
            reset, update, candidate = gate[unit], gate[size + unit], gate[2 * size + unit]
            total = by_hidden[unit] + slope[step, unit]
            by_candidate = total * (one - update) * (one - candidate * candidate)
            by_reset = by_candidate * gate[3 * size + unit] * reset * (one - reset)
            by_update = total * (last[unit] - candidate) * update * (one - update)
            given[unit], given[size + unit], given[2 * size + unit] = by_reset, by_update, by_candidate
            recurrent[unit], recurrent[size + unit], recurrent[2 * size + unit] = (
                by_reset,
                by_update,
                by_candidate * reset,
            )
            by_hidden[unit] = total * update
        for unit in range(size):
            total = by_hidden[unit]
            for column in range(3 * size):
                total += transposed[unit, column] * recurrent[column]
            by_hidden[unit] = total

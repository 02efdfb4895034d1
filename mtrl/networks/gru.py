"""A gated recurrent unit over long sequences of few rows, on the CPU (arXiv 1406.1078, in the form that torch has).

torch walks a sequence through its graph and multiplies out a gradient of the weights at every step. Here each row walks
through in compiled code, rows side by side in threads, and the gradient of the weights is one product at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from mtrl.data import Array


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
        from mtrl.networks.compiled.recurrence import walk  # numba takes a while, and most runs have no use for it

        rows, steps, size = from_input.shape[0], from_input.shape[1], hidden.shape[1]
        hiddens = from_input.new_empty(rows, steps, size)
        gates = from_input.new_empty(rows, steps, 4 * size)
        shared = [_array(weight), _array(bias)]
        of_rows = [_array(tensor) for tensor in (from_input, hidden, hiddens, gates)]
        _each_row(walk, of_rows, shared)
        ctx.save_for_backward(hidden, weight, hiddens, gates)
        return hiddens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from mtrl.networks.compiled.recurrence import walk_back

        hidden, weight, hiddens, gates = ctx.saved_tensors
        rows, steps, size = hiddens.shape
        by_input, by_recurrence = (gates.new_empty(rows, steps, 3 * size) for _ in range(2))
        by_hidden = gates.new_empty(rows, size)
        of_rows = [_array(t) for t in (slope, hidden, hiddens, gates, by_input, by_recurrence, by_hidden)]
        _each_row(walk_back, of_rows, [_array(weight.T)])
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

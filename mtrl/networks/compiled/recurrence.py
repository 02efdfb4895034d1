"""A gated recurrent unit's way through the steps of one row, there and back."""

from __future__ import annotations

import numpy as np

from mtrl.data import Array
from mtrl.networks.compiled.maths import compiled, sigmoid, tanh


@compiled
def walk(from_input: Array, hidden: Array, hiddens: Array, gates: Array, weight: Array, bias: Array) -> None:
    """Fills `hiddens` [step, size] and `gates` [step, 4 * size].

    The latter are reset gate, update gate, candidate, and recurrence's part of the candidate.
    """
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
            reset = sigmoid(given[unit] + recurrence[unit])
            update = sigmoid(given[size + unit] + recurrence[size + unit])
            candidate = tanh(given[2 * size + unit] + reset * recurrence[2 * size + unit])
            gate[unit], gate[size + unit], gate[2 * size + unit] = reset, update, candidate
            gate[3 * size + unit] = recurrence[2 * size + unit]
            now[unit] = candidate + update * (last[unit] - candidate)
        last = now


@compiled
def walk_back(
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

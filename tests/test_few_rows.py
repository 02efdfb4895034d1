"""Networks in compiled code for few rows, against torch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks.compiled.few_rows import ACTIVATION_NUMBERS, perceptrons, recurrent_step
from mtrl.networks.stack import ACTIVATIONS


def layers_of(sizes, draws, stack=1):
    """Returns weight [stack, out, in] and bias [stack, out] of each layer."""
    shapes = [((stack, width, fan_in), (stack, width)) for fan_in, width in pairwise(sizes)]
    return [tuple(0.5 * torch.randn(shape, generator=draws) for shape in pair) for pair in shapes]


def flat(layers):
    """Returns the numbers of layers, [stack, number]."""
    return torch.cat([numbers.flatten(1) for layer in layers for numbers in layer], dim=1).numpy()


def torchs(layers, which, activation, rows):
    """Returns what torch makes of rows in float64."""
    rows = rows.double()
    for weight, bias in layers:
        rows = F.linear(rows, weight[which].double(), bias[which].double())
        if weight is not layers[-1][0]:
            rows = ACTIVATIONS[activation](rows)
    return rows.float()


def put_through(sizes, layers, rows, activation="tanh", which=(0,), members=None):
    members = np.arange(len(rows)).reshape(1, -1) if members is None else np.array(members)
    out = np.full((len(rows), sizes[-1]), np.nan, np.float32)
    numbers = (np.array(sizes), ACTIVATION_NUMBERS[activation], flat(layers), np.array(which), members)
    perceptrons(*numbers, rows.numpy(), out)
    return torch.from_numpy(out)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("sizes", [(7, 6, 4), (39, 33, 17, 5), (3, 1), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 12])
def test_rows_go_through_a_perceptron_as_in_torch(activation, sizes, num_rows):
    draws = torch.Generator().manual_seed(0)
    layers, rows = layers_of(sizes, draws), torch.randn(num_rows, sizes[0], generator=draws)
    found = put_through(sizes, layers, rows, activation)
    torch.testing.assert_close(found, torchs(layers, 0, activation, rows), rtol=1e-5, atol=1e-5)


def test_each_group_goes_through_its_own_perceptron_and_other_rows_stay():
    draws, sizes = torch.Generator().manual_seed(1), (5, 8, 3)
    layers, rows = layers_of(sizes, draws, stack=4), torch.randn(6, 5, generator=draws)
    found = put_through(sizes, layers, rows, which=[3, 1], members=[[4, 0, 2], [1, 5, 5]])
    for row, which in {4: 3, 0: 3, 2: 3, 1: 1, 5: 1}.items():
        torch.testing.assert_close(found[row], torchs(layers, which, "tanh", rows[row]), rtol=1e-5, atol=1e-5)
    assert found[3].isnan().all()


def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it():
    draws, sizes = torch.Generator().manual_seed(2), (39, 50, 21, 4)
    layers, rows = layers_of(sizes, draws), torch.randn(23, 39, generator=draws)
    together = put_through(sizes, layers, rows)
    for first in range(0, 23, 3):
        apart = put_through(sizes, layers, rows[first : first + 3].clone())
        torch.testing.assert_close(apart, together[first : first + 3], rtol=0, atol=0)


def test_tanh_is_right_to_a_few_digits_of_float32_everywhere():
    rows = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([torch.inf, -torch.inf, 1e-30, -1e-8, 0.0])])
    one = [(torch.ones(1, 1, 1), torch.zeros(1, 1))] * 2  # tanh between two layers that change nothing
    found = put_through((1, 1, 1), one, rows.unsqueeze(1))[:, 0]
    torch.testing.assert_close(found, torch.tanh(rows.double()).float(), rtol=3e-7, atol=0)
    assert found.abs().max() <= 1.0


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_what_is_no_number_stays_none(activation):
    draws, sizes = torch.Generator().manual_seed(3), (4, 6, 2)
    layers, rows = layers_of(sizes, draws), torch.randn(7, 4, generator=draws)
    rows[3, 1] = torch.nan
    found = put_through(sizes, layers, rows, activation)
    assert found.isnan().all(dim=1).tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("num_rows", [1, 10, 13])
def test_a_recurrent_step_is_torchs(num_rows):
    draws, sizes, size = torch.Generator().manual_seed(4), (7, 9, 6), 5
    layers, gru = layers_of(sizes, draws), torch.nn.GRUCell(6, size)
    (head,) = layers_of((size, 4), draws)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    rows, hidden = torch.randn(num_rows, 7, generator=draws), torch.randn(num_rows, size, generator=draws)
    after, out = hidden.clone(), torch.empty(num_rows, 4)
    recurrence = tuple(parameter.detach().numpy() for parameter in gru.parameters())
    last = tuple(numbers[0].numpy() for numbers in head)
    numbers = (np.array(sizes), ACTIVATION_NUMBERS["tanh"], flat(layers)[0], recurrence, last)
    recurrent_step(*numbers, rows.numpy(), after.numpy(), out.numpy())
    with torch.no_grad():
        expected = gru(torch.tanh(torchs(layers, 0, "tanh", rows)), hidden)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, F.linear(expected, head[0][0], head[1][0]), rtol=1e-5, atol=1e-5)

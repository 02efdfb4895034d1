"""Compiled recurrence against torch's own, its gradients and what it leaves alone."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks import recurrent
from mtrl.networks.gru import gru_sequence
from mtrl.networks.recurrent import RecurrentGaussian, RecurrentShape

ROWS, STEPS, WIDTH, SIZE = 3, 11, 7, 5


def case(dtype):
    """Returns torch's module, inputs, hidden states at the start, and weights of a loss."""
    draws = torch.Generator().manual_seed(0)
    gru = torch.nn.GRU(WIDTH, SIZE, batch_first=True).to(dtype)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=dtype))
    inputs = torch.randn(ROWS, STEPS, WIDTH, generator=draws, dtype=dtype, requires_grad=True)
    hidden = torch.randn(ROWS, SIZE, generator=draws, dtype=dtype, requires_grad=True)
    return gru, inputs, hidden, torch.randn(ROWS, STEPS, SIZE, generator=draws, dtype=dtype)


def ours(gru, inputs, hidden):
    from_input = F.linear(inputs, gru.weight_ih_l0, gru.bias_ih_l0)
    return gru_sequence(from_input, hidden, gru.weight_hh_l0, gru.bias_hh_l0)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Gives torch so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_states_and_gradients_are_torchs(dtype, atol):
    gru, inputs, hidden, weights = case(dtype)
    expected, found = gru(inputs, hidden.unsqueeze(0))[0], ours(gru, inputs, hidden)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)
    of = [inputs, hidden, *gru.parameters()]
    slopes = [torch.autograd.grad((states * weights).sum(), of) for states in (expected, found)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(other, one, rtol=0.0, atol=atol)


def test_memory_in_another_order_is_read_as_what_it_says():
    gru, inputs, _, weights = case(torch.float64)
    from_input = F.linear(inputs, gru.weight_ih_l0, gru.bias_ih_l0).detach()
    hidden = torch.randn(SIZE, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).T
    weight, bias = gru.weight_hh_l0.detach(), gru.bias_hh_l0.detach()
    slopes = []
    for turned in (False, True):
        given = [from_input.transpose(0, 1).contiguous().transpose(0, 1) if turned else from_input]
        given += [hidden if turned else hidden.contiguous(), weight.T.contiguous().T if turned else weight, bias]
        given = [one.requires_grad_() for one in given]
        slopes.append(torch.autograd.grad((gru_sequence(*given) * weights).sum(), given))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(other, one)


def test_numbers_that_are_none_stay_none():
    gru, inputs, hidden, _ = case(torch.float32)
    with torch.no_grad():
        inputs[1, 4, 0] = torch.nan
        inputs[2, 2] = 1e30
    states = ours(gru, inputs, hidden)
    assert states[1, 4:].isnan().all()
    assert states[:2, :4].isfinite().all()
    assert states[2].isfinite().all()
    states.sum().backward()
    assert inputs.grad[1].isnan().any()
    assert inputs.grad[0].isfinite().all()


def test_it_cannot_be_differentiated_twice():
    gru, inputs, hidden, _ = case(torch.float64)
    (slope,) = torch.autograd.grad(ours(gru, inputs, hidden).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_policy_says_the_same_either_way(monkeypatch):
    calls = []
    monkeypatch.setattr(recurrent, "gru_sequence", lambda *given: calls.append(1) or gru_sequence(*given))
    shape = RecurrentShape(6, 2, (8,), "tanh", 5, initial_std=0.7, min_std=0.1, max_std=2.0)
    network = RecurrentGaussian(shape, torch.Generator().manual_seed(1))
    inputs = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(2))
    answers, slopes = [], []
    for network.compiled in (True, False):
        mean, log_std, hiddens = network(inputs, network.no_memory(4))
        answers.append((mean, log_std, hiddens))
        slopes.append(torch.autograd.grad((mean.square() + log_std).sum(), list(network.parameters())))
    with torch.no_grad():
        network(inputs, network.no_memory(4))
    assert len(calls) == 1
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)

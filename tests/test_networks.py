"""Stacked networks against plain ones, per-task leaves against plain gradients, and the tanh-Gaussian's density."""

import math

import pytest
import torch
from builders import suite
from torch.nn import functional as F  # noqa: N812

from mtrl.config import NetworkConfig
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import build_actor, build_critics
from mtrl.networks.linear import stacked_linear
from mtrl.networks.plasticity import dormant_share, parameter_norm
from mtrl.networks.stack import ACTIVATIONS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_critic(critics, which, obs, action, task):
    """One critic on one task's rows, computed as an ordinary perceptron."""
    stack = critics.stack
    one_hot = F.one_hot(torch.tensor(task), stack.shape.num_tasks).float().expand(len(obs), -1)
    hidden = torch.cat([obs, action, one_hot], dim=1)
    for layer in range(len(stack.shape.widths)):
        weight, bias = stack.shared[2 * layer][which], stack.shared[2 * layer + 1][which]
        hidden = F.linear(hidden, weight, bias)
        if stack.shape.layer_norm:
            deviation = hidden - hidden.mean(dim=1, keepdim=True)
            hidden = deviation / (deviation.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        hidden = torch.relu(hidden)
    if stack.shape.multi_head:
        weight, bias = stack.private[0][which, task], stack.private[1][which, task]
    else:
        weight, bias = stack.shared[-2][which], stack.shared[-1][which]
    return F.linear(hidden, weight, bias).squeeze(1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("architecture", ["one_hot", "multi_head"])
def test_stacked_critics_equal_plain_perceptrons(architecture, layer_norm):
    config = NetworkConfig(architecture=architecture, critic_widths=(7, 6), critic_layer_norm=layer_norm)
    critics = build_critics(config, suite(num_tasks=3), generator())
    obs, action = torch.randn(3, 4, 5, generator=generator(1)), torch.randn(3, 4, 2, generator=generator(2))
    q = critics(obs, action, torch.arange(3))
    assert q.shape == (2, 3, 4)
    for critic in range(2):
        for task in range(3):
            torch.testing.assert_close(q[critic, task], plain_critic(critics, critic, obs[task], action[task], task))


def test_rows_of_any_tasks_can_be_computed_together():
    actor = build_actor(NetworkConfig(actor_widths=(8,)), suite(num_tasks=3), generator())
    obs = torch.randn(5, 1, 5, generator=generator(1))
    together, _ = actor(obs, torch.tensor([2, 2, 0, 1, 2]))
    for row, task in enumerate([2, 2, 0, 1, 2]):
        alone, _ = actor(obs[row : row + 1], torch.tensor([task]))
        torch.testing.assert_close(together[row], alone[0])


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_builds_and_differs_from_the_identity(activation):
    actor = build_actor(NetworkConfig(actor_widths=(8,), activation=activation), suite(), generator())
    obs = torch.randn(3, 4, 5, generator=generator(1))
    with torch.no_grad():
        twice = actor(2 * obs, torch.arange(3))[0] - actor(0 * obs, torch.arange(3))[0]
        once = actor(obs, torch.arange(3))[0] - actor(0 * obs, torch.arange(3))[0]
    assert not torch.allclose(twice, 2 * once)


def test_layer_norm_of_the_actor_takes_the_scale_out_of_its_hidden_layers():
    obs = torch.randn(3, 4, 5, generator=generator(1))
    plain = build_actor(NetworkConfig(actor_widths=(8,)), suite(num_tasks=3), generator())
    normalised = build_actor(NetworkConfig(actor_widths=(8,), actor_layer_norm=True), suite(num_tasks=3), generator())
    for actor, same in ((plain, False), (normalised, True)):
        before = actor(obs, torch.arange(3))[0]
        with torch.no_grad():
            actor.stack.shared[0].mul_(100.0)
        assert torch.allclose(before, actor(obs, torch.arange(3))[0], atol=1e-5) == same


def test_dormant_share_counts_units_that_are_silent_beside_their_layer():
    actor = build_actor(NetworkConfig(actor_widths=(8, 4)), suite(num_tasks=3), generator())
    obs = torch.randn(3, 50, 5, generator=generator(1))
    alive = float(dormant_share(actor.stack, obs, torch.arange(3)))
    with torch.no_grad():
        actor.stack.shared[0][:, :3] = 0.0  # three units of eight give zero
        actor.stack.shared[2][:, 0] *= 1e-4  # one of four hardly anything
    assert alive == 0.0
    assert float(dormant_share(actor.stack, obs, torch.arange(3))) == pytest.approx(4 / 12)


def test_parameter_norm_is_that_of_all_numbers_together():
    actor = build_actor(NetworkConfig(actor_widths=(8,)), suite(), generator())
    numbers = torch.cat([parameter.flatten() for parameter in actor.parameters()])
    assert float(parameter_norm(actor)) == pytest.approx(float(numbers.detach().norm()))


def test_expanded_weights_give_each_tasks_own_gradient():
    x = torch.randn(2, 3, 4, 5, generator=generator(), dtype=torch.float64)
    weight = torch.randn(2, 6, 5, generator=generator(1), dtype=torch.float64)
    bias = torch.randn(2, 6, generator=generator(2), dtype=torch.float64)
    leaves = [p.unsqueeze(1).expand(-1, 3, *p.shape[1:]).detach().requires_grad_() for p in (weight, bias)]
    losses = stacked_linear(x.flatten(1, 2), *leaves).unflatten(1, (3, 4)).square().mean(dim=(0, 2, 3))  # [task]
    grads = torch.autograd.grad(losses.sum(), leaves)
    for task in range(3):
        own = [p.clone().requires_grad_() for p in (weight, bias)]
        loss = stacked_linear(x[:, task], *own).square().mean()
        expected = torch.autograd.grad(loss, own)
        for grad, answer in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad[:, task], answer)


def test_per_task_product_has_right_first_and_second_derivatives():
    x = torch.randn(2, 3, 2, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 5, 4, generator=generator(1), dtype=torch.float64)
    weight = weight[:, :1].expand(-1, 3, -1, -1).clone().requires_grad_()
    bias = torch.zeros(2, 3, 5, dtype=torch.float64)

    def second_order(product):
        y = product(x, weight).pow(3).sum(dim=(0, 2, 3))  # [task]
        first = torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, weight))

    ours = second_order(lambda x, w: stacked_linear(x.flatten(1, 2), w, bias).unflatten(1, (3, 2)))
    plain = second_order(lambda x, w: torch.einsum("ntbi,ntoi->ntbo", x, w))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_log_probability_integrates_to_one_over_the_actions():
    mean, log_std = torch.tensor([0.4]), torch.tensor([-0.3])
    noise = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    action, log_prob = squashed_sample(mean.double(), log_std.double(), noise)
    inside = action.squeeze(1)
    total = torch.trapezoid(log_prob.exp(), inside)
    assert math.isclose(float(total), 1.0, abs_tol=1e-6)


def test_log_probability_equals_torch_distributions():
    mean, log_std, noise = torch.randn(3, 6, 4, generator=generator(), dtype=torch.float64)
    action, log_prob = squashed_sample(mean, log_std, noise)
    transforms = [torch.distributions.transforms.TanhTransform(cache_size=1)]
    reference = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), transforms)
    torch.testing.assert_close(log_prob, reference.log_prob(action).sum(dim=1))


def test_log_probability_stays_finite_far_out():
    _, log_prob = squashed_sample(torch.tensor([100.0]), torch.tensor([2.0]), torch.tensor([5.0]))
    assert torch.isfinite(log_prob)


def test_initial_weights_are_he_uniform_with_small_heads():
    actor = build_actor(NetworkConfig(actor_widths=(400, 400)), suite(num_tasks=3), generator()).requires_grad_(False)
    first, second = actor.stack.shared[0], actor.stack.shared[2]
    assert float(first.abs().max()) == pytest.approx(math.sqrt(6 / (5 + 3)), rel=1e-2)
    assert float(second.abs().max()) == pytest.approx(math.sqrt(6 / 400), rel=1e-2)
    assert not actor.stack.shared[1].any()
    assert float(actor.stack.private[0].abs().max()) <= 1e-3

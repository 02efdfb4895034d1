"""SAC's losses against numbers worked out by hand."""

import pytest
import torch

from mtrl.losses.sac import actor_loss, alpha_loss, critic_loss, td_target


def test_target_by_hand():
    target = td_target(
        reward=torch.tensor([[1.0, 1.0]]),
        terminated=torch.tensor([[0.0, 1.0]]),
        next_q=torch.tensor([[[10.0, 10.0]], [[8.0, 20.0]]]),
        next_log_prob=torch.tensor([[2.0, 2.0]]),
        alpha=torch.tensor([0.5]),
        gamma=0.9,
    )
    # 1 + 0.9 (min(10, 8) - 0.5 * 2) and a terminated step that is worth its reward only
    torch.testing.assert_close(target, torch.tensor([[7.3, 1.0]]))


def test_critic_loss_is_the_mean_over_critics_and_batch():
    q = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 2.0]]])  # [critic, task, batch]
    loss = critic_loss(q, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([(0 + 1 + 4 + 9) / 4, (0 + 0 + 0 + 4) / 4]))


def test_critic_loss_does_not_reach_the_target():
    target = torch.ones(1, 2, requires_grad=True)
    critic_loss(torch.zeros(2, 1, 2, requires_grad=True), target).sum().backward()
    assert target.grad is None


def test_actor_loss_by_hand():
    q = torch.tensor([[[1.0, 5.0]], [[2.0, 3.0]]])
    loss = actor_loss(q, log_prob=torch.tensor([[0.5, -0.5]]), alpha=torch.tensor([2.0]))
    torch.testing.assert_close(loss, torch.tensor([((1.0 - 1.0) + (-1.0 - 3.0)) / 2]))


def test_each_temperature_sees_its_own_task_only():
    log_alpha = torch.tensor([0.1, 0.2], requires_grad=True)
    log_prob = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    losses = alpha_loss(log_alpha, log_prob, target_entropy=-4.0)
    torch.testing.assert_close(losses.detach(), torch.tensor([-0.1 * (2 - 4), -0.2 * (6 - 4)]))
    (grad,) = torch.autograd.grad(losses[0], log_alpha)
    torch.testing.assert_close(grad, torch.tensor([2.0, 0.0]))


def test_temperature_rises_where_entropy_is_below_its_target():
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha_loss(log_alpha, torch.tensor([[10.0]]), target_entropy=-4.0).sum().backward()
    assert float(log_alpha.grad) < 0  # descent raises log alpha: log pi = 10 is an entropy of -10, below -4


@pytest.mark.parametrize("shape", [(2, 1, 4, 1), (2, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(AssertionError):
        critic_loss(torch.zeros(shape), torch.zeros(1, 4))

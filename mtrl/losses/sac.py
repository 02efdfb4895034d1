"""The losses of soft actor-critic for many tasks: pure functions, one number per task.

Soft Actor-Critic Algorithms and Applications (arXiv 1812.05905), with a temperature of its own for each task.
"""

from __future__ import annotations

from torch import Tensor


def td_target(
    reward: Tensor, terminated: Tensor, next_q: Tensor, next_log_prob: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """Returns the critics' target [task, batch] (Eq. 3 and 5 of arXiv 1812.05905, the smaller of the target critics).

    Args:
        reward: [task, batch], scaled.
        terminated: [task, batch], 1 where the episode terminated; a time limit is not a termination.
        next_q: [critic, task, batch], target critics at the next observation and an action drawn there.
        next_log_prob: [task, batch], of that action.
        alpha: [task].
        gamma: Discount of one step.
    """
    assert reward.dim() == 2
    assert reward.shape == terminated.shape == next_log_prob.shape == next_q.shape[1:]
    next_value = next_q.amin(dim=0) - alpha.unsqueeze(1) * next_log_prob  # [task, batch]
    discount = gamma * (1.0 - terminated)
    return reward + discount * next_value


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Returns the squared error, mean over critics and batch, [task].

    Args:
        q: [critic, task, batch].
        target: [task, batch], taken as a constant.
    """
    assert q.dim() == 3
    assert q.shape[1:] == target.shape
    return (q - target.detach()).square().mean(dim=(0, 2))


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """Returns the mean of alpha log pi - min Q, [task] (Eq. 7 of arXiv 1812.05905).

    Args:
        q: [critic, task, batch] at actions of the actor; its gradient reaches the actions.
        log_prob: [task, batch] of those actions.
        alpha: [task], taken as a constant.
    """
    assert q.dim() == 3
    assert q.shape[1:] == log_prob.shape
    return (alpha.detach().unsqueeze(1) * log_prob - q.amin(dim=0)).mean(dim=1)


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Returns -log alpha (log pi + target entropy), mean over the batch, [task].

    The published baselines take the gradient by log alpha where Eq. 18 of arXiv 1812.05905 has alpha itself.

    Args:
        log_alpha: [task].
        log_prob: [task, batch], taken as a constant.
        target_entropy: Nats.
    """
    assert log_alpha.shape == log_prob.shape[:1]
    return -log_alpha * (log_prob.detach().mean(dim=1) + target_entropy)

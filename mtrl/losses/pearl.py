"""The losses of PEARL: pure functions, one number for all sampled tasks together.

Probabilistic Embeddings for Actor-Critic RL (arXiv 1903.08254, Algorithm 1), with the numbers of the authors' code
(katerakelly/oyster), which rests on soft actor-critic with a value network (arXiv 1801.01290). The policy's loss is
`sac.actor_loss` with the temperature 1.
"""

from __future__ import annotations

from torch import Tensor


def kl_from_prior(mean: Tensor, variance: Tensor) -> Tensor:
    """Returns KL(posterior ‖ N(0, 1)), summed over tasks and latent dimensions, [].

    A sum as in the authors' code, so that its weight belongs to a number of tasks and of latent dimensions.

    Args:
        mean: [task, latent].
        variance: [task, latent].
    """
    assert mean.shape == variance.shape
    return 0.5 * (variance + mean.square() - 1.0 - variance.log()).sum()


def value_bootstrap(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """Returns the target of the Q-functions, [task, batch] (Eq. 8 of arXiv 1801.01290).

    Args:
        reward: [task, batch], scaled.
        terminated: [task, batch], 1 where the episode terminated; a time limit is not a termination.
        next_value: [task, batch], of the target network at the next observation.
        gamma: Discount of one step.
    """
    assert reward.dim() == 2
    assert reward.shape == terminated.shape == next_value.shape
    return reward + gamma * (1.0 - terminated) * next_value


def q_loss(q: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared errors of the two Q-functions, added, [].

    Twice the mean over both that `sac.critic_loss` takes: here the number weighs against the KL divergence.

    Args:
        q: [critic, task, batch].
        target: [task, batch], taken as a constant.
    """
    assert q.dim() == 3
    assert q.shape[1:] == target.shape
    return (q - target.detach()).square().mean(dim=(1, 2)).sum()


def value_loss(value: Tensor, q: Tensor, log_prob: Tensor) -> Tensor:
    """Returns the mean squared error of the values to min Q - log pi, [] (Eq. 5 of arXiv 1801.01290, without its 1/2).

    Args:
        value: [task, batch].
        q: [critic, task, batch], at actions of the policy, taken as a constant.
        log_prob: [task, batch], of these actions, taken as a constant.
    """
    assert value.shape == log_prob.shape == q.shape[1:]
    return (value - (q.amin(dim=0) - log_prob).detach()).square().mean()


def policy_regularization(
    mean: Tensor, log_std: Tensor, before: Tensor, of_mean: float, of_log_std: float, of_before: float
) -> Tensor:
    """Returns what keeps the policy's outputs small, [].

    Args:
        mean: [task, batch, action_dim].
        log_std: [task, batch, action_dim].
        before: [task, batch, action_dim], sampled actions before the tanh.
        of_mean: Weight of the mean's square.
        of_log_std: Weight of the log standard deviation's square.
        of_before: Weight of the square of `before`, summed over action dimensions.
    """
    on_outputs = of_mean * mean.square().mean() + of_log_std * log_std.square().mean()
    return on_outputs + of_before * before.square().sum(dim=-1).mean()

"""Surrogate losses of policy gradients, one number per slot. All per-step tensors are [slot, step], padding masked."""

from __future__ import annotations

import torch
from torch import Tensor


def log_prob_loss(log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Returns minus the mean of log pi x advantage, [slot]: its gradient is the policy gradient (REINFORCE).

    Its second derivative lacks the credit that adaptation gives to how its data were sampled (arXiv 1810.06784,
    section 5).
    """
    return -masked_mean(log_prob * advantage, mask)


def ratio_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Returns minus the mean of pi / pi_old x advantage, [slot].

    The surrogate of TRPO (arXiv 1502.05477, Eq. 14); as an inner loss of MAML the low variance curvature estimator of
    arXiv 1810.06784, Eq. 10.

    Args:
        log_prob: Under the policy to be changed.
        old_log_prob: Under the policy that acted, a constant.
        advantage: A constant.
        mask: bool, True where a step counts.
    """
    return -masked_mean((log_prob - old_log_prob).exp() * advantage, mask)


def clipped_ratio_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Returns minus the mean of min(r x advantage, clip(r, 1 - clip, 1 + clip) x advantage), [slot], r = pi / pi_old.

    The surrogate of PPO (arXiv 1707.06347, Eq. 7); arguments as of `ratio_loss`.
    """
    ratio = (log_prob - old_log_prob).exp()
    return -masked_mean(torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the steps that count, [slot]."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1)

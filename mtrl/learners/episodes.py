"""From collected episodes to what policy gradients learn from: samples, log-densities, advantages."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mtrl.config import OnPolicyConfig
from mtrl.data import Trajectories
from mtrl.learners.baseline import fit_linear_baseline, linear_values
from mtrl.losses.returns import discounted_returns, generalized_advantages, normalized


@dataclass(frozen=True)
class PolicyBatch:
    """Steps of whole episodes, all episodes of a slot one after the other; tensors on the learner's device."""

    obs: Tensor
    """float32 [slot, step, obs_dim]."""
    sample: Tensor
    """float32 [slot, step, action_dim], before it was cut off at the limits of actions."""
    log_prob: Tensor
    """float32 [slot, step], of the policy that acted."""
    advantage: Tensor
    """float32 [slot, step]."""
    mask: Tensor
    """bool [slot, step]; False is padding."""

    def slots(self, chosen: slice) -> PolicyBatch:
        """Returns only some slots."""
        return PolicyBatch(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def chosen(self, index: Tensor, valid: Tensor) -> PolicyBatch:
        """Returns some steps of each slot.

        Args:
            index: int64 [slot, chosen], which steps.
            valid: bool [slot, chosen]; False makes padding of a step.
        """
        slots = torch.arange(len(index), device=index.device).unsqueeze(1)
        picked = {f.name: getattr(self, f.name)[slots, index] for f in fields(self)}
        return PolicyBatch(**{**picked, "mask": picked["mask"] & valid})

    def thinned(self, share: float) -> PolicyBatch:
        """Returns about that share of the steps, evenly spaced."""
        if share >= 1.0:
            return self
        count = max(1, round(share * self.mask.shape[1]))
        chosen = torch.linspace(0, self.mask.shape[1] - 1, count, device=self.mask.device).round().long()
        return PolicyBatch(*(getattr(self, f.name)[:, chosen] for f in fields(self)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def policy_batch(trajectories: Trajectories, config: OnPolicyConfig, device: torch.device) -> PolicyBatch:
    """Returns what to learn from episodes [slot, episode, step, ...].

    The baseline is fitted to each slot by itself and knows the time, so returns are of finite horizon: what comes after
    the time limit counts for nothing, in them as in the success that evaluation measures.
    """
    obs = torch.from_numpy(trajectories.obs).to(device)
    reward, mask, terminated = (
        torch.from_numpy(array).to(device)
        for array in (trajectories.reward, trajectories.mask, trajectories.terminated)
    )
    slots, episodes, steps = mask.shape

    def rows(tensor: Tensor) -> Tensor:
        return tensor.reshape(slots * episodes, steps)

    returns = discounted_returns(rows(reward), rows(mask), config.gamma).view_as(reward)
    value = linear_values(obs, fit_linear_baseline(obs, returns, mask)) * mask
    next_value = torch.cat([value[:, :, 1:], torch.zeros_like(value[:, :, :1])], dim=2)
    advantage = generalized_advantages(
        rows(reward), rows(value), rows(next_value), rows(terminated), rows(mask), config.gamma, config.gae_lambda
    ).view_as(reward)
    if config.normalize_advantages:
        advantage = normalized(advantage, mask, dim=(1, 2))
    sample, log_prob = (torch.from_numpy(trajectories.extras[name]).to(device) for name in ("sample", "log_prob"))
    return PolicyBatch(
        obs.flatten(1, 2), sample.flatten(1, 2), log_prob.flatten(1, 2), advantage.flatten(1, 2), mask.flatten(1, 2)
    )

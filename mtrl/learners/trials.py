"""From collected trials of RL² to what PPO learns from: inputs of the network, samples, advantages.

A trial is several episodes of one sampled task, laid one after the other in a row; nothing ends where an episode does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mtrl.config import OnPolicyConfig, Rl2Config, RunConfig
from mtrl.data import Array, Block
from mtrl.learners.baseline import fit_linear_baseline, linear_values
from mtrl.losses.returns import discounted_returns, generalized_advantages, normalized


@dataclass(frozen=True)
class TrialBatch:
    """One whole trial of each slot, padded at its end to the longest; tensors on the learner's device."""

    inputs: Tensor
    """float32 [slot, step, in_features], see `network_inputs`."""
    sample: Tensor
    """float32 [slot, step, action_dim], before it was cut off at the limits of actions."""
    log_prob: Tensor
    """float32 [slot, step], of the policy that acted."""
    advantage: Tensor
    """float32 [slot, step]."""
    mask: Tensor
    """bool [slot, step]; False is padding."""
    episode_return: Tensor
    """float32 [slot, episode], undiscounted sum of raw rewards."""

    def slots(self, chosen: Tensor) -> TrialBatch:
        """Returns only some slots."""
        return TrialBatch(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def network_inputs(obs: Tensor, previous: Tensor, reward_scale: float) -> Tensor:
    """Returns what a network of RL² sees, [..., obs_dim + action_dim + 2]: observation, last action, reward and done.

    The reward is scaled by a constant, so that it looks the same at meta-test as in training.

    Args:
        obs: [..., obs_dim].
        previous: [..., action_dim + 2], action, raw reward and done of the step before.
        reward_scale: Factor on the reward.
    """
    action, reward, done = previous[..., :-2], previous[..., -2:-1], previous[..., -1:]
    return torch.cat([obs, action, reward_scale * reward, done], dim=-1)


def step_summary(block: Block) -> Array:
    """Returns what the network sees of each step at the next one, float32 [step, env, action_dim + 2].

    Done is 1 where an episode ended, by its time limit too: the policy must know that it stands elsewhere now.
    """
    done = (block.terminated | block.truncated).astype(np.float32)
    return np.concatenate([block.action, block.reward[..., np.newaxis], done[..., np.newaxis]], axis=-1)


def trial_batch(blocks: Sequence[Block], config: RunConfig, num_tasks: int, device: torch.device) -> TrialBatch:
    """Returns what to learn from blocks that hold one trial of each slot; slot i is of task class i mod num_tasks.

    Raises:
        ValueError: If they do not hold one trial of each slot.
    """
    _refuse_other_than_one_trial(blocks, config.meta.batch_size)

    def laid_out(pick: Callable[[Block], Array]) -> Tensor:
        return torch.from_numpy(_rows(blocks, pick)).to(device)

    reward, mask, summary = laid_out(lambda b: b.reward), laid_out(lambda b: b.valid), laid_out(step_summary)
    previous = torch.cat([torch.zeros_like(summary[:, :1]), summary[:, :-1]], dim=1)
    inputs = network_inputs(laid_out(lambda b: b.obs), previous, config.rl2.reward_scale)
    return TrialBatch(
        inputs=inputs,
        sample=laid_out(lambda b: b.extras["sample"]),
        log_prob=laid_out(lambda b: b.extras["log_prob"]),
        advantage=trial_advantages(inputs, reward, mask, num_tasks, config.on_policy, config.rl2),
        mask=mask,
        episode_return=_episode_returns(reward, summary[..., -1], mask, config.meta.episodes),
    )


def trial_advantages(
    inputs: Tensor, reward: Tensor, mask: Tensor, num_tasks: int, on_policy: OnPolicyConfig, rl2: Rl2Config
) -> Tensor:
    """Returns advantages that run through the episodes of a trial and stop at its end, [slot, step].

    What later episodes bring counts for the earlier ones, as far as the discount reaches, and the baseline's time is
    that of the trial. A step that ended an episode has the value of the trial's next step after it, and the last step
    of the trial none: a trial is of finite length, and the baseline knows the time.

    Args:
        inputs: [slot, step, in_features], which the baseline sees as the network does: the last reward says where the
            task is.
        reward: [slot, step].
        mask: bool [slot, step], False in padding.
        num_tasks: Number of task classes; slot i is of class i mod num_tasks.
        on_policy: Discount and lambda; advantages are normalised over the trials that share a baseline.
        rl2: What shares a baseline.
    """
    slots = len(inputs)
    groups = {"all": 1, "class": num_tasks, "trial": slots}[rl2.baseline]

    def grouped(rows: Tensor) -> Tensor:
        """Returns [slot, ...] as [group, row, ...]; slots of a group lie `groups` apart."""
        return rows.reshape(slots // groups, groups, *rows.shape[1:]).transpose(0, 1)

    def ungrouped(rows: Tensor) -> Tensor:
        return rows.transpose(0, 1).reshape(slots, *rows.shape[2:])

    returns = discounted_returns(reward, mask, on_policy.gamma)
    coefficients = fit_linear_baseline(grouped(inputs), grouped(returns), grouped(mask))
    value = ungrouped(linear_values(grouped(inputs), coefficients)) * mask
    next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    nowhere = torch.zeros_like(mask)
    advantage = generalized_advantages(reward, value, next_value, nowhere, mask, on_policy.gamma, on_policy.gae_lambda)
    if on_policy.normalize_advantages:
        advantage = ungrouped(normalized(grouped(advantage), grouped(mask), dim=(1, 2)))
    return advantage


def _episode_returns(reward: Tensor, done: Tensor, mask: Tensor, num_episodes: int) -> Tensor:
    """Returns the return of each episode of the trials, [slot, episode]."""
    episode = done.cumsum(dim=1) - done  # [slot, step], number of the step's episode
    found = [torch.where(mask & (episode == number), reward, 0.0).sum(dim=1) for number in range(num_episodes)]
    return torch.stack(found, dim=1)


def _rows(blocks: Sequence[Block], pick: Callable[[Block], Array]) -> Array:
    """Returns arrays [step, env, ...] of all blocks as [slot, step, ...], with zeros at the end of shorter ones."""
    longest = max(len(block.obs) for block in blocks)
    arrays = [pick(block) for block in blocks]
    padded = [np.pad(array, [(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)]) for array in arrays]
    order = np.argsort(np.concatenate([block.slot[0] for block in blocks]))
    return np.concatenate(padded, axis=1)[:, order].swapaxes(0, 1)


def _refuse_other_than_one_trial(blocks: Sequence[Block], num_slots: int) -> None:
    slots = np.concatenate([block.slot[0] for block in blocks])
    if sorted(slots) != list(range(num_slots)):
        raise ValueError(f"trials of the slots {sorted(slots.tolist())}; expected one of each of {num_slots}")
    for block in blocks:
        for env, slot in enumerate(block.slot[0]):
            trials = np.unique(block.trial_id[block.valid[:, env], env])
            if len(trials) != 1:
                raise ValueError(f"slot {slot} holds the trials {trials.tolist()}; expected one")

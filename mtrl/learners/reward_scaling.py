"""Scales of the reward, owned by the learner and applied when a batch is sampled: none, a constant, or per task."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from mtrl.config import SacConfig
from mtrl.data import Array, Block


class RewardScaling:
    """Gives the factor of each task's reward.

    `per_task_return` divides by the largest absolute discounted return seen in the task: the return from any step of an
    episode to its end, over the rewards that were collected (no bootstrap at a time limit). The idea is that of BRC
    (arXiv 2505.23150), which adds an entropy term to the return; this one does not.
    """

    def __init__(self, config: SacConfig, num_tasks: int) -> None:
        self._config = config
        self.largest_return = np.zeros(num_tasks)
        """[task], largest absolute discounted return seen."""
        self._rewards: dict[str, list[float]] = {}
        """Worker and environment → rewards of its unfinished episode."""
        self._episodes: dict[str, int] = {}
        """Worker and environment → number of that episode."""

    def observe(self, block: Block) -> None:
        """Takes in the rewards of a block."""
        if self._config.reward_scaling != "per_task_return":
            return
        done = block.terminated | block.truncated
        for env in range(block.reward.shape[1]):
            rewards = self._rewards.setdefault(f"{block.worker}/{env}", [])
            for step in np.flatnonzero(block.valid[:, env]):
                episode = int(block.episode_id[step, env])
                if self._episodes.get(f"{block.worker}/{env}") != episode:  # the last one may have been cut off
                    rewards.clear()
                    self._episodes[f"{block.worker}/{env}"] = episode
                rewards.append(float(block.reward[step, env]))
                if done[step, env]:
                    task = int(block.task_id[step, env])
                    largest = largest_discounted_return(rewards, self._config.gamma)
                    self.largest_return[task] = max(self.largest_return[task], largest)
                    rewards.clear()

    def factors(self) -> Array:
        """Returns the factor of each task's reward, float32 [task]; reward_scale until a task's first episode ends."""
        if self._config.reward_scaling == "per_task_return":
            seen = np.where(self.largest_return > 0.0, self.largest_return, 1.0)
            return (self._config.reward_scale / seen).astype(np.float32)
        return np.full(len(self.largest_return), self._config.reward_scale, np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Returns JSON-able state."""
        return {
            "largest_return": self.largest_return.tolist(),
            "rewards": copy.deepcopy(self._rewards),
            "episodes": dict(self._episodes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self.largest_return = np.asarray(state["largest_return"])
        self._rewards, self._episodes = copy.deepcopy(state["rewards"]), dict(state["episodes"])

    def forget_unfinished(self) -> None:
        """Drops the rewards of unfinished episodes, which nothing will finish."""
        self._rewards = {}


def largest_discounted_return(rewards: list[float], gamma: float) -> float:
    """Returns the largest absolute discounted sum of rewards from any step to the end."""
    value, largest = 0.0, 0.0
    for reward in reversed(rewards):
        value = reward + gamma * value
        largest = max(largest, abs(value))
    return largest

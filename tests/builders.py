"""Small objects for tests: configurations, suites, learners with a filled replay, environments with known answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from mtrl.config import (
    CheckpointConfig,
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    ReplayConfig,
    RunConfig,
    SacConfig,
    SurgeryConfig,
)
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.learners.protocol import PolicyStep
from mtrl.networks.build import Suite


def tiny_config(**changes: Any) -> RunConfig:
    """Returns a toy run of seconds; `changes` are fields of RunConfig."""
    config = RunConfig(
        name="tiny",
        total_env_steps=400,
        log_every_env_steps=100,
        device="cpu",
        env=EnvConfig(benchmark="toy", max_episode_steps=20, num_goals=4),
        network=NetworkConfig(actor_widths=(16, 16), critic_widths=(16, 16)),
        sac=SacConfig(batch_size=8, samples_per_insert=8.0, warmup_steps_per_task=10),
        replay=ReplayConfig(capacity_per_task=1000),
        eval=EvalConfig(every_env_steps=0, goals=2, final_goals=4),
        checkpoint=CheckpointConfig(every_env_steps=0),
    )
    return dataclasses.replace(config, **changes)


def run_in(folder: Path, **changes: Any) -> RunConfig:
    """Returns a toy run whose run directory is made in `folder`."""
    return tiny_config(runs_dir=str(folder), **changes)


def suite(num_tasks: int = 3, obs_dim: int = 5, action_dim: int = 2) -> Suite:
    """Returns a suite that needs no environments."""
    return Suite(tuple(f"task-{task}" for task in range(num_tasks)), obs_dim, action_dim)


def filled_learner(
    num_tasks: int = 3, method: str = "mean", architecture: str = "multi_head", **sac: Any
) -> MultiTaskSac:
    """Returns a learner with random transitions in its replay that may always update."""
    config = tiny_config(
        network=NetworkConfig(architecture=architecture, actor_widths=(16, 16), critic_widths=(16, 16)),
        surgery=SurgeryConfig(method=method),
        sac=SacConfig(batch_size=8, **sac),
    )
    learner = MultiTaskSac(config, suite(num_tasks), torch.device("cpu"))
    draws = np.random.default_rng(0)
    for task in range(num_tasks):
        learner.replay.add(
            task,
            obs=draws.normal(size=(50, 5)),
            action=draws.uniform(-1, 1, (50, 2)),
            reward=draws.uniform(0, 10, 50),
            next_obs=draws.normal(size=(50, 5)),
            terminated=draws.integers(0, 2, 50),
        )
    learner.env_steps = 10**9
    return learner


class CountingEnvs:
    """Environments whose observation is [environment, episode, step of the episode]; every reward is 1.

    An episode is truncated after `horizon` steps, or terminated at its first step if `terminates`. Success comes at the
    step with number `success_at`.
    """

    single_action_space = Box(-1.0, 1.0, (2,), np.float32)
    single_observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    most_steps_at_once = 0

    def __init__(self, num_envs: int = 2, horizon: int = 3, success_at: int = 1, *, terminates: bool = False) -> None:
        self.num_envs = num_envs
        self.task_id = np.arange(num_envs, dtype=np.int32)
        self.goal_id = np.zeros(num_envs, np.int32)
        self.horizon, self.success_at, self.terminates = horizon, success_at, terminates
        self.episode = np.full(num_envs, -1)
        self.count = np.zeros(num_envs, int)
        self.actions: list[np.ndarray] = []

    def assign(self, assignments: Any) -> None:
        self.task_id = np.array([assignment.task_id for assignment in assignments], np.int32)

    def set_active(self, active: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode = self.episode + 1
        self.count[:] = 0
        return self._obs(), {}

    def step(
        self, actions: np.ndarray, *, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.actions.append(actions.copy())
        success = (self.count == self.success_at).astype(float)
        self.count += 1
        terminated = np.full(self.num_envs, self.terminates)
        truncated = (self.count >= self.horizon) & ~terminated
        done = terminated | truncated
        infos: dict[str, Any] = {"success": success}
        if done.any():
            ended = [obs if end else None for obs, end in zip(self._obs(), done, strict=True)]
            infos["final_obs"] = np.array(ended, object)
            infos["final_info"] = {"success": success.copy()}
            self.episode = self.episode + done
            self.goal_id = self.goal_id + done.astype(np.int32)
            self.count[done] = 0
        obs = self._obs()
        if out is not None:
            out[:] = obs
        return obs if out is None else out, np.ones(self.num_envs), terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        return {"episode": self.episode.copy(), "count": self.count.copy(), "goal_id": self.goal_id.copy()}

    def set_state(self, state: Any) -> None:
        self.episode, self.count = state["episode"].copy(), state["count"].copy()
        self.goal_id = state["goal_id"].copy()

    def _obs(self) -> np.ndarray:
        return np.stack([np.arange(self.num_envs), self.episode, self.count], axis=1).astype(float)


class StandingStill:
    """A policy of two action dimensions that does nothing."""

    def load(self, weights: Any) -> None:
        pass

    def initial_state(self, num_envs: int) -> None:
        return None

    def begin(self, state: Any, mask: Any, boundary: Any) -> None:
        return None

    def act(self, obs: Any, previous: Any, state: Any, slot: Any, mode: Any, generator: Any) -> PolicyStep:
        return PolicyStep(torch.zeros(len(obs), 2), None, {})

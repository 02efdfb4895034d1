"""Laws of the vector environment over metaworld's own classes: same numbers, episodes, state."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import metaworld
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task

import envs
from envs import snapshots
from envs.benchmarks import ALL_TASKS
from envs.episodes import Assignment

# Tasks whose resets or rewards look at live data, simulate between writes, or keep numbers from step to step.
TRICKY_TASKS = (
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "door-lock-v3",
    "door-unlock-v3",
    "drawer-close-v3",
    "pick-place-v3",
    "push-back-v3",
    "reach-v3",
    "shelf-place-v3",
    "soccer-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-close-v3",
)
NUM_STEPS = 150


def actions(num_steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    """Returns float32 [step, env, action]; the first half pushes down and forward, so that things are touched."""
    action = np.random.default_rng(seed).uniform(-1, 1, (num_steps, num_envs, 4)).astype(np.float32)
    action[: num_steps // 2, :, 1] += 0.4
    action[: num_steps // 2, :, 2] -= 0.4
    return np.clip(action, -1, 1)


def plain_metaworld(
    task_name: str, goal: np.ndarray, reward_version: str = "v2", *, goal_visible: bool = True
) -> Any:
    """Returns an object of metaworld's class with the goal set in metaworld's own way."""
    task_class = ALL_V3_ENVIRONMENTS[task_name]
    env = task_class(reward_function_version=reward_version)
    fields = {"rand_vec": goal.copy(), "env_cls": task_class, "partially_observable": not goal_visible}
    env.set_task(metaworld._encode_task(task_name, fields))
    assert isinstance(metaworld._encode_task(task_name, fields), Task)
    return env


def check_equal_to_metaworld(task_name: str, reward_version: str, benchmark: str = "custom") -> None:
    """Restores a start state that was made for another episode, runs, and compares every number."""
    keywords: dict[str, Any] = {"tasks": [task_name], "reward_version": reward_version, "num_goals": 2}
    goal_visible = benchmark == "custom"
    assignments = [Assignment(0, (1, 0, 1), "cycle")]
    env = envs.make(benchmark, assignments=assignments, max_episode_steps=40, **keywords)
    goals = env._simulator._goals[0]  # type: ignore[attr-defined]
    env.reset()
    for action in actions(80, 1, seed=1):  # two episodes; the third one begins from a restored state
        obs, *_ = env.step(action)
    env.set_state(env.get_state())
    env.max_episode_steps = 500
    plain = plain_metaworld(task_name, goals[1], reward_version, goal_visible=goal_visible)
    plain_obs, _ = plain.reset()
    assert env.goal_id.tolist() == [1]
    np.testing.assert_array_equal(obs[0], plain_obs)
    for action in actions(NUM_STEPS, 1):
        obs, reward, _, _, infos = env.step(action)
        plain_obs, plain_reward, _, _, plain_info = plain.step(action[0])
        np.testing.assert_array_equal(obs[0], plain_obs)
        assert reward[0] == plain_reward
        assert {key: infos[key][0] for key in plain_info} == {key: float(v) for key, v in plain_info.items()}
    env.close()
    plain.close()


@pytest.mark.parametrize("task_name", TRICKY_TASKS)
def test_restored_start_runs_as_a_real_reset_of_metaworld(task_name: str) -> None:
    check_equal_to_metaworld(task_name, "v2")


def test_hidden_goal_runs_as_metaworld() -> None:
    check_equal_to_metaworld("sweep-into-v3", "v2", "ML1")


@pytest.mark.slow
@pytest.mark.parametrize("reward_version", ["v1", "v2"])
@pytest.mark.parametrize("task_name", ALL_TASKS)
def test_every_task_runs_as_metaworld(task_name: str, reward_version: str) -> None:
    check_equal_to_metaworld(task_name, reward_version)
    if reward_version == "v2":
        check_equal_to_metaworld(task_name, reward_version, "ML1")

"""Evaluation: a policy on environments of its own, every goal once, and the estimates made from the episodes.

Training never touches evaluation state and evaluation never changes training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import torch

from envs.episodes import Assignment
from mtrl.config import RunConfig
from mtrl.data import Array, Episodes
from mtrl.learners.build import build_policy
from mtrl.learners.protocol import Boundary, Mode, Policy, Previous
from mtrl.networks.build import Suite
from mtrl.rollout.build import build_envs, shares
from mtrl.rollout.collector import EpisodeTracker, success_of_step
from mtrl.seeding import numpy_generator, stream_seed, torch_generator

METAWORLD_EPISODES = 50
"""Episodes per task of metaworld's own `evaluation()`."""


class Evaluator:
    """Runs a worker's share of evaluations; its environments are built at the first one and kept."""

    def __init__(self, config: RunConfig, suite: Suite, worker: int = 0, num_workers: int = 1) -> None:
        self._config, self._suite = config, suite
        self._worker, self._num_workers = worker, num_workers
        self._policy = build_policy(config, suite)
        self._envs: Any = None
        self._stopped = False

    def run(self, weights: Mapping[str, Array], num_goals: int) -> Episodes:
        """Runs the policy once on each of the first `num_goals` goals of every task of this share.

        Raises:
            CancelledError: If another thread called `stop`.
        """
        assignments = self._assignments(num_goals)
        if not assignments:
            return Episodes.empty()
        if self._envs is None or self._envs.num_envs != len(assignments):
            self.close()
            stop = self._config.eval.stop_at_success
            self._envs = build_envs(self._config, assignments, terminate_on_success=stop)
        self._envs.assign(assignments)
        self._policy.load(weights)
        seed = self._config.seed
        return run_episodes(
            self._envs,
            self._policy,
            np.array([len(assignment.goals) for assignment in assignments]),
            torch_generator(seed, "evaluation noise", self._worker),
            stream_seed(seed, "evaluation goals", self._worker),
            lambda: self._stopped,
            evaluation_mode(self._config),
        )

    def stop(self) -> None:
        """Ends a run in another thread, at its next step, for good."""
        self._stopped = True

    def close(self) -> None:
        """Closes the environments."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def _assignments(self, num_goals: int) -> list[Assignment]:
        copies = min(self._config.eval.copies, num_goals)
        everything = [
            Assignment(task, tuple(range(copy, num_goals, copies)), order="cycle")
            for copy in range(copies)
            for task in range(self._suite.num_tasks)
        ]
        return [everything[env] for env in shares(self._config, everything, self._num_workers)[self._worker]]


def evaluation_mode(config: RunConfig) -> Mode:
    """Returns how actions are chosen in episodes that count."""
    return Mode.DETERMINISTIC if config.eval.deterministic else Mode.EXPLORE


def run_episodes(
    envs: Any,
    policy: Policy,
    num_episodes: Array,
    generator: torch.Generator,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    mode: Mode = Mode.DETERMINISTIC,
) -> Episodes:
    """Runs `num_episodes` [env] episodes in each environment; those that are done stand still.

    Returns:
        The episodes in the order in which they ended.

    Raises:
        CancelledError: If `stopped`, asked before every step, says so.
    """
    obs = envs.reset(seed=seed)[0]
    slot = torch.from_numpy(envs.task_id.astype(np.int64))
    state = policy.initial_state(envs.num_envs)
    previous = Previous(
        torch.zeros(envs.num_envs, envs.single_action_space.shape[0]),
        torch.zeros(envs.num_envs),
        torch.zeros(envs.num_envs),
    )
    tracker = EpisodeTracker(envs.num_envs)
    left = np.array(num_episodes)
    finished: list[Episodes] = []
    while (left > 0).any():
        if stopped():
            raise CancelledError
        valid = left > 0
        envs.set_active(valid)
        answer = policy.act(torch.from_numpy(obs.astype(np.float32)), previous, state, slot, mode, generator)
        goal_id = envs.goal_id.copy()
        obs, reward, terminated, truncated, infos = envs.step(answer.action.numpy())
        done = (terminated | truncated) & valid
        success = success_of_step(infos, done)
        finished.append(tracker.step(reward, success, done, valid, envs.task_id, goal_id, envs.task_id))
        # every episode is judged by itself: what came before it is forgotten
        over = torch.from_numpy(done)
        previous = Previous(
            torch.where(over.unsqueeze(1), 0.0, answer.action),
            torch.where(over, 0.0, torch.from_numpy(reward.astype(np.float32))),
            torch.zeros(envs.num_envs),
        )
        state = policy.begin(answer.state, over, Boundary.TRIAL)
        left -= done
    envs.set_active(np.ones(envs.num_envs, bool))
    return Episodes.concatenate(finished)


def estimates(episodes: Episodes, task_names: tuple[str, ...], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Estimates per task what the episodes say, by two rules.

    `mtrl` counts every episode. `metaworld` is the rule of metaworld's own `evaluation()`: 50 episodes per task whose
    goals are drawn with replacement, here from the episodes that were run, as policy and environment are deterministic.

    Args:
        episodes: Each goal of each task once.
        task_names: Name of each task id.
        seed: Seed of the draws with replacement.

    Returns:
        estimator → quantity → task name → value.
    """
    draws = numpy_generator(seed, "metaworld estimator")
    mtrl: dict[str, dict[str, float]] = {"success": {}, "return": {}, "length": {}, "last_step_success": {}}
    drawn: dict[str, float] = {}
    for task, name in enumerate(task_names):
        mine = episodes.task_id == task
        success = episodes.success[mine]
        mtrl["success"][name] = float(success.mean())
        mtrl["return"][name] = float(episodes.returns[mine].mean())
        mtrl["length"][name] = float(episodes.length[mine].mean())
        mtrl["last_step_success"][name] = float(episodes.last_step_success[mine].mean())
        drawn[name] = float(draws.choice(success, METAWORLD_EPISODES).mean())
    return {"mtrl": mtrl, "metaworld": {"success": drawn}}


def mean_success(estimate: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the mean over tasks of the success of one estimator."""
    return float(np.mean(list(estimate["success"].values())))


def episode_records(episodes: Episodes, task_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns one JSON-able record per episode, ordered by task, goal and adaptation."""
    order = np.lexsort((episodes.adapted, episodes.goal_id, episodes.task_id))
    return [
        {
            "task": task_names[episodes.task_id[i]],
            "goal": int(episodes.goal_id[i]),
            "return": float(episodes.returns[i]),
            "length": int(episodes.length[i]),
            "success": bool(episodes.success[i]),
            "last_step_success": bool(episodes.last_step_success[i]),
            "first_success_step": int(episodes.first_success_step[i]),
            "adapted": int(episodes.adapted[i]),
        }
        for i in order
    ]

"""Meta-evaluation: a policy adapts to each goal by itself, then shows what it can; training and held-out tasks apart.

For each goal of each task: `meta.adaptation_episodes` with exploration, then `meta.test_episodes` that count. Nothing
that is learned here comes back to training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import torch

from envs.benchmarks import Split
from envs.episodes import Assignment
from mtrl.config import RunConfig
from mtrl.data import Array, Episodes
from mtrl.evaluation import evaluation_mode
from mtrl.learners.build import build_adapter, build_policy
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.networks.build import Suite
from mtrl.rollout.build import build_envs, shares
from mtrl.rollout.collector import Collector
from mtrl.seeding import stream_seed, torch_generator

MOST_AT_ONCE = 50
"""Goals that are adapted to together: each has parameters and episodes of its own in memory."""
METAWORLD_BATCH = 20
"""Environments of metaworld's own meta-evaluation, which share the task classes evenly."""
METAWORLD_EPISODES = 3
"""Episodes of each task class that count there, of all its environments together."""


class MetaEvaluator:
    """Runs a worker's share of meta-evaluations; environments are built at the first one and kept.

    In the episodes that it returns, test tasks have the ids after those of the training tasks.
    """

    def __init__(self, config: RunConfig, suite: Suite, worker: int = 0, num_workers: int = 1) -> None:
        self._config, self._suite = config, suite
        self._worker, self._num_workers = worker, num_workers
        self._adapter = build_adapter(config, suite)
        self._envs: dict[Split, Any] = {}
        self._stopped = False

    def run(self, weights: Mapping[str, Array], num_goals: int) -> Episodes:
        """Adapts to the first `num_goals` goals of every task of this share, and returns the episodes that count.

        Raises:
            CancelledError: If another thread called `stop`.
        """
        found = []
        splits: tuple[tuple[Split, int], ...] = (("train", 0), ("test", self._suite.num_tasks))
        for split, first_id in splits:
            names = self._suite.task_names if split == "train" else self._suite.test_task_names
            everything = [Assignment(task, (goal,)) for goal in range(num_goals) for task in range(len(names))]
            mine = [everything[env] for env in shares(self._config, everything, self._num_workers, names)[self._worker]]
            generator = torch_generator(self._config.seed, "evaluation noise", self._worker, first_id)
            for begin in range(0, len(mine), MOST_AT_ONCE):
                chunk = mine[begin : begin + MOST_AT_ONCE]
                episodes = self._run_together(split, chunk, min(len(mine), MOST_AT_ONCE), weights, generator)
                found.append(dataclasses.replace(episodes, task_id=episodes.task_id + np.int32(first_id)))
        return Episodes.concatenate(found)

    def stop(self) -> None:
        """Ends a run in another thread, before its next request, for good."""
        self._stopped = True

    def close(self) -> None:
        """Closes the environments."""
        for envs in self._envs.values():
            envs.close()
        self._envs = {}

    def _run_together(
        self,
        split: Split,
        chunk: Sequence[Assignment],
        num_envs: int,
        weights: Mapping[str, Array],
        generator: torch.Generator,
    ) -> Episodes:
        """Adapts to the goals of a chunk, one environment each, and returns the test episodes."""
        padded = [*chunk, *[chunk[0]] * (num_envs - len(chunk))]  # the number of environments stays
        runs = _Runs(self._config, self._suite, self._environments(split, padded), padded, generator)
        meta = self._config.meta
        explore = self._adapter.begin(weights, num_envs)
        found: list[Episodes] = []
        observed = 0
        for point in sorted({*meta.curve, meta.adaptation_episodes}):
            while observed < point:
                self._refuse_if_stopped()
                together = 1 if self._adapter.every_episode else point - observed
                explore = self._adapter.observe(runs.explore(explore, together))
                observed += together
            self._refuse_if_stopped()
            episodes = runs.test(self._adapter.adapt(), meta.test_episodes, self._config.eval.stop_at_success)
            found.append(dataclasses.replace(episodes, adapted=np.full(len(episodes), point, np.int32)))
        episodes = Episodes.concatenate(found)
        return episodes.where(episodes.env < len(chunk))

    def _environments(self, split: Split, assignments: list[Assignment]) -> Any:
        if split in self._envs and self._envs[split].num_envs != len(assignments):
            self._envs.pop(split).close()
        if split not in self._envs:
            self._envs[split] = build_envs(self._config, assignments, terminate_on_success=False, split=split)
        self._envs[split].assign(assignments)
        return self._envs[split]

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise CancelledError


class _Runs:
    """Collects episodes of one chunk with whatever weights."""

    def __init__(
        self, config: RunConfig, suite: Suite, envs: Any, assignments: Sequence[Assignment], generator: torch.Generator
    ) -> None:
        self._envs, self._assignments, self._test_mode = envs, tuple(assignments), evaluation_mode(config)
        envs.call("toggle_terminate_on_success", False)
        seeds = [stream_seed(config.seed, "evaluation goals", env) for env in range(len(assignments))]
        self._collector = Collector(envs, build_policy(config, suite), generator, seeds)
        self._version = 0

    def explore(self, weights: Mapping[str, Array], num_episodes: int) -> Any:
        """Returns a block of so many episodes in each environment, one trial."""
        return self._collect(weights, Unit.TRIALS, 1, Mode.EXPLORE, num_episodes)

    def test(self, weights: Mapping[str, Array], num_episodes: int, stop_at_success: bool) -> Episodes:
        """Returns so many episodes of each environment, which count."""
        self._envs.call("toggle_terminate_on_success", stop_at_success)
        episodes: Episodes = self._collect(weights, Unit.EPISODES, num_episodes, self._test_mode).episodes
        self._envs.call("toggle_terminate_on_success", False)
        return episodes

    def _collect(
        self, weights: Mapping[str, Array], unit: Unit, amount: int, mode: Mode, episodes_per_trial: int = 1
    ) -> Any:
        self._version += 1
        return self._collector.collect(
            CollectRequest(
                weights=weights,
                version=self._version,
                unit=unit,
                amount=amount,
                mode=mode,
                assignments=self._assignments,
                slots=tuple(range(len(self._assignments))),
                episodes_per_trial=episodes_per_trial,
            )
        )


def meta_estimates(episodes: Episodes, config: RunConfig, suite: Suite) -> dict[str, Any]:
    """Estimates what a meta-evaluation says, by two rules, for test and training tasks apart.

    `mtrl` counts every test episode of the fully adapted policy. `metaworld` is the rule of metaworld's own
    `metalearning_evaluation()`: of the environments that share a task class, those that finish first make up the three
    episodes that count, and successes finish first; so it reports more. `bias` is their difference.

    Args:
        episodes: From `MetaEvaluator`.
        config: Of the run.
        suite: Of its environments.

    Returns:
        `estimators` of the test tasks, and `train_tasks`, the same of the training tasks: estimator → quantity → task
        name → value; `curve`: test or train → number of adaptation episodes → mean success over tasks.
    """
    last = config.meta.adaptation_episodes
    splits = {"test": (suite.num_tasks, suite.test_task_names), "train": (0, suite.task_names)}
    found = {
        split: {
            "mtrl": _per_task(episodes.where(episodes.adapted == last), first_id, names),
            "metaworld": {"success": _first_finished(episodes, last, first_id, names, config.env.max_episode_steps)},
        }
        for split, (first_id, names) in splits.items()
    }
    curve = {
        split: {
            str(point): float(
                np.mean(list(_per_task(episodes.where(episodes.adapted == point), first_id, names)["success"].values()))
            )
            for point in np.unique(episodes.adapted)
        }
        for split, (first_id, names) in splits.items()
    }
    return {"estimators": found["test"], "train_tasks": found["train"], "curve": curve}


def _per_task(episodes: Episodes, first_id: int, names: Sequence[str]) -> dict[str, dict[str, float]]:
    columns = {
        "success": episodes.success,
        "return": episodes.returns,
        "length": episodes.length,
        "last_step_success": episodes.last_step_success,
    }
    return {
        quantity: {name: float(column[episodes.task_id == first_id + task].mean()) for task, name in enumerate(names)}
        for quantity, column in columns.items()
    }


def _first_finished(
    episodes: Episodes, adapted: int, first_id: int, names: Sequence[str], max_steps: int
) -> dict[str, float]:
    """Returns success by metaworld's rule: groups of environments of a class, whose first three episodes count."""
    group = max(1, METAWORLD_BATCH // len(names))
    found = {}
    for task, name in enumerate(names):
        mine = episodes.where((episodes.adapted == adapted) & (episodes.task_id == first_id + task))
        goals = np.unique(mine.goal_id)
        successes: list[bool] = []
        for begin in range(0, len(goals), group):
            finished: list[tuple[int, int, bool]] = []
            for place, goal in enumerate(goals[begin : begin + group]):
                theirs = mine.goal_id == goal
                # an episode ends there at its first success
                lengths = np.where(mine.success, mine.first_success_step + 1, max_steps)[theirs]
                ends = np.cumsum(lengths)
                finished += [
                    (int(end), place, bool(success)) for end, success in zip(ends, mine.success[theirs], strict=True)
                ]
            successes += [success for _, _, success in sorted(finished)[:METAWORLD_EPISODES]]
        found[name] = float(np.mean(successes))
    return found

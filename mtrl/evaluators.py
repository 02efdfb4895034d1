"""From the configuration to what evaluates its policies, and to what the episodes say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mtrl.config import META_ALGORITHMS, RunConfig
from mtrl.data import Array, Episodes
from mtrl.evaluation import Evaluator, episode_records, estimates
from mtrl.meta_evaluation import MetaEvaluator, meta_estimates
from mtrl.networks.build import Suite


class AnyEvaluator(Protocol):
    """Runs a worker's share of evaluations."""

    def run(self, weights: Mapping[str, Array], num_goals: int) -> Episodes:
        """Returns the episodes that count, of the first `num_goals` goals of every task of this share."""

    def stop(self) -> None:
        """Ends a run in another thread, for good."""

    def close(self) -> None:
        """Closes the environments."""


def build_evaluator(config: RunConfig, suite: Suite, worker: int = 0, num_workers: int = 1) -> AnyEvaluator:
    """Returns what evaluates the policies of a run."""
    kind = MetaEvaluator if config.algorithm in META_ALGORITHMS else Evaluator
    return kind(config, suite, worker, num_workers)


def result_of(episodes: Episodes, config: RunConfig, suite: Suite) -> dict[str, Any]:
    """Returns what the episodes of an evaluation say, JSON-able.

    Returns:
        `estimators` and `episodes` of the tasks that count; where policies adapt, these are the held-out ones after all
        of their adaptation, and `other_episodes` has the rest, beside what `meta_estimates` adds.
    """
    if config.algorithm not in META_ALGORITHMS:
        records = episode_records(episodes, suite.task_names)
        return {"estimators": estimates(episodes, suite.task_names, config.seed), "episodes": records}
    names = (*(f"train/{name}" for name in suite.task_names), *suite.test_task_names)
    counts = (episodes.task_id >= suite.num_tasks) & (episodes.adapted == config.meta.adaptation_episodes)
    return {
        **meta_estimates(episodes, config, suite),
        "episodes": episode_records(episodes.where(counts), names),
        "other_episodes": episode_records(episodes.where(~counts), names),
    }

"""The engine that collects on Ray: starts RLlib around the same learner and environments that the local engine has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from mtrl.config import RunConfig
from mtrl.data import Array, Episodes
from mtrl.engine.progress import Progress
from mtrl.engine.rllib.algorithm import MtrlAlgorithm
from mtrl.engine.rllib.cluster import (
    ray_cluster,
    require_cores,
    results_in_temporary_folder,
    without_warning_of_restarts,
)
from mtrl.engine.rllib.config import MtrlConfig, refuse_idle_workers
from mtrl.networks.build import Suite


class RllibEngine:
    """Collects and evaluates on rollout workers; the learner is in this process."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        """Starts or joins Ray and builds workers, learner and environments.

        Raises:
            ConfigError: If the workers do not fit the environments or the machine.
        """
        refuse_idle_workers(config)
        with ExitStack() as opened:
            opened.enter_context(ray_cluster(config.rllib))
            require_cores(config)
            with results_in_temporary_folder(), without_warning_of_restarts():
                self._algorithm = MtrlAlgorithm(MtrlConfig().for_run(config, suite))
            opened.callback(self._algorithm.stop)
            self._opened = opened.pop_all()
        self.learner = self._algorithm.core

    def advance(self, until_env_steps: int, pause: Callable[[], bool]) -> Progress:
        """Runs rounds until `until_env_steps` are reached or `pause` says so."""
        return self._algorithm.advance(until_env_steps, pause)

    def evaluate(self, num_goals: int) -> Episodes:
        """Runs the current policy once on the first `num_goals` goals of every task."""
        return self._algorithm.evaluate_goals(num_goals)

    def begin_evaluation(self, weights: Mapping[str, Array], num_goals: int) -> None:
        """Evaluates a policy on the workers that do nothing else."""
        self._algorithm.begin_evaluation(weights, num_goals)

    def finished_evaluation(self, *, wait: bool) -> Episodes | None:
        """Returns the episodes of the evaluation, if it is over."""
        return self._algorithm.finished_evaluation(wait=wait)

    def settle(self) -> Progress:
        """Waits for what the workers are at."""
        return self._algorithm.settle()

    def collection_state(self) -> dict[str, Any]:
        """Returns the state of every worker's collector."""
        return self._algorithm.collection_state()

    def restore_collection(self, state: Mapping[str, Any]) -> bool:
        """Goes on collecting from a state, if it is of as many workers."""
        return self._algorithm.restore_collection(state)

    def processes(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the workers' processes."""
        return self._algorithm.processes()

    def hurry(self) -> None:
        """Waits for dead workers no longer."""
        self._algorithm.hurry()

    def close(self) -> None:
        """Ends the workers, and Ray if it was started or joined here."""
        self._opened.close()

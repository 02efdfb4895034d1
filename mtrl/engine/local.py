"""The engine of one process: no Ray, every step in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from mtrl.config import RunConfig
from mtrl.data import Array, Block, Episodes
from mtrl.engine.asynchronous import BackgroundCollector, require_asynchronous, run_asynchronously, settle
from mtrl.engine.progress import Progress, run_rounds
from mtrl.engine.threads import compute_with_one_thread, kept_to, one_thread, share_cores
from mtrl.evaluators import build_evaluator
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device
from mtrl.learners.protocol import CollectRequest
from mtrl.networks.build import Suite
from mtrl.rollout.build import build_collector, training_assignments


class LocalEngine:
    """Collects, learns and evaluates in this process."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        """Builds learner and environments.

        Raises:
            ConfigError: If the learner must not learn from old weights and collection is asynchronous, or if threads
                are to keep to cores of their own and cannot.
        """
        self._config, self._suite = config, suite
        self._cores = share_cores(config) if config.pin_threads else None
        with ExitStack() as pinned:
            if self._cores is not None:
                pinned.enter_context(kept_to(self._cores.learner))  # first of all: torch's threads inherit it
            self.learner = build_learner(config, suite, choose_device(config.device))
            self._collector = build_collector(config, suite)
            self._evaluator = build_evaluator(config, suite)
            self._evaluator_beside = build_evaluator(config, suite)
            self._beside: ThreadPoolExecutor | None = None
            self._evaluation: Future[Episodes] | None = None
            if config.collection == "async":
                require_asynchronous(self.learner)
            self._begin_background()
            self._pinned = pinned.pop_all()

    def advance(self, until_env_steps: int, pause: Callable[[], bool]) -> Progress:
        """Runs rounds until `until_env_steps` are reached or `pause` says so."""
        if self._background is not None:
            return run_asynchronously(
                self.learner, self._background, until_env_steps, self._config.total_env_steps, pause
            )
        return run_rounds(self.learner, self._collect, until_env_steps, pause)

    def evaluate(self, num_goals: int) -> Episodes:
        """Runs the current policy once on the first `num_goals` goals of every task."""
        with one_thread():
            return self._evaluator.run(self.learner.policy_weights(), num_goals)

    def begin_evaluation(self, weights: Mapping[str, Array], num_goals: int) -> None:
        """Evaluates a policy in a thread."""
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="evaluation", initializer=compute_with_one_thread)
        self._evaluation = self._beside.submit(self._evaluator_beside.run, weights, num_goals)

    def finished_evaluation(self, *, wait: bool) -> Episodes | None:
        """Returns the episodes of the evaluation, if it is over."""
        if self._evaluation is None or not (wait or self._evaluation.done()):
            return None
        return self._evaluation.result()

    def settle(self) -> Progress:
        """Waits for what the background thread is at."""
        return Progress() if self._background is None else settle(self.learner, self._background)

    def collection_state(self) -> dict[str, Any]:
        """Returns the state of the only collector."""
        return {"0": self._collector.get_state()}

    def restore_collection(self, state: Mapping[str, Any]) -> bool:
        """Goes on collecting from a state, if it is of one collector; else begins anew."""
        if len(state) != 1:
            self._close_environments()
            self._collector = build_collector(self._config, self._suite, streams_of=self.learner.env_steps)
            self._begin_background()
            return False
        self._collector.set_state(state["0"])
        return True

    def processes(self) -> dict[str, list[dict[str, Any]]]:
        """Returns nothing: there are none."""
        return {}

    def hurry(self) -> None:
        """Does nothing: there is nobody else to wait for."""

    def _collect(self, request: CollectRequest) -> list[Block]:
        with one_thread():
            return [self._collector.collect(request)]

    def _begin_background(self) -> None:
        self._background: BackgroundCollector | None = None
        if self._config.collection == "async":
            self._background = BackgroundCollector(
                self._collector,
                len(training_assignments(self._config)),
                self._config.requests_in_flight,
                self._config.steps_per_request,
                None if self._cores is None else self._cores.collection,
            )

    def close(self) -> None:
        """Ends the background thread, closes the environments and gives the calling thread its cores back."""
        with self._pinned:
            self._close_environments()

    def _close_environments(self) -> None:
        if self._background is not None:
            self._background.close()
        if self._beside is not None:
            self._evaluator_beside.stop()
            self._beside.shutdown()
        self._evaluator_beside.close()
        self._collector.close()
        self._evaluator.close()

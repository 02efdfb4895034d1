"""The Algorithm: the synchronous loop over RLlib's workers and learner. What is learned is in `mtrl.learners`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_EPISODES,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from mtrl.checkpoint import load_replay, load_state, newest_checkpoint, save_checkpoint
from mtrl.config import META_ALGORITHMS, ConfigError, RunConfig
from mtrl.config_io import from_dict, to_dict
from mtrl.data import Array, Block, Episodes
from mtrl.engine.asynchronous import require_asynchronous, run_asynchronously, settle
from mtrl.engine.progress import Progress, WorkersLostError, run_rounds
from mtrl.engine.rllib.calls import Calls, CallToAll
from mtrl.engine.rllib.config import MtrlConfig
from mtrl.engine.rllib.env_runner import BlockEnvRunner
from mtrl.engine.rllib.learner import CoreLearner
from mtrl.engine.rllib.remote_workers import RemoteWorkers, without_views
from mtrl.engine.threads import set_up_torch
from mtrl.evaluation import mean_success
from mtrl.evaluators import result_of
from mtrl.learners import protocol
from mtrl.learners.protocol import CollectRequest
from mtrl.rollout.build import build_suite, shares, training_assignments


class MtrlAlgorithm(Algorithm):
    """Executes the learner's requests on the rollout workers; one `train()` is one stretch of rounds."""

    config: MtrlConfig
    calls: Calls
    """To the workers that collect."""
    env_runner_group: EnvRunnerGroup
    learner_group: LearnerGroup
    metrics: MetricsLogger

    @classmethod
    def get_default_config(cls) -> MtrlConfig:
        """Returns a configuration that lacks only its run."""
        return MtrlConfig(algo_class=cls)

    def setup(self, config: Any) -> None:
        """Builds workers, learner and environments.

        Raises:
            ConfigError: If collection is asynchronous and the learner must not have old weights.
            RuntimeError: If a worker fails to build its environments, with its traceback.
        """
        super().setup(config)
        set_up_torch(self._run_config())  # a trial of Tune has nobody else to do it
        self.calls = Calls(self.env_runner_group)
        self._num_workers = max(self.config.num_env_runners, 1)
        run = self._run_config()
        self._shares = shares(run, training_assignments(run), self._num_workers)
        self._sent: tuple[Mapping[str, Array], Any] | None = None
        self._counted = self._restarts_noted = 0
        self._source: RemoteWorkers | None = None
        self._evaluation: CallToAll | None = None
        self._evaluators = None if self.eval_env_runner_group is None else Calls(self.eval_env_runner_group)
        self._stretch: tuple[int, Callable[[], bool]] | None = None
        self.progress = Progress()
        found = self.learner_group.foreach_learner(_core_of).result_or_errors[0]
        self.core: protocol.Learner = found.get()  # type: ignore[no-untyped-call]  # not annotated in RLlib
        try:
            if run.collection == "async":
                require_asynchronous(self.core)
                num_envs = [len(mine) for mine in self._shares]
                self._source = RemoteWorkers(
                    self.calls, self._submit, num_envs, run.requests_in_flight, run.steps_per_request
                )
            self._call(BlockEnvRunner.build, [{}] * self._num_workers)
        except (RuntimeError, ConfigError):
            self.cleanup()
            raise

    def advance(self, until_env_steps: int, pause: Callable[[], bool]) -> Progress:
        """Runs rounds until `until_env_steps` are reached or `pause` says so."""
        self._stretch = until_env_steps, pause
        try:
            self.train()  # type: ignore[no-untyped-call]  # Ray's Trainable is not annotated
        finally:
            self._stretch = None
        return self.progress

    def training_step(self) -> None:
        """Runs the rounds of one stretch; what happened is in `progress`.

        Outside `advance`, under Tune, a stretch is what lies between two records of the log, and evaluations that are
        due belong to it; its values are reported under `mtrl`.
        """
        before = self.core.env_steps
        run = self._run_config()
        until_env_steps, pause = self._stretch or (_next_multiple(before, run.log_every_env_steps), lambda: False)
        if self._source is None:
            self.progress = run_rounds(self.core, self._collect, until_env_steps, pause)
        else:
            total = max(self._run_config().total_env_steps, until_env_steps)
            self._source.aim_at(total - self.core.env_steps)
            self.progress = run_asynchronously(self.core, self._source, until_env_steps, total, pause)
        self._note_restarts(self.progress)
        collected = self.core.env_steps - before
        num_episodes = sum(len(episodes) for episodes in self.progress.episodes)
        self._count(collected)
        self.metrics.log_value((ENV_RUNNER_RESULTS, NUM_EPISODES), num_episodes, reduce="sum")
        if self._stretch is None:
            self._report(before)

    def begin_evaluation(self, weights: Mapping[str, Array], num_goals: int) -> None:
        """Begins an evaluation on the workers that do nothing else."""
        assert self._evaluators is not None, "eval.parallel is set"
        arguments = {"weights": ray.put(weights), "num_goals": num_goals}
        self._evaluation = self._evaluators.begin(BlockEnvRunner.evaluate, arguments)

    def finished_evaluation(self, *, wait: bool) -> Episodes | None:
        """Returns the episodes of the evaluation that was begun, if it is over or may be waited for."""
        if self._evaluation is None or not (self._evaluation.look() or wait):
            return None
        parts = self._evaluation.wait()
        self._evaluation = None
        return Episodes.concatenate(parts)

    def settle(self) -> Progress:
        """Finishes what workers are at with asynchronous collection."""
        if self._source is None:
            return Progress()
        progress = settle(self.core, self._source)
        self._count(progress.env_steps)
        self._note_restarts(progress)
        return progress

    def processes(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the processes of the remote workers that have answered a call."""
        found = {"rollout_workers": self.calls.processes()}
        return found if self._evaluators is None else {**found, "evaluators": self._evaluators.processes()}

    def hurry(self) -> None:
        """Waits for dead workers no longer."""
        for calls in self._everyone():
            calls.hurry()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves for Tune all that decides the future, as `mtrl train` does and without pickle.

        Raises:
            FileExistsError: If the folder holds a checkpoint, with which this one would be mixed.
        """
        folder = Path(checkpoint_dir)
        if (folder / "checkpoints").exists():
            raise FileExistsError(f"{folder} holds a checkpoint already; give an empty folder")
        self.settle()
        state = {
            "learner": self.core.state_dict(),
            "collection": self._collection_state_or_none(),
            "config": to_dict(self._run_config()),
        }
        replay = self.core.replay if self._run_config().checkpoint.replay else None
        save_checkpoint(folder, self.core.env_steps, state, replay, keep=1)

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override] # as RLlib's own
        """Goes on from what `save_checkpoint` saved.

        Raises:
            CheckpointError: If it cannot be read.
        """
        self.settle()  # what is under way belongs to what is left behind
        folder, _ = newest_checkpoint(Path(checkpoint_dir))
        state = load_state(folder)
        self.core.load_state_dict(state["learner"])
        if self.core.replay is not None:
            load_replay(Path(checkpoint_dir), folder, self.core.replay)
        if not self.restore_collection(state["collection"] or {}):
            self.core.forget_unfinished()
        self._count(self.core.env_steps - self._counted)  # Tune's stop criteria read the counters

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """Saves as `save_checkpoint` does, to a new temporary folder if none is given, and returns the folder.

        Raises:
            TypeError: If a state, a file system or another format is asked for.
        """
        _refuse(kwargs)
        folder = tempfile.mkdtemp(prefix="mtrl-checkpoint-") if path is None else str(path)
        self.save_checkpoint(folder)
        return folder

    def restore_from_path(self, path: str | Path, **kwargs: Any) -> None:
        """Goes on from what `save_to_path` saved.

        Raises:
            CheckpointError: If it cannot be read.
            TypeError: If only a component or another file system is asked for.
        """
        _refuse(kwargs)
        self.load_checkpoint(str(path))

    @classmethod
    def from_checkpoint(cls, path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override] # as RLlib's own
        """Returns an algorithm that goes on from what `save_to_path` saved, or from a run directory of `mtrl train`.

        Raises:
            CheckpointError: If it cannot be read.
            TypeError: If another file system, or what only RLlib's own checkpoints have, is asked for.
        """
        _refuse(kwargs)
        folder, _ = newest_checkpoint(Path(path))
        run = replace(from_dict(load_state(folder)["config"]), engine="rllib")
        algorithm = cls(MtrlConfig().for_run(run, build_suite(run)))
        try:
            algorithm.restore_from_path(path)
        except BaseException:
            algorithm.stop()  # type: ignore[no-untyped-call]  # Ray's Trainable is not annotated
            raise
        return algorithm

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Does nothing: calls wait for dead workers themselves, and weights come with each call."""
        return []

    def evaluate_goals(self, num_goals: int) -> Episodes:
        """Runs the current policy once on the first `num_goals` goals of every task, shared out to the workers."""
        arguments = {"weights": self.put_weights(self.core.policy_weights()), "num_goals": num_goals}
        return Episodes.concatenate(self._call(BlockEnvRunner.evaluate, [arguments] * self._num_workers))

    def collection_state(self) -> dict[str, Any]:
        """Returns worker → the state of its collector."""
        # what a dead worker knew is lost, so there is nothing to wait for
        states = self.calls.all(BlockEnvRunner.collector_state, [{}] * self._num_workers, patience_s=0.0)
        return {str(worker): state for worker, state in enumerate(states)}

    def restore_collection(self, state: Mapping[str, Any]) -> bool:
        """Goes on collecting from a state; begins anew and returns False if environments were shared out otherwise."""
        if not self._shared_as_here(state):
            self._call(BlockEnvRunner.begin_anew, [{"streams_of": self.core.env_steps}] * self._num_workers)
            return False
        arguments = [{"state": state[str(worker)]} for worker in range(self._num_workers)]
        self._call(BlockEnvRunner.restore_collector, arguments)
        return True

    def _shared_as_here(self, state: Mapping[str, Any]) -> bool:
        tasks = [one.task_id for one in training_assignments(self._run_config())]
        if len(state) != self._num_workers:
            return False
        saved = [[int(one[0]) for one in state[str(w)]["envs"]["assignments"]] for w in range(self._num_workers)]
        if self._run_config().algorithm in META_ALGORITHMS:  # their learner assigns tasks with every request
            return [len(mine) for mine in saved] == [len(mine) for mine in self._shares]
        return saved == [[tasks[env] for env in mine] for mine in self._shares]

    def _collection_state_or_none(self) -> dict[str, Any] | None:
        """Returns None where a worker has died with what it knew."""
        try:
            return self.collection_state()
        except WorkersLostError:
            return None

    def _run_config(self) -> RunConfig:
        return self.config.run_and_suite()[0]

    def _submit(self, request: CollectRequest, worker: int) -> bool:
        """Hands a worker its part of a request; returns False if it cannot take it."""
        arguments = {"request": self._part(request, worker), "weights": self.put_weights(request.weights)}
        return self.calls.submit(worker, BlockEnvRunner.collect, arguments)

    def _everyone(self) -> list[Calls]:
        return [self.calls] if self._evaluators is None else [self.calls, self._evaluators]

    def _note_restarts(self, progress: Progress) -> None:
        """Writes down how many workers came back since it was done last."""
        so_far = sum(calls.num_restarts for calls in self._everyone())
        progress.num_restarts, self._restarts_noted = so_far - self._restarts_noted, so_far

    def _count(self, env_steps: int) -> None:
        """Adds to the counters that RLlib reads by name."""
        self._counted += env_steps
        sampled, trained = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), (LEARNER_RESULTS, ALL_MODULES)
        self.metrics.log_value(sampled, env_steps, reduce="lifetime_sum", with_throughput=True)
        self.metrics.log_value((*trained, NUM_ENV_STEPS_TRAINED_LIFETIME), env_steps, reduce="lifetime_sum")

    def _report(self, before: int) -> None:
        """Reports losses and, where one is due, an evaluation, for a stretch that began at `before` steps."""
        run, suite = self.config.run_and_suite()
        for tag, value in self.progress.mean_values().items():
            self.metrics.log_value(("mtrl", *tag.split("/")), float(value.mean()), window=1)
        every, after = run.eval.every_env_steps, self.core.env_steps
        at_the_end = after >= run.total_env_steps
        if at_the_end or (every and after // every > before // every):
            episodes = self.evaluate_goals(run.eval.final_goals if at_the_end else run.eval.goals)
            found = result_of(episodes, run, suite)["estimators"]["mtrl"]
            for task, rate in {**found["success"], "mean": mean_success(found)}.items():
                self.metrics.log_value(("mtrl", "eval", "success", task), rate, window=1)

    def _collect(self, request: CollectRequest) -> list[Block]:
        weights = self.put_weights(request.weights)
        parts = [self._part(request, worker) for worker in range(self._num_workers)]
        blocks = self._call(BlockEnvRunner.collect, [{"request": part, "weights": weights} for part in parts])
        return [without_views(block) for block in blocks]

    def _part(self, request: CollectRequest, worker: int) -> CollectRequest:
        """Returns a worker's part of a request, without weights."""

        def mine(of_every_env: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            if of_every_env is None:
                return None
            return tuple(of_every_env[env] for env in self._shares[worker])

        return replace(request, weights={}, assignments=mine(request.assignments), slots=mine(request.slots))

    def put_weights(self, weights: Mapping[str, Array]) -> Any:
        """Puts weights into the object store once, however many workers and requests they go to."""
        if self.env_runner_group.num_remote_env_runners() == 0:
            return weights
        if self._sent is None or self._sent[0] is not weights:
            self._sent = weights, ray.put(weights)
        return self._sent[1]

    def _call(self, method: Callable[..., Any], arguments: list[dict[str, Any]]) -> list[Any]:
        return self.calls.all(method, arguments)


def _refuse(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise TypeError(f"checkpoints are whole, local and of one format: {', '.join(arguments)} cannot be given")


def _next_multiple(number: int, of: int) -> int:
    return (number // of + 1) * of


def _core_of(learner: Learner, _: Any = None) -> protocol.Learner:
    assert isinstance(learner, CoreLearner)
    return learner.core

"""A run from start to end: engine, log, evaluations, checkpoints, signals. No mathematics here."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch

from mtrl.checkpoint import CheckpointError, discard_newer, load_replay, load_state, newest_checkpoint, save_checkpoint
from mtrl.config import ConfigError, RunConfig
from mtrl.config_io import difference, from_dict, load_config, to_dict
from mtrl.data import Episodes
from mtrl.engine.build import build_engine
from mtrl.engine.progress import Progress, WorkersLostError
from mtrl.engine.protocol import Engine
from mtrl.engine.threads import set_up_torch
from mtrl.evaluation import mean_success
from mtrl.evaluators import result_of
from mtrl.learners.device import choose_device
from mtrl.learners.mtsac import NonFiniteError
from mtrl.learners.protocol import Learner
from mtrl.profiling import Profile, named
from mtrl.records import evaluation_values, training_values
from mtrl.rollout.build import build_suite
from mtrl.runlog import RunLog, create_run_directory, record_resume, rewind
from mtrl.surgery.build import build_surgery

_MOST_TASKS_IN_A_LINE = 10
RESUMABLE_CHANGES = (
    "total_env_steps",
    "log_every_env_steps",
    "profile",
    "engine",
    "collection",
    "requests_in_flight",
    "steps_per_request",
    "pin_threads",
    "torch_threads",
    "env.num_threads",
    "learner.compile",
    "learner.updates_per_graph",
    "checkpoint.",
    "rllib.",
)
"""Settings, or their beginnings, that a resumed run may change."""


class Display(Protocol):
    """Shows a person how the run goes."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def update(self, env_steps: int, gradient_steps: int, success: float | None) -> None:
        """Shows how far the run is; called about once a second."""


class Ended(NamedTuple):
    """How a run ended."""

    run: Path
    stopped_by: signal.Signals | None
    """The signal that asked to stop before the end, if one did; a checkpoint was saved."""


def train(config: RunConfig, display: Display) -> Ended:
    """Trains from the start.

    Raises:
        ConfigError: If the configuration cannot be run.
        NonFiniteError: If training broke down; the last good checkpoint stays.
    """
    suite = build_suite(config)
    build_surgery(config.surgery, suite.num_tasks)  # refuses a single task before a run directory is there
    set_up_torch(config)
    run = create_run_directory(config)
    display.say(f"run directory: {run}")
    with _engine(config, suite) as engine:
        if config.init_from is not None:
            folder, _ = newest_checkpoint(Path(config.init_from))
            _load_weights(engine, folder)
            display.say(f"weights from {folder}")
        _describe_replay(engine, display)
        return Ended(run, _Training(config, run, engine, display).finish())


def resume(run: Path, overrides: Sequence[str], display: Display) -> Ended:
    """Goes on with a run from its newest good checkpoint.

    Raises:
        ConfigError: If an override changes what a resumed run must keep.
        CheckpointError: If there is no good checkpoint.
    """
    config = resumed_config(run, overrides)
    suite = build_suite(config)
    set_up_torch(config)
    folder, damage = newest_checkpoint(run)
    for line in damage:
        display.say(f"skipped: {line}")
    state = load_state(folder)
    _refuse_changes(from_dict(state["config"]), config, run)
    discard_newer(run, folder)
    with _engine(config, suite) as engine:
        _restore_learner(engine.learner, state, folder)
        _describe_replay(engine, display)
        replay = engine.learner.replay
        restored = 0 if replay is None else load_replay(run, folder, replay)
        display.say(f"resuming {run} at {engine.learner.env_steps:,} env steps with {restored:,} transitions")
        if not _restore_collection(engine, state["collection"] or {}, folder):
            engine.learner.forget_unfinished()
            reason = (
                "were not saved" if state["collection"] is None else "are shared out among another number of workers"
            )
            display.say(f"the environments {reason}: they begin new episodes")
        record_resume(run, config, engine.learner.env_steps)
        rewind(run, state["log"], engine.learner.env_steps)
        training = _Training(config, run, engine, display, Progress.from_state(state["progress"]))
        if state["evaluation"] is not None:
            training.begin_evaluation(state["evaluation"])
        return Ended(run, training.finish())


def resumed_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Returns the configuration of a run with overrides that do not change what it means.

    Raises:
        ConfigError: If the folder is no run, or an override changes something else.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise ConfigError("run", f"{run} is not a run directory: it has no config.yaml")
    config = load_config(path, overrides)
    _refuse_changes(load_config(path), config, run)
    return config


def evaluate(run: Path, num_goals: int | None, display: Display) -> dict[str, Any]:
    """Evaluates the newest good checkpoint of a run and writes the result into the run directory."""
    config = resumed_config(run, ["engine=local", "pin_threads=false", "learner.compile=eager"])
    if num_goals is not None and not 1 <= num_goals <= config.env.num_goals:
        raise ConfigError(
            "--episodes", f"{num_goals} is outside 1 to {config.env.num_goals}, the goals stored per task"
        )
    config = dataclasses.replace(config, pearl=dataclasses.replace(config.pearl, contexts_kept=1))  # none are drawn
    config = dataclasses.replace(
        config, replay=dataclasses.replace(config.replay, capacity_per_task=config.smallest_capacity())
    )
    suite = build_suite(config)
    set_up_torch(config)
    folder, _ = newest_checkpoint(run)
    with _engine(config, suite) as engine:
        _restore_learner(engine.learner, load_state(folder), folder)
        training = _Training(config, run, engine, display, adds_to_the_end=True)
        try:
            return training.evaluate(num_goals or config.eval.final_goals, final=True)
        finally:
            training.close()


def _restore_learner(learner: Learner, state: Mapping[str, Any], folder: Path) -> None:
    try:
        learner.load_state_dict(state["learner"])
    except KeyError as error:
        raise CheckpointError(
            f"{folder} holds no {error} of its learner, so another version of mtrl saved it; go on with the one that "
            "versions.json names, or train anew"
        ) from error


def _restore_collection(engine: Engine, state: Mapping[str, Any], folder: Path) -> bool:
    try:
        return engine.restore_collection(state)
    except WorkersLostError:
        raise
    except (ValueError, RuntimeError) as error:  # the latter from a worker on Ray
        raise CheckpointError(
            f"the environments of {folder} cannot go on here: {error}; resume on a machine and with versions that give "
            "the same simulator, or begin a new run with init_from"
        ) from error


def _describe_replay(engine: Engine, display: Display) -> None:
    if engine.learner.replay is not None:
        display.say(engine.learner.replay.describe())


def _load_weights(engine: Engine, folder: Path) -> None:
    try:
        engine.learner.load_weights(load_state(folder)["learner"])
    except (RuntimeError, KeyError) as error:  # what torch says of other shapes and other names
        raise ConfigError(
            "init_from",
            f"the networks of {folder} have other shapes or names than this run's; "
            "take the same algorithm, architecture, widths and number of tasks",
        ) from error


def _refuse_changes(before: RunConfig, after: RunConfig, run: Path) -> None:
    changed = [key for key in difference(before, after) if not key.startswith(RESUMABLE_CHANGES)]
    if changed:
        raise ConfigError(changed[0], f"cannot change when a run is resumed; start a new run with init_from={run}")


class _Training:
    """The loop over an engine, with what is due at which number of environment steps."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        engine: Engine,
        display: Display,
        progress: Progress | None = None,
        *,
        adds_to_the_end: bool = False,
    ) -> None:
        self._config, self._run, self._engine, self._display = config, run, engine, display
        self._learner = engine.learner
        self._suite = build_suite(config)
        self._log = RunLog(run, config, None if adds_to_the_end else self._learner.env_steps)
        self._every = {
            "log": config.log_every_env_steps,
            "evaluate": config.eval.every_env_steps,
            "checkpoint": config.checkpoint.every_env_steps,
        }
        self._passed = {name: self._count(name) for name in self._every}
        self._success: float | None = None
        self._progress = progress or Progress()  # since the last record of the log
        self._under_way: dict[str, Any] | None = None  # the evaluation beside training
        self._profile: Profile | None = None

    def finish(self) -> signal.Signals | None:
        """Trains to the end, or until a signal asks to stop and is returned; saves a checkpoint either way.

        Raises:
            WorkersLostError: If workers died and did not come back; a checkpoint is saved then too.
        """
        try:
            if self._config.profile:
                device = choose_device(self._config.device)
                folder, say = self._run / "profile", self._display.say
                self._profile = Profile(folder, self._learner, device, self._engine.processes, say)
            with _stop_signals(self._engine.hurry) as stop:
                try:
                    self._train(stop)
                    self._save()
                except WorkersLostError as error:
                    self._save_without_workers(error)
                    if stop.reason is None:
                        text = f"{error}. A checkpoint was saved; go on with: mtrl resume {self._run}"
                        raise WorkersLostError(text) from error
                if stop.reason is None:
                    try:
                        self._success = self._checked_final()
                    except WorkersLostError:
                        if stop.reason is None:  # else they may have died of the same signal
                            raise
                    return stop.reason  # which may have come while it was evaluated
                self._display.say(f"stopped by {stop.reason.name}; go on with: mtrl resume {self._run}")
                return stop.reason
        finally:
            self.close()

    def close(self) -> None:
        """Writes what was profiled and closes the log."""
        try:
            if self._profile is not None:
                self._profile.close()
        finally:
            self._log.close()

    def evaluate(self, num_goals: int, *, final: bool) -> dict[str, Any]:
        """Evaluates the current policy, logs it and returns the result."""
        self._end_profile_window()
        began = time.monotonic()
        episodes = self._engine.evaluate(num_goals)
        steps = {"env_steps": self._learner.env_steps, "gradient_steps": self._learner.gradient_steps}
        return self._write_evaluation(episodes, steps, num_goals, time.monotonic() - began, final=final)

    def begin_evaluation(self, under_way: dict[str, Any]) -> None:
        """Begins an evaluation beside training.

        Args:
            under_way: `weights` of the policy, the `goals` per task, and the `env_steps` and `gradient_steps` of both.
        """
        self._under_way = under_way
        self._engine.begin_evaluation(under_way["weights"], under_way["goals"])

    def _write_evaluation(
        self, episodes: Episodes, steps: Mapping[str, int], num_goals: int, seconds: float | None, *, final: bool
    ) -> dict[str, Any]:
        """Logs the episodes of an evaluation at certain numbers of steps, and returns the result."""
        found = result_of(episodes, self._config, self._suite)
        self._success = mean_success(found["estimators"]["mtrl"])
        result = {**steps, "final": final, "goals": num_goals, **found}
        values = evaluation_values(found)
        if seconds is not None:
            values["perf/evaluation_s"] = seconds
        self._log.write("eval", steps["env_steps"], steps["gradient_steps"], values)
        self._log.write_evaluation(result)
        rates = _in_words(found["estimators"]["mtrl"]["success"])
        self._display.say(f"{steps['env_steps']:>12,} env steps  success {self._success:.3f}  ({rates})")
        return result

    def _train(self, stop: _Stop) -> None:
        total = self._config.total_env_steps
        pause = stop.pause if self._profile is None else self._profile.watching(stop.pause)
        while self._learner.env_steps < total or self._learner.behind():
            if stop.reason is None:
                self._progress.merge(self._engine.advance(self._next_boundary(), pause))
            stops = stop.reason is not None  # a signal that comes later is for the next time round, which settles first
            ends = stops or self._learner.env_steps >= total
            if ends or self._count("checkpoint") > self._passed["checkpoint"]:
                self._progress.merge(self._engine.settle())  # before anything is looked at that is due
            self._display.update(self._learner.env_steps, self._learner.gradient_steps, self._success)
            if self._due("log"):
                with named("log"):
                    self._write_progress(self._progress)
                self._progress = Progress()
            self._finish_evaluation(wait=False)
            if self._due("evaluate") and self._learner.env_steps < total:
                self._evaluate_in_training()
            if self._due("checkpoint"):
                self._save()
            if stops:
                return

    def _evaluate_in_training(self) -> None:
        num_goals = self._config.eval.goals
        if not self._config.eval.parallel:
            self.evaluate(num_goals, final=False)
            return
        self._finish_evaluation(wait=True)
        steps = {"env_steps": self._learner.env_steps, "gradient_steps": self._learner.gradient_steps}
        self.begin_evaluation({"weights": dict(self._learner.policy_weights()), "goals": num_goals, **steps})

    def _finish_evaluation(self, *, wait: bool) -> None:
        """Logs the evaluation beside training, if there is one and it is over or may be waited for."""
        if self._under_way is None:
            return
        episodes = self._engine.finished_evaluation(wait=wait)
        if episodes is not None:
            steps = {name: self._under_way[name] for name in ("env_steps", "gradient_steps")}
            self._write_evaluation(episodes, steps, self._under_way["goals"], None, final=False)
            self._under_way = None

    def _checked_final(self) -> float:
        self._finish_evaluation(wait=True)
        result = self.evaluate(self._config.eval.final_goals, final=True)
        success = mean_success(result["estimators"]["mtrl"])
        self._log.write_outcome(self._learner.env_steps, success)
        return success

    def _write_progress(self, progress: Progress) -> None:
        values = training_values(progress, self._learner, self._suite.task_names)
        self._log.write("train", self._learner.env_steps, self._learner.gradient_steps, values)
        matrices = progress.mean_matrices()
        if matrices:
            self._log.write_surgery(self._learner.env_steps, self._learner.gradient_steps, matrices)

    def _save_without_workers(self, error: WorkersLostError) -> None:
        """Saves what was learned; what collectors know may be of rounds that the learner did not receive."""
        if error.progress is not None:
            self._progress.merge(error.progress)
        self._progress.merge(self._engine.settle())
        self._save(with_collection=False)

    def _save(self, *, with_collection: bool = True) -> None:
        self._end_profile_window()
        state = self._learner.state_dict()
        _refuse_non_finite(state, self._learner.gradient_steps)
        replay = self._learner.replay if self._config.checkpoint.replay else None
        policy = {name: torch.from_numpy(value) for name, value in self._learner.policy_weights().items()}
        saved = {
            "learner": state,
            "policy": policy,
            "config": to_dict(self._config),
            "collection": self._collection_state() if with_collection else None,
            "progress": self._progress.state_dict(),
            "evaluation": self._under_way,
            "log": self._log.position(),
        }
        save_checkpoint(self._run, self._learner.env_steps, saved, replay, self._config.checkpoint.keep)

    def _end_profile_window(self) -> None:
        """Keeps what is no training out of the profile."""
        if self._profile is not None:
            self._profile.end_window()

    def _collection_state(self) -> dict[str, Any] | None:
        """Returns where collection stands, None if a worker has died with what it knew."""
        try:
            return self._engine.collection_state()
        except RuntimeError as error:
            self._display.say(f"saving without the environments, which will begin new episodes after a resume: {error}")
            return None

    def _count(self, name: str) -> int:
        return self._learner.env_steps // self._every[name] if self._every[name] else 0

    def _due(self, name: str) -> bool:
        passed, self._passed[name] = self._passed[name], self._count(name)
        return self._passed[name] > passed

    def _next_boundary(self) -> int:
        steps: int = self._learner.env_steps
        following = [(steps // every + 1) * every for every in self._every.values() if every]
        return min([*following, self._config.total_env_steps])


def _in_words(success: Mapping[str, float]) -> str:
    if len(success) <= _MOST_TASKS_IN_A_LINE:
        return "  ".join(f"{task} {rate:.2f}" for task, rate in success.items())
    solved = sum(rate >= 0.9 for rate in success.values())
    return f"{solved} of {len(success)} tasks at 0.9 or more"


class _Stop:
    """Remembers a signal, and lets the loop come up for air about once a second."""

    def __init__(self) -> None:
        self.reason: signal.Signals | None = None
        self._next_pause = time.monotonic() + 1.0

    def pause(self) -> bool:
        if time.monotonic() >= self._next_pause:
            self._next_pause = time.monotonic() + 1.0
            return True
        return self.reason is not None


@contextmanager
def _stop_signals(hurry: Callable[[], None]) -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a wish to stop at the next boundary; a second SIGINT stops at once.

    Args:
        hurry: Called at the first signal.
    """
    stop = _Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.reason = signal.Signals(number)
        hurry()

    try:
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _engine(config: RunConfig, suite: Any) -> Iterator[Engine]:
    engine = build_engine(config, suite)
    try:
        yield engine
    finally:
        engine.close()


def _refuse_non_finite(state: Mapping[str, Any], gradient_steps: int, place: str = "") -> None:
    for name, value in state.items():
        if isinstance(value, Mapping):
            _refuse_non_finite(value, gradient_steps, f"{place}{name}.")
        elif isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            raise NonFiniteError(
                f"{place}{name} is not finite at update {gradient_steps:,}; the last good checkpoint stays. "
                "Lower the learning rates, or scale the rewards down with sac.reward_scaling=constant"
            )

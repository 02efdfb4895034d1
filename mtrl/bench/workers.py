"""What rollout workers on Ray cost a real row beside simulating: the control plane, and a worker that dies."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from mtrl.config import RunConfig
from mtrl.config_io import load_config
from mtrl.engine.progress import Progress
from mtrl.engine.threads import set_up_torch
from mtrl.rollout.build import build_suite

if TYPE_CHECKING:
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm

ROWS = (Path("configs/mt10/pcgrad.yaml"), Path("configs/mt50/pcgrad.yaml"), Path("configs/quickstart.yaml"))


def bench_workers() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS` with either way of collection; none where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        return {}
    found = {}
    for row in ROWS:
        for collection in ("sync", "async"):
            config = load_config(row, [f"collection={collection}"])
            found[f"workers, {config.name}, {collection}"] = bench_row_on_ray(config)
    return found


def bench_row_on_ray(config: RunConfig, num_seconds: float = 15.0) -> dict[str, float]:
    """Trains a row with two workers, its warm-up cut short, and with asynchronous collection kills one of them.

    Args:
        config: A row.
        num_seconds: How long each measurement takes.

    Returns:
        `updates_per_s`. `control_plane`, share of the time that the driver's thread works on anything but learning, by
        the processor's clock, so without waiting. `broadcast_s`, median seconds to put a version of the policy's
        weights where workers read them. With synchronous collection also `round_trip`, share of
        the time that is neither the learner's nor the slowest worker's. With asynchronous collection also `away_s`,
        from the death of the worker until it answers again, `held_up`, share of that time that the driver waited for
        an answer of the dead worker, and `updates_while_away`, updates per second in that time over those before.
    """
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm  # ray may not be installed
    from mtrl.engine.rllib.cluster import ray_cluster, results_in_temporary_folder, without_warning_of_restarts
    from mtrl.engine.rllib.config import MtrlConfig

    config = dataclasses.replace(
        config,
        engine="rllib",
        total_env_steps=10**9,
        sac=dataclasses.replace(config.sac, warmup_steps_per_task=200),
        replay=dataclasses.replace(config.replay, capacity_per_task=10_000),
        rllib=dataclasses.replace(config.rllib, num_env_runners=2, num_cpus_per_env_runner=0.5),
    )
    set_up_torch(config)
    with ray_cluster(config.rllib):
        with results_in_temporary_folder(), without_warning_of_restarts():
            algorithm = MtrlAlgorithm(MtrlConfig().for_run(config, build_suite(config)))
        try:
            _train_for(algorithm, num_seconds / 2)  # until everything is warm
            busy_s = algorithm.calls.busy_s
            seconds, plain = _train_for(algorithm, num_seconds)
            busy_s = algorithm.calls.busy_s - busy_s
            updates_per_s = plain.num_updates() / seconds
            figures = {
                "updates_per_s": updates_per_s,
                "control_plane": _control_plane(algorithm, num_seconds),
                "broadcast_s": _broadcast_s(algorithm),
            }
            if config.collection == "sync":
                return figures | {"round_trip": (seconds - busy_s - _learner_s(plain)) / seconds}
            return figures | _death(algorithm, updates_per_s)
        finally:
            algorithm.stop()  # type: ignore[no-untyped-call]  # Ray's Trainable is not annotated


def _train_for(algorithm: MtrlAlgorithm, num_seconds: float) -> tuple[float, Progress]:
    """Trains so long, or, on a slow machine, until there was an update; returns the seconds and what happened."""
    began, num_updates = time.perf_counter(), algorithm.core.gradient_steps

    def over() -> bool:
        return time.perf_counter() > began + num_seconds and algorithm.core.gradient_steps > num_updates

    progress = algorithm.advance(10**9, over)
    return time.perf_counter() - began, progress


def _learner_s(progress: Progress) -> float:
    return progress.seconds.get("receive", 0.0) + progress.seconds.get("update", 0.0)  # there may have been none


def _control_plane(algorithm: MtrlAlgorithm, num_seconds: float) -> float:
    learner, learning_s = algorithm.core, 0.0

    def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal learning_s
            began = time.thread_time()
            answer = method(*arguments)
            learning_s += time.thread_time() - began
            return answer

        return call

    began = time.thread_time()
    with mock.patch.multiple(learner, receive=clocked(learner.receive), update=clocked(learner.update)):
        seconds, _ = _train_for(algorithm, num_seconds)
    return (time.thread_time() - began - learning_s) / seconds


def _broadcast_s(algorithm: MtrlAlgorithm, repeats: int = 20) -> float:
    seconds = []
    for _ in range(repeats):
        weights = dict(algorithm.core.policy_weights())
        began = time.perf_counter()
        algorithm.put_weights(weights)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _death(algorithm: MtrlAlgorithm, updates_per_s: float) -> dict[str, float]:
    (pid,) = algorithm.env_runner_group.foreach_env_runner(
        lambda _: os.getpid(), local_env_runner=False, remote_worker_ids=[2]
    )
    before, probing_s = algorithm.calls.num_restarts, algorithm.calls.probing_s
    os.kill(pid, signal.SIGKILL)
    began = time.perf_counter()
    progress = algorithm.advance(10**9, lambda: algorithm.calls.num_restarts > before)
    away_s = time.perf_counter() - began
    return {
        "away_s": away_s,
        "held_up": (algorithm.calls.probing_s - probing_s) / away_s,
        "updates_while_away": progress.num_updates() / away_s / updates_per_s,
    }

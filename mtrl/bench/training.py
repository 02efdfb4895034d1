"""Where the time of synchronous training goes: each part by itself, the whole, and how far the parts explain it.

Parts and whole are timed in turn in one process, with the threads that the loop uses, so that what else the machine
does hits all alike; figures are medians over the turns.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtrl.bench.filled import filled_learner
from mtrl.bench.memory import forget_peak, peak_bytes, resident_bytes
from mtrl.config import ConfigError, RunConfig
from mtrl.config_io import load_config
from mtrl.data import Block
from mtrl.engine.local import LocalEngine
from mtrl.engine.threads import one_thread, set_up_torch
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.learners.protocol import CollectRequest, Learner
from mtrl.rollout.build import build_collector, build_envs, build_suite, training_assignments
from mtrl.rollout.collector import Collector

ROWS = (Path("configs/mt10/pcgrad.yaml"), Path("configs/quickstart.yaml"))
_WARMUP_STEPS_PER_TASK = 200


def bench_trainings() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS`."""
    found = {}
    for row in ROWS:
        config = load_config(row)
        found[f"training, {config.name}"] = bench_training(config)
        found[f"torch_threads, {config.name}"] = bench_threads(config)
    return found


def bench_threads(config: RunConfig, repeats: int = 5) -> dict[str, float]:
    """Times the updates of a row with different numbers of torch's threads in turn, for `torch_threads`.

    Returns:
        `update_s_with_1` and so on in powers of two up to the cores, medians, and the `fastest` number.
    """
    learner = filled_learner(dataclasses.replace(config, device="cpu"), build_suite(config).num_tasks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [2**power for power in range(cores.bit_length())]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(1 + repeats):
        for count in counts:
            with threads_of(dataclasses.replace(config, torch_threads=count, pin_threads=False)):
                learner.update()  # threads begin
                began = time.perf_counter()
                learner.update()
                seconds[count].append(time.perf_counter() - began)
    medians = {count: float(np.median(found[1:])) for count, found in seconds.items()}
    fastest = min(medians, key=medians.__getitem__)
    return {**{f"update_s_with_{count}": found for count, found in medians.items()}, "fastest": float(fastest)}


def bench_training(config: RunConfig, repeats: int = 10, num_rounds: int = 20) -> dict[str, float]:
    """Times the parts of a row's synchronous loop and the loop itself, its warm-up cut short, on the CPU.

    Args:
        config: Of a row of multi-task SAC.
        repeats: Turns that count; one before them warms up.
        num_rounds: Requests in each turn, with the updates that they make due: for the parts, and for the loop again.

    Returns:
        Of a step of all environments: `simulate_s`, without a policy; `collect_s`, the same steps with the policy, new
        weights for every request; `policy_s`, the difference; `receive_s`, into the replay. `snapshot_s` of the weights
        after an update. Of an update: `update_s`, and `sample_s` of these for its batch. Of the loop: `loop_s` for a
        step of all environments with `updates_per_vector_step`; `env_steps_per_s`, `updates_per_s`; `collect_share`,
        `receive_share` and `update_share` of its time. `predicted_s`, what the parts make of `loop_s`, and `explained`,
        the one over the other. On Linux `memory_bytes`, what the process held before, and `peak_memory_bytes`; the
        replay holds little more than the warm-up.
    """
    config = shortened(dataclasses.replace(config, engine="local", collection="sync", pin_threads=False))
    held = resident_bytes() if forget_peak() else None
    with threads_of(config), closing(_Bench(config)) as bench:
        turns = [bench.parts(num_rounds) | bench.loop(num_rounds) for _ in range(1 + repeats)][1:]
        num_envs = bench.num_envs
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    memory = {} if held is None else {"memory_bytes": float(held), "peak_memory_bytes": float(peak_bytes())}
    return _explained(medians, num_envs, config.sac.collect_steps) | memory


def shortened(config: RunConfig) -> RunConfig:
    """Returns a row that never ends, on the CPU, with a warm-up of seconds."""
    warmup = min(_WARMUP_STEPS_PER_TASK, config.sac.warmup_steps_per_task)
    sac = dataclasses.replace(config.sac, warmup_steps_per_task=warmup)
    return dataclasses.replace(config, device="cpu", total_env_steps=10**9, sac=sac)


@contextmanager
def threads_of(config: RunConfig) -> Iterator[None]:
    """Lets torch compute with the threads of a run within the body."""
    before = torch.get_num_threads()
    set_up_torch(config)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fresh_requests(learner: MultiTaskSac, number: int) -> list[CollectRequest]:
    """Returns requests that each bring a policy weights to load, as in a loop with updates between them."""
    request = learner.request()
    return [dataclasses.replace(request, version=next(_VERSIONS)) for _ in range(number)]


_VERSIONS = itertools.count(-2, -1)  # never a learner's


class BareSimulator:
    """Environments that make the steps of a collector's again, without a policy and without blocks."""

    def __init__(self, config: RunConfig) -> None:
        self._envs = build_envs(config, training_assignments(config), terminate_on_success=False)
        self._obs = self._envs.reset(seed=0)[0].astype(np.float32)

    def seconds(self, state: Mapping[str, Any], blocks: Sequence[Block]) -> float:
        """Returns how long the steps of blocks take.

        Args:
            state: Of the collector before them.
            blocks: Of all its environments.
        """
        self._envs.set_state(state["envs"])
        actions = np.concatenate([block.action for block in blocks])  # [step, env, action_dim]
        began = time.perf_counter()
        for action in actions:
            self._envs.step(action, out=np.empty_like(self._obs))
        return time.perf_counter() - began

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()


def checked_mtsac(learner: Learner) -> MultiTaskSac:
    """Returns a learner that is one of multi-task SAC.

    Raises:
        ConfigError: If it is another.
    """
    if not isinstance(learner, MultiTaskSac):
        raise ConfigError("algorithm", "this bench is for rows with algorithm=mtsac")
    return learner


def never() -> bool:
    """Says that an engine need not pause."""
    return False


class _Bench:
    """An engine, and beside it a collector and a bare simulator, so that the engine's collector is its own."""

    def __init__(self, config: RunConfig) -> None:
        suite = build_suite(config)
        self.num_envs = len(training_assignments(config))
        self._engine = LocalEngine(config, suite)
        self._learner = checked_mtsac(self._engine.learner)
        self._collector: Collector = build_collector(config, suite)
        self._simulator = BareSimulator(config)
        self._engine.advance(config.sac.warmup_steps_per_task * suite.num_tasks, never)

    def parts(self, num_rounds: int) -> dict[str, float]:
        """Does the work of some rounds, one part after the other; leaves no update due."""
        requests, state = fresh_requests(self._learner, num_rounds), self._collector.get_state()
        blocks, began = [], time.perf_counter()
        for request in requests:
            with one_thread():  # as the engine does
                blocks.append(self._collector.collect(request))
        collected = time.perf_counter()
        for block in blocks:
            self._learner.receive([block])
        received = time.perf_counter()
        num_steps = sum(len(block.reward) for block in blocks)
        return {
            "simulate_s": self._simulator.seconds(state, blocks) / num_steps,
            "collect_s": (collected - began) / num_steps,
            "receive_s": (received - collected) / num_steps,
            **self._updates(),
        }

    def loop(self, num_rounds: int) -> dict[str, float]:
        """Runs so many rounds of the engine."""
        steps, updates = self._learner.env_steps, self._learner.gradient_steps
        until = steps + num_rounds * self._learner.request().amount * self.num_envs
        began = time.perf_counter()
        progress = self._engine.advance(until, never)
        seconds = time.perf_counter() - began
        num_steps = (self._learner.env_steps - steps) / self.num_envs
        return {
            "loop_s": seconds / num_steps,
            "updates_per_vector_step": (self._learner.gradient_steps - updates) / num_steps,
            **{f"{part}_share": progress.seconds[part] / seconds for part in ("collect", "receive", "update")},
        }

    def close(self) -> None:
        """Closes all environments."""
        self._simulator.close()
        self._collector.close()
        self._engine.close()

    def _updates(self) -> dict[str, float]:
        """Makes the updates that are due, looks at the weights after each, and draws as many batches again."""
        num_updates, update_s, snapshot_s = self._learner.behind(), 0.0, 0.0
        for _ in range(num_updates):
            began = time.perf_counter()
            self._learner.update()
            updated = time.perf_counter()
            self._learner.policy_weights()
            snapshot_s += time.perf_counter() - updated
            update_s += updated - began
        began = time.perf_counter()
        for _ in range(num_updates):
            self._learner.sample()
        sample_s = time.perf_counter() - began
        sums = {"snapshot_s": snapshot_s, "update_s": update_s, "sample_s": sample_s}
        return {name: seconds / num_updates for name, seconds in sums.items()}


def _explained(medians: Mapping[str, float], num_envs: int, collect_steps: int) -> dict[str, float]:
    """Returns the figures of parts and loop with what follows from them."""
    updates = medians["updates_per_vector_step"]
    snapshots = min(1 / collect_steps, updates)  # one for each request, unless there was no update since the last one
    predicted_s = (
        medians["collect_s"] + medians["receive_s"] + snapshots * medians["snapshot_s"] + updates * medians["update_s"]
    )
    return {
        **medians,
        "policy_s": medians["collect_s"] - medians["simulate_s"],
        "env_steps_per_s": num_envs / medians["loop_s"],
        "updates_per_s": updates / medians["loop_s"],
        "predicted_s": predicted_s,
        "explained": predicted_s / medians["loop_s"],
    }

"""What asynchronous collection in one process costs: the loop beside the slower of its two sides alone.

Each side keeps to cores of its own (`pin_threads`), alone as in the loop. All are timed in turn, and figures are
medians.
"""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from mtrl.bench.training import BareSimulator, checked_mtsac, fresh_requests, never, shortened, threads_of
from mtrl.config import ConfigError, RunConfig
from mtrl.config_io import load_config
from mtrl.data import Block
from mtrl.engine.asynchronous import BackgroundCollector, run_asynchronously
from mtrl.engine.threads import Cores, kept_to, share_cores
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device
from mtrl.rollout.build import build_collector, build_suite, training_assignments

ROWS = (Path("configs/mt10/pcgrad.yaml"), Path("configs/quickstart.yaml"))


def bench_overlaps() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS`; none where threads cannot keep to cores of their own."""
    configs = [load_config(row) for row in ROWS]
    try:
        share_cores(configs[0])
    except ConfigError:
        return {}
    return {f"overlap, {config.name}": bench_overlap(config) for config in configs}


def bench_overlap(config: RunConfig, repeats: int = 5, num_requests: int = 3) -> dict[str, float]:
    """Times collecting, learning and both at once, on the CPU, the warm-up cut short.

    Args:
        config: Of a row of multi-task SAC.
        repeats: Turns that count; one before them warms up.
        num_requests: That each side serves in a turn, and then both at once.

    Returns:
        `collection_cores` and `learner_cores`, how many each side has. Seconds of an environment step: `simulate_s`,
        the simulator alone; `collect_s`, the same steps with the policy, in the thread that the loop uses; `learn_s`,
        the snapshot of the weights, reception and the updates that are due; `loop_s`, both sides at once, from the
        first request to the last update, so that the first request and the last updates overlap with nothing.
        `loop_over_slower`, the loop over the larger of `collect_s` and `learn_s`; `loop_over_slower_simulation`, the
        same with `simulate_s` in place of `collect_s`.

    Raises:
        ConfigError: If threads cannot keep to cores of their own.
    """
    config = dataclasses.replace(shortened(config), engine="local", collection="async", pin_threads=True)
    cores = share_cores(config)
    with threads_of(config), kept_to(cores.learner), closing(_Sides(config, cores)) as sides:
        turns = [sides.alone(num_requests) | sides.together(num_requests) for _ in range(1 + repeats)][1:]
    seconds = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    return {
        "collection_cores": float(len(cores.collection)),
        "learner_cores": float(len(cores.learner)),
        **seconds,
        "loop_over_slower": seconds["loop_s"] / max(seconds["collect_s"], seconds["learn_s"]),
        "loop_over_slower_simulation": seconds["loop_s"] / max(seconds["simulate_s"], seconds["learn_s"]),
    }


class _Sides:
    """A learner in the calling thread, and a collector and a bare simulator in threads on the other cores."""

    def __init__(self, config: RunConfig, cores: Cores) -> None:
        suite, num_envs = build_suite(config), len(training_assignments(config))
        self._env_steps_per_request = num_envs * max(config.sac.collect_steps, config.steps_per_request)
        self._learner = checked_mtsac(build_learner(config, suite, choose_device(config.device)))
        with ExitStack() as opened:
            self._collector = opened.enter_context(closing(build_collector(config, suite)))
            source = BackgroundCollector(
                self._collector, num_envs, config.requests_in_flight, config.steps_per_request, cores.collection
            )
            self._source = opened.enter_context(closing(source))
            self._simulator = opened.enter_context(closing(BareSimulator(config)))
            self._thread = opened.enter_context(
                ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, cores.collection))
            )
            self._run(config.sac.warmup_steps_per_task * suite.num_tasks)
            self._opened = opened.pop_all()

    def alone(self, num_requests: int) -> dict[str, float]:
        """Serves requests one side after the other; returns the seconds of an environment step."""
        state = self._collector.get_state()
        began = time.perf_counter()
        blocks = self._collect(num_requests)
        collected = time.perf_counter()
        self._learn(blocks)
        learned = time.perf_counter()
        simulate_s = self._thread.submit(self._simulator.seconds, state, blocks).result()
        sums = {"simulate_s": simulate_s, "collect_s": collected - began, "learn_s": learned - collected}
        num_env_steps = sum(block.env_steps() for block in blocks)
        return {name: seconds / num_env_steps for name, seconds in sums.items()}

    def together(self, num_requests: int) -> dict[str, float]:
        """Serves as many requests with both sides at once; returns the seconds of an environment step."""
        num_env_steps = num_requests * self._env_steps_per_request
        began = time.perf_counter()
        self._run(num_env_steps)
        return {"loop_s": (time.perf_counter() - began) / num_env_steps}

    def close(self) -> None:
        """Ends the threads and closes the environments."""
        self._opened.close()

    def _run(self, num_env_steps: int) -> None:
        """Does what the engine does, until all updates are made."""
        until = self._learner.env_steps + num_env_steps
        run_asynchronously(self._learner, self._source, until, until, never)

    def _collect(self, num_requests: int) -> list[Block]:
        blocks: list[Block] = []
        for request in fresh_requests(self._learner, num_requests):
            self._source.submit(request, 10**9)
        while len(blocks) < num_requests:
            blocks += self._source.ready(1.0)
        return blocks

    def _learn(self, blocks: list[Block]) -> None:
        for block in blocks:
            self._learner.request()
            self._learner.receive([block])
            while self._learner.update() is not None:
                pass

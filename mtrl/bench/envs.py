"""How many environment steps per second one process simulates."""

from __future__ import annotations

import time

import numpy as np

import envs
from envs.episodes import Assignment


def bench_envs(benchmark: str, num_steps: int = 300) -> dict[str, float]:
    """Steps one environment per task with uniformly random actions.

    Returns:
        `build_s` until the first observation, `env_steps_s`, and `reset_s` of one environment to a stored state.
    """
    began = time.perf_counter()
    vector = envs.make(benchmark)
    vector.reset(seed=0)
    build_s = time.perf_counter() - began
    draws = np.random.default_rng(0)
    actions = draws.uniform(-1, 1, (num_steps, vector.num_envs, 4)).astype(np.float32)
    began = time.perf_counter()
    for action in actions:
        vector.step(action)
    step_s = time.perf_counter() - began
    vector.assign([Assignment(task, (0,)) for task in range(vector.num_tasks)])
    vector.reset(seed=0)
    began = time.perf_counter()
    for _ in range(10):
        vector.reset()
    reset_s = (time.perf_counter() - began) / (10 * vector.num_envs)
    vector.close()
    return {"build_s": build_s, "env_steps_s": num_steps * vector.num_envs / step_s, "reset_s": reset_s}

"""Where the time of one iteration of a meta-learning row goes, beside the simulator alone, and its memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mtrl.bench.memory import forget_peak, peak_bytes
from mtrl.config import RunConfig
from mtrl.config_io import load_config
from mtrl.data import Array
from mtrl.engine.local import LocalEngine
from mtrl.rollout.build import build_envs, build_suite, training_assignments

ROWS = (Path("configs/ml10/maml_trpo.yaml"), Path("configs/ml10/rl2_ppo.yaml"))


def bench_iterations() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS`."""
    found = {}
    for row in ROWS:
        config = load_config(row)
        found[f"iteration, {config.name}"] = bench_iteration(config)
    return found


def bench_iteration(config: RunConfig) -> dict[str, float]:
    """Runs one iteration of a row: its episodes, and the update from them.

    Args:
        config: Of a meta-learning row whose episodes do not end before their time.

    Returns:
        `env_steps`; `collect_s` with the policy, `simulate_s`, as many steps with uniformly random actions and nothing
        else, `learn_s`, and `collect_over_simulate`; on Linux `peak_memory_bytes`.
    """
    suite = build_suite(config)
    forgotten = forget_peak()
    engine = LocalEngine(config, suite)
    progress = engine.advance(1, lambda: False)  # up to the end of a round
    while engine.learner.gradient_steps == 0:
        progress.merge(engine.advance(engine.learner.env_steps + 1, lambda: False))
    env_steps = engine.learner.env_steps
    figures = {
        "env_steps": float(env_steps),
        "collect_s": progress.seconds["collect"],
        "simulate_s": _simulate_s(config, env_steps),
        "learn_s": progress.seconds["receive"] + progress.seconds["update"],
    }
    engine.close()
    figures["collect_over_simulate"] = figures["collect_s"] / figures["simulate_s"]
    return figures | ({"peak_memory_bytes": float(peak_bytes())} if forgotten else {})


def _simulate_s(config: RunConfig, env_steps: int) -> float:
    """Returns the seconds of so many steps, from those of the first episodes."""
    envs = build_envs(config, training_assignments(config), terminate_on_success=False)
    draws = np.random.default_rng(0)
    actions: Array = draws.uniform(-1.0, 1.0, (config.env.max_episode_steps, envs.num_envs, 4)).astype(np.float32)
    envs.reset(seed=0)
    began = time.perf_counter()
    for action in actions[:, :, : envs.single_action_space.shape[0]]:
        envs.step(action)
    seconds = time.perf_counter() - began
    envs.close()
    return float(seconds * env_steps / (len(actions) * envs.num_envs))

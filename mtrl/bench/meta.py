"""Where the time of one iteration of a meta-learning row goes, beside the simulator alone, and its memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mtrl.bench.memory import forget_peak, peak_bytes
from mtrl.bench.products import count_products, products_s
from mtrl.config import RunConfig
from mtrl.config_io import load_config
from mtrl.data import Array
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device, set_threads
from mtrl.learners.protocol import Learner
from mtrl.networks.recurrent import RecurrentGaussian
from mtrl.rollout.build import build_collector, build_envs, build_suite, training_assignments
from mtrl.rollout.collector import Collector

ROWS = (Path("configs/ml10/maml_trpo.yaml"), Path("configs/ml10/rl2_ppo.yaml"))


def bench_iterations() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS`."""
    found = {}
    for row in ROWS:
        config = load_config(row)
        found[f"iteration, {config.name}"] = bench_iteration(config)
    return found


def bench_iteration(config: RunConfig) -> dict[str, float]:
    """Runs an iteration of a row: its episodes, and the update from them; then another one to count its products.

    Args:
        config: Of a meta-learning row whose episodes do not end before their time.

    Returns:
        `env_steps`; `collect_s` with the policy, `simulate_s`, as many steps with uniformly random actions and nothing
        else, and their ratio `collect_over_simulate`; `learn_s`, `products_s`, the matrix products of an update and
        nothing else, and `learn_over_products`; on Linux `peak_memory_bytes` of the first iteration.
    """
    set_threads(config)
    suite, device = build_suite(config), choose_device(config.device)
    forgotten = forget_peak()
    learner, collector = build_learner(config, suite, device), build_collector(config, suite)
    collect_s, receive_s = _collect(learner, collector)
    began = time.perf_counter()
    learner.update()
    learn_s = receive_s + time.perf_counter() - began
    env_steps = learner.env_steps
    figures = {
        "env_steps": float(env_steps),
        "collect_s": collect_s,
        "simulate_s": _simulate_s(config, env_steps),
        "learn_s": learn_s,
    }
    if forgotten:
        figures["peak_memory_bytes"] = float(peak_bytes())
    _collect(learner, collector)
    network = learner.policy_network
    if isinstance(network, RecurrentGaussian):
        network.compiled = False  # its products are the same as torch's, but cannot be seen
    figures["products_s"] = products_s(count_products(learner.update))
    collector.close()
    figures["learn_over_products"] = figures["learn_s"] / figures["products_s"]
    figures["collect_over_simulate"] = figures["collect_s"] / figures["simulate_s"]
    return figures


def _collect(learner: Learner, collector: Collector) -> tuple[float, float]:
    """Does all that an update waits for; returns the seconds of collecting, and those that the learner took it in."""
    collect_s = receive_s = 0.0
    while not learner.behind():
        began = time.perf_counter()
        block = collector.collect(learner.request())
        collected = time.perf_counter()
        learner.receive([block])
        collect_s, receive_s = collect_s + collected - began, receive_s + time.perf_counter() - collected
    return collect_s, receive_s


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

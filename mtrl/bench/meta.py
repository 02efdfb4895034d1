"""Where the time of one iteration of a meta-learning row goes, beside the simulator alone, and its memory."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from envs.episodes import Assignment
from mtrl.bench.memory import forget_peak, peak_bytes
from mtrl.bench.products import Product, count_products, products_s
from mtrl.config import RunConfig
from mtrl.config_io import load_config
from mtrl.data import Array
from mtrl.engine.threads import one_thread, set_up_torch
from mtrl.learners.build import build_learner
from mtrl.learners.protocol import Learner
from mtrl.networks.build import Suite
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
    """Runs an iteration of a row on the CPU: its episodes, and the update from them; then the update again to count.

    Args:
        config: Of a meta-learning row whose episodes do not end before their time.

    Returns:
        `env_steps`; `collect_s` with the policy, `simulate_s`, the same tasks and actions and nothing
        else, and their ratio `collect_over_simulate`; `learn_s`, all that the learner computes, adaptation included,
        `products_s`, the matrix products of the outer update and nothing else, and `learn_over_products`; on Linux
        `peak_memory_bytes` of the iteration. Where compiled code is not in the cache, its making counts in.
    """
    config = dataclasses.replace(config, device="cpu")
    set_up_torch(config)
    suite, device = build_suite(config), torch.device("cpu")
    forgotten = forget_peak()
    learner, collector = build_learner(config, suite, device), build_collector(config, suite)
    collected, collect_s, learn_s = _collect(learner, collector)
    before = copy.deepcopy(learner.state_dict())
    began = time.perf_counter()
    learner.update()
    learn_s += time.perf_counter() - began
    peak = {"peak_memory_bytes": float(peak_bytes())} if forgotten else {}
    collector.close()
    simulate_s = _simulate_s(config, collected)
    alone_s = products_s(_products_of_update(config, suite, before))
    return {
        "env_steps": float(learner.env_steps),
        "collect_s": collect_s,
        "simulate_s": simulate_s,
        "collect_over_simulate": collect_s / simulate_s,
        "learn_s": learn_s,
        "products_s": alone_s,
        "learn_over_products": learn_s / alone_s,
        **peak,
    }


_Collected = list[tuple[tuple[Assignment, ...] | None, Array]]
"""Assignments, if there were new ones, and actions [step, env, action_dim] of each request."""


def _collect(learner: Learner, collector: Collector) -> tuple[_Collected, float, float]:
    """Does all that an update waits for; returns what was done, the seconds of it and those of the learner."""
    done: _Collected = []
    collect_s = learn_s = 0.0
    while not learner.behind():
        began = time.perf_counter()
        request = learner.request()
        asked = time.perf_counter()
        with one_thread():  # as engines do
            block = collector.collect(request)
        collected = time.perf_counter()
        learner.receive([block])
        done.append((request.assignments, block.action))
        collect_s += collected - asked
        learn_s += asked - began + time.perf_counter() - collected
    return done, collect_s, learn_s


def _products_of_update(config: RunConfig, suite: Suite, state: Mapping[str, Any]) -> Counter[Product]:
    learner = build_learner(config, suite, torch.device("cpu"))
    learner.load_state_dict(state)
    network = learner.policy_network
    if isinstance(network, RecurrentGaussian):
        network.compiled = False  # only torch's products are seen; it multiplies out weight gradients step by step
    return count_products(learner.update)


def _simulate_s(config: RunConfig, collected: _Collected) -> float:
    """Returns the seconds of the same tasks and actions."""
    envs = build_envs(config, training_assignments(config), terminate_on_success=False)
    envs.reset(seed=0)
    began = time.perf_counter()
    for assignments, actions in collected:
        if assignments is not None:
            envs.assign(assignments)
        envs.reset()
        for action in actions:
            envs.step(action)
    seconds = time.perf_counter() - began
    envs.close()
    return seconds

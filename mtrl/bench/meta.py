"""Where the time of one iteration of a meta-learning row goes, beside the simulator alone, and its memory."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mtrl.bench.memory import forget_peak, peak_bytes
from mtrl.bench.products import Product, count_products, products_s
from mtrl.config import RunConfig
from mtrl.config_io import load_config
from mtrl.engine.threads import one_thread, set_up_torch
from mtrl.learners.build import build_learner
from mtrl.learners.protocol import CollectRequest, Learner
from mtrl.networks.build import Suite
from mtrl.networks.recurrent import RecurrentGaussian
from mtrl.rollout.build import build_collector, build_envs, build_suite, training_assignments
from mtrl.rollout.collector import Collector

ROWS = (Path("configs/ml10/maml_trpo.yaml"), Path("configs/ml10/rl2_ppo.yaml"))
ROUNDS = 5


def bench_iterations() -> dict[str, dict[str, float]]:
    """Returns the figures of `ROWS`."""
    found = {}
    for row in ROWS:
        config = load_config(row)
        found[f"iteration, {config.name}"] = bench_iteration(config)
    return found


def bench_iteration(config: RunConfig, rounds: int = ROUNDS) -> dict[str, float]:
    """Runs an iteration of a row on the CPU; then its episodes beside the simulator alone, and its products alone.

    Args:
        config: Of a meta-learning row whose episodes do not end before their time.
        rounds: How often all requests are collected again, each time followed by the simulator alone, so that what
            disturbs the machine for a while disturbs both.

    Returns:
        `env_steps`; medians over rounds of `collect_s` with the policy, of `simulate_s`, the same tasks and actions and
        nothing else, and of their ratio `collect_over_simulate`, whose extremes are `collect_over_simulate_least` and
        `collect_over_simulate_most`; `learn_s`, all that the learner computes, adaptation included, `products_s`, the
        matrix products of the outer update and nothing else, and `learn_over_products`; on Linux `peak_memory_bytes`
        of the iteration.
    """
    config = dataclasses.replace(config, device="cpu")
    set_up_torch(config)
    suite, device = build_suite(config), torch.device("cpu")
    forgotten = forget_peak()
    learner, collector = build_learner(config, suite, device), build_collector(config, suite)
    requests, learn_s = _collect(learner, collector)
    before = copy.deepcopy(learner.state_dict())
    began = time.perf_counter()
    learner.update()
    learn_s += time.perf_counter() - began
    peak = {"peak_memory_bytes": float(peak_bytes())} if forgotten else {}
    collection = _again(config, requests, collector, rounds)
    collector.close()
    alone_s = products_s(_products_of_update(config, suite, before))
    return {
        "env_steps": float(learner.env_steps),
        **collection,
        "learn_s": learn_s,
        "products_s": alone_s,
        "learn_over_products": learn_s / alone_s,
        **peak,
    }


def _collect(learner: Learner, collector: Collector) -> tuple[list[CollectRequest], float]:
    """Does all that an update waits for; returns the requests and the seconds of the learner."""
    requests: list[CollectRequest] = []
    learn_s = 0.0
    while not learner.behind():
        began = time.perf_counter()
        requests.append(learner.request())
        asked = time.perf_counter()
        with one_thread():  # as engines do
            block = collector.collect(requests[-1])
        collected = time.perf_counter()
        learner.receive([block])
        learn_s += asked - began + time.perf_counter() - collected
    return requests, learn_s


def _again(
    config: RunConfig, requests: Sequence[CollectRequest], collector: Collector, rounds: int
) -> dict[str, float]:
    """Collects requests again and again, and simulates what was collected; returns what `bench_iteration` says."""
    alone = build_envs(config, training_assignments(config), terminate_on_success=False)
    alone.reset(seed=0)
    collect_s, simulate_s = [0.0] * rounds, [0.0] * rounds
    for number in range(rounds):
        for request in requests:
            began = time.perf_counter()
            with one_thread():
                actions = collector.collect(request).action  # [step, env, action_dim]
            collected = time.perf_counter()
            if request.assignments is not None:
                alone.assign(request.assignments)
            alone.reset()
            for action in actions:
                alone.step(action)
            collect_s[number] += collected - began
            simulate_s[number] += time.perf_counter() - collected
    alone.close()
    ratios = [collect / simulate for collect, simulate in zip(collect_s, simulate_s, strict=True)]
    return {
        "collect_s": statistics.median(collect_s),
        "simulate_s": statistics.median(simulate_s),
        "collect_over_simulate": statistics.median(ratios),
        "collect_over_simulate_least": min(ratios),
        "collect_over_simulate_most": max(ratios),
    }


def _products_of_update(config: RunConfig, suite: Suite, state: Mapping[str, Any]) -> Counter[Product]:
    learner = build_learner(config, suite, torch.device("cpu"))
    learner.load_state_dict(state)
    network = learner.policy_network
    if isinstance(network, RecurrentGaussian):
        network.compiled = False  # only torch's products are seen; it multiplies out weight gradients step by step
    return count_products(learner.update)

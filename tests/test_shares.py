"""Sharing environments out to workers: everything once, as even as the tasks allow, and the same on every machine."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from builders import tiny_config

from envs.benchmarks import ALL_TASKS, get_benchmark
from envs.costs import STEP_COSTS_US, step_cost_us
from envs.episodes import Assignment
from mtrl.config import EnvConfig
from mtrl.rollout.build import shares, training_assignments
from mtrl.rollout.shares import balanced

BENCH = Path(__file__).parents[1] / "results" / "bench" / "tasks.json"


def loads(costs, num_workers):
    return [sum(costs[env] for env in mine) for mine in balanced(costs, num_workers)]


def smallest_possible(costs, num_workers):
    """Tries every way to share out."""

    def largest(owners):
        return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == worker) for worker in owners)

    return min(map(largest, product(range(num_workers), repeat=len(costs))))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 12])
def test_every_environment_has_one_worker(num_workers):
    costs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0]
    shared = balanced(costs, num_workers)
    assert len(shared) == num_workers
    assert sorted(env for mine in shared for env in mine) == list(range(len(costs)))
    assert all(mine == sorted(mine) for mine in shared)
    assert all(shared) == (num_workers <= len(costs))


def test_dear_environments_are_kept_apart():
    assert balanced([9.0, 1.0, 8.0, 1.0, 1.0, 1.0], 2) == [[0, 3, 5], [1, 2, 4]]


def test_equal_environments_are_dealt_out_in_turn():
    assert balanced([1.0] * 5, 2) == [[0, 2, 4], [1, 3]]


def test_share_of_two_workers_is_close_to_the_best_of_all():
    costs = [STEP_COSTS_US[task][0] for task in get_benchmark("MT10").train_tasks]
    assert max(loads(costs, 2)) <= 7 / 6 * smallest_possible(costs, 2)  # Graham's bound for two workers


@pytest.mark.parametrize("backend", ["metaworld", "compiled"])
def test_mt50_is_even_over_eight_workers(backend):
    costs = [step_cost_us(task, backend) for task in ALL_TASKS]
    assert max(loads(costs, 8)) < 1.1 * sum(costs) / 8
    in_turn = [sum(costs[worker::8]) for worker in range(8)]
    assert max(in_turn) > 1.15 * sum(costs) / 8  # so that there was something to gain


def test_costs_are_those_of_the_bench():
    figures = json.loads(BENCH.read_text())["figures"]
    assert set(STEP_COSTS_US) == set(ALL_TASKS) == set(figures)
    for task, (metaworld, compiled) in STEP_COSTS_US.items():
        assert metaworld == pytest.approx(1e6 * figures[task]["class_s"], abs=0.51)
        assert compiled == pytest.approx(1e6 * figures[task]["compiled_s"], abs=0.51)


def test_backend_of_the_settings_decides_the_costs():
    run = {
        backend: tiny_config(env=EnvConfig(benchmark="MT50", backend=backend)) for backend in ("metaworld", "compiled")
    }
    shared = {backend: shares(config, training_assignments(config), 4) for backend, config in run.items()}
    assert shared["metaworld"] != shared["compiled"]
    auto = tiny_config(env=EnvConfig(benchmark="MT50", backend="auto"))
    assert shares(auto, training_assignments(auto), 4) == shared["compiled"]


def test_environment_with_more_goals_counts_more():
    config = tiny_config()
    many, few = Assignment(0, tuple(range(6))), Assignment(0, (0, 1))
    assert shares(config, [many, few, many, few, few, few], 2) == [[0, 1, 4], [2, 3, 5]]

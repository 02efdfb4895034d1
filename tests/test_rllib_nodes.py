"""A cluster that loses a machine: collection goes on with the others and gets the lost workers back on a new one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from builders import tiny_config

from mtrl.config import RllibConfig
from mtrl.rollout.build import build_suite

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores, so that workers are on nodes that can be taken away."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    yield found
    found.shutdown()


def never() -> bool:
    return False


@pytest.mark.parametrize("collection", ["sync", "async"])
def test_a_lost_node_costs_its_workers_only_time(cluster: Any, collection: str) -> None:
    from mtrl.engine.rllib.engine import RllibEngine

    first, _ = (cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2))
    config = tiny_config(
        engine="rllib",
        collection=collection,
        total_env_steps=10**9,
        rllib=RllibConfig(address=cluster.address, num_env_runners=2),
    )
    engine = RllibEngine(config, build_suite(config))
    algorithm = engine._algorithm
    engine.advance(400, never)
    cluster.remove_node(first, allow_graceful=False)
    lost_at = time.monotonic()
    if collection == "async":
        before = engine.learner.env_steps
        engine.advance(before + 400, never)
        print(f"the other worker went on: 400 env steps in {time.monotonic() - lost_at:.1f} s")
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    new_at = time.monotonic()
    while algorithm.calls.num_restarts == 0:
        engine.advance(engine.learner.env_steps + 40, never)
    print(f"{collection}: the worker was back {time.monotonic() - new_at:.1f} s after the new node")
    engine.advance(engine.learner.env_steps + 400, never)
    engine.settle()
    assert algorithm.calls.num_restarts == 1
    assert engine.learner.replay.added.sum() == engine.learner.env_steps
    engine.close()

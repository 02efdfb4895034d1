"""How many environment steps the whole path takes per second: request, collection, delivery, replay, update.

The simulator is the toy suite, which costs next to nothing, and updates are few and small; so what is measured is what
engines, collectors and replay cost.
"""

from __future__ import annotations

import importlib.util
import time

from mtrl.config import EnvConfig, NetworkConfig, ReplayConfig, RllibConfig, RunConfig, SacConfig
from mtrl.engine.build import build_engine
from mtrl.rollout.build import build_suite

VARIANTS = (("local", "sync"), ("local", "async"), ("rllib", "sync"), ("rllib", "async"))
"""Engine and collection."""


def bench_loop(engine: str, collection: str, num_env_steps: int = 400_000) -> dict[str, float]:
    """Runs one engine on the toy suite.

    Args:
        engine: local or rllib, the latter with two workers.
        collection: sync or async.
        num_env_steps: Environment steps that are timed, after a tenth of them to warm up.

    Returns:
        Environment steps per second, updates per second, and the largest lag of the weights that acted, in updates.
    """
    config = RunConfig(
        engine=engine,
        collection=collection,
        device="cpu",
        torch_threads=1,
        total_env_steps=10 * num_env_steps,
        env=EnvConfig(benchmark="toy", copies=64),
        network=NetworkConfig(actor_widths=(32, 32), critic_widths=(32, 32)),
        sac=SacConfig(batch_size=64, samples_per_insert=0.25, warmup_steps_per_task=100, collect_steps=40),
        replay=ReplayConfig(capacity_per_task=100_000),
        rllib=RllibConfig(num_env_runners=2, num_cpus_per_env_runner=0.5, object_store_bytes=200_000_000),
    )
    built = build_engine(config, build_suite(config))
    try:
        built.advance(num_env_steps // 10, lambda: False)
        before, updates = built.learner.env_steps, built.learner.gradient_steps
        began = time.perf_counter()
        progress = built.advance(before + num_env_steps, lambda: False)
        seconds = time.perf_counter() - began
        return {
            "env_steps_per_s": (built.learner.env_steps - before) / seconds,
            "updates_per_s": (built.learner.gradient_steps - updates) / seconds,
            "policy_lag": float(progress.largest_lag),
        }
    finally:
        built.close()


def bench_loops() -> dict[str, dict[str, float]]:
    """Returns the figures of all variants that can run here."""
    found = {}
    for engine, collection in VARIANTS:
        if engine == "local" or importlib.util.find_spec("ray") is not None:
            found[f"loop, toy suite, {engine}, {collection}"] = bench_loop(engine, collection)
    return found

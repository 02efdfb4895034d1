"""How long one SAC update takes beside the matrix products that it cannot do without.

All variants are timed in turn in one process, so that a noisy machine slows them alike; figures are medians and ratios.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl.config import NetworkConfig, RunConfig, SacConfig, SurgeryConfig
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.networks.build import Suite
from mtrl.networks.critic import NUM_CRITICS

OBS_DIM, ACTION_DIM = 39, 4


@dataclass(frozen=True)
class UpdateBench:
    """Sizes of a measurement."""

    num_tasks: int = 10
    batch_size: int = 128
    widths: tuple[int, ...] = (400, 400, 400)
    repeats: int = 30


def bench_update(sizes: UpdateBench) -> dict[str, float]:
    """Times plain updates, PCGrad updates and the bare products.

    Returns:
        Medians in seconds (`products_s`, `plain_s`, `pcgrad_s`) and their ratios.
    """
    variants: dict[str, Callable[[], object]] = {
        "products": Products(sizes).run,
        "plain": _learner(sizes, "mean").update,
        "pcgrad": _learner(sizes, "pcgrad").update,
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(sizes.repeats + 3):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if repeat >= 3:  # the first ones allocate
                seconds[name].append(time.perf_counter() - began)
    medians = {f"{name}_s": float(np.median(times)) for name, times in seconds.items()}
    return {
        **medians,
        "plain_over_products": medians["plain_s"] / medians["products_s"],
        "pcgrad_over_plain": medians["pcgrad_s"] / medians["plain_s"],
    }


class Products:
    """The matrix products of one update, on memory that is there already: nothing but `torch.mm` and `bmm`.

    Critic step: actor and target critics forward at the next observation, critics forward, their weight gradients, and
    input gradients of all layers but the first. Actor step: actor and critics forward, input gradients of the critics,
    whose weights are frozen, weight gradients of the actor, and its input gradients of all layers but the first.
    """

    def __init__(self, sizes: UpdateBench) -> None:
        rows = sizes.num_tasks * sizes.batch_size
        actor = _layers(OBS_DIM + sizes.num_tasks, sizes.widths)
        critic = _layers(OBS_DIM + ACTION_DIM + sizes.num_tasks, sizes.widths)
        forward_only = [*actor, *critic * NUM_CRITICS, *critic * NUM_CRITICS, *actor, *critic * NUM_CRITICS]
        shapes = [(rows, inner, outer) for inner, outer in forward_only]
        for layers, copies in ((critic, NUM_CRITICS), (actor, 1)):
            for _ in range(copies):
                shapes += [(outer, rows, inner) for inner, outer in layers]  # weight gradients
                shapes += [(rows, outer, inner) for inner, outer in layers[1:]]  # input gradients
        shapes += [(rows, outer, inner) for inner, outer in critic * NUM_CRITICS]  # towards the action
        heads = [(2 * ACTION_DIM, 1), (1, NUM_CRITICS)]
        self._heads = [
            (sizes.num_tasks * nets, sizes.batch_size, sizes.widths[-1], width)
            for width, nets in heads
            for _ in range(3)
        ]
        self._operands = [_operands(*shape) for shape in shapes]
        self._head_operands = [
            (torch.randn(batch, m, k), torch.randn(batch, k, n), torch.empty(batch, m, n))
            for batch, m, k, n in self._heads
        ]

    def run(self) -> None:
        """Does all products once."""
        for left, right, out in self._operands:
            torch.mm(left, right, out=out)
        for left, right, out in self._head_operands:
            torch.bmm(left, right, out=out)


def _layers(fan_in: int, widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip((fan_in, *widths[:-1]), widths, strict=True))


def _operands(m: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)


def _learner(sizes: UpdateBench, method: str) -> MultiTaskSac:
    config = RunConfig(
        device="cpu",
        network=NetworkConfig(actor_widths=sizes.widths, critic_widths=sizes.widths),
        sac=SacConfig(batch_size=sizes.batch_size),
        surgery=SurgeryConfig(method=method),
    )
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, capacity_per_task=10_000))
    suite = Suite(tuple(f"task-{task}" for task in range(sizes.num_tasks)), OBS_DIM, ACTION_DIM)
    learner = MultiTaskSac(config, suite, torch.device("cpu"))
    draws = np.random.default_rng(0)
    for task in range(sizes.num_tasks):
        n = config.replay.capacity_per_task
        obs = draws.normal(size=(n, OBS_DIM))
        learner.replay.add(task, obs, draws.uniform(-1, 1, (n, ACTION_DIM)), draws.uniform(0, 10, n), obs, np.zeros(n))
    learner.env_steps = 10**12
    return learner

"""How long one SAC update takes beside the matrix products that it cannot do without.

All variants are timed in turn in one process, so that a noisy machine slows them alike; figures are medians and ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mtrl.bench.filled import ACTION_DIM, OBS_DIM, filled_learner
from mtrl.config import NetworkConfig, RunConfig, SacConfig, SurgeryConfig
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.networks.critic import NUM_CRITICS
from mtrl.surgery.pcgrad import pcgrad_weights, random_orders

_SIZES = (
    # tasks, width, repeats and those before them: all together some minutes on two cores
    (10, 400, 30, 3),
    (10, 256, 20, 3),
    (10, 1024, 7, 1),
    (50, 400, 10, 2),
    (50, 256, 10, 2),
    (50, 1024, 3, 1),
)


@dataclass(frozen=True)
class UpdateBench:
    """Sizes of a measurement."""

    num_tasks: int = 10
    batch_size: int = 128
    widths: tuple[int, ...] = (400, 400, 400)
    repeats: int = 30
    warm_up: int = 3
    """Repeats before those that count; the first ones allocate."""


def bench_updates() -> dict[str, dict[str, float]]:
    """Returns the figures of MT10 and MT50 with three widths, and those of PCGrad's projection alone."""
    found = {}
    for num_tasks, width, repeats, warm_up in _SIZES:
        sizes = UpdateBench(num_tasks=num_tasks, widths=(width,) * 3, repeats=repeats, warm_up=warm_up)
        found[f"update, MT{num_tasks}, 3x{width}, {num_tasks}x{sizes.batch_size}"] = bench_update(sizes)
    found["projection, 50 tasks"] = bench_projection(50)
    return found


def bench_update(sizes: UpdateBench) -> dict[str, float]:
    """Times plain updates, PCGrad updates and the bare products.

    Returns:
        Medians in seconds (`products_s`, `plain_s`, `pcgrad_s`), their ratios, and updates per second.
    """
    variants: dict[str, Callable[[], object]] = {
        "products": Products(sizes).run,
        "plain": _learner(sizes, "mean").update,
        "pcgrad": _learner(sizes, "pcgrad").update,
    }
    medians = _take_turns(variants, sizes.repeats, sizes.warm_up)
    return {
        **medians,
        "plain_over_products": medians["plain_s"] / medians["products_s"],
        "pcgrad_over_plain": medians["pcgrad_s"] / medians["plain_s"],
        "plain_updates_per_s": 1 / medians["plain_s"],
        "pcgrad_updates_per_s": 1 / medians["pcgrad_s"],
    }


def bench_projection(num_tasks: int, repeats: int = 100) -> dict[str, float]:
    """Times PCGrad's projections alone, from inner products of gradients to the weights of the originals.

    Half of the pairs conflict. An update projects for the actor, `one_net_s`, and for both critics, `two_nets_s`.

    Returns:
        Medians in seconds.
    """
    generator = torch.Generator().manual_seed(0)
    variants: dict[str, Callable[[], object]] = {}
    for name, num_nets in (("one_net", 1), ("two_nets", NUM_CRITICS)):
        gradients = torch.randn(num_nets, num_tasks, 4 * num_tasks, generator=generator)
        gram = gradients @ gradients.transpose(1, 2)  # [net, task, task]
        variants[name] = partial(pcgrad_weights, gram, random_orders(num_nets, num_tasks, generator))
    return _take_turns(variants, repeats, warm_up=3)


def _take_turns(variants: Mapping[str, Callable[[], object]], repeats: int, warm_up: int) -> dict[str, float]:
    """Returns the median seconds of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(warm_up + repeats):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {f"{name}_s": float(np.median(times)) for name, times in seconds.items()}


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
    return filled_learner(config, sizes.num_tasks)

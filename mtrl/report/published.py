"""Published success rates on Meta-World, each with the protocol it was measured under and where it was found.

Numbers of different protocols do not compare: reward version, horizon, steps, environments and the statistic all move
them. `None` means that the source, as far as it was at hand, does not say. Nothing here was measured by this project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

SCALING = "McLean et al. 2025 (arXiv 2503.05126), figure data"
META_WORLD_PLUS = "McLean et al. 2025, Meta-World+ (arXiv 2505.11289), third-party summary"
META_WORLD_PLUS_FIGURE = "McLean et al. 2025, Meta-World+ (arXiv 2505.11289), approximate, third-party summary"
AUTHORS = "the method's authors, as quoted in Meta-World+ (arXiv 2505.11289), third-party summary"
CAGRAD = "Liu et al. 2021, CAGrad (arXiv 2110.14048), Table 3"
NASH_MTL = "Navon et al. 2022, Nash-MTL (arXiv 2202.01017), Table 5"
T3S = "T3S (task-specific feature selector and scheduler), Table I"


@dataclass(frozen=True)
class Protocol:
    """How a number was measured.

    Attributes:
        reward_version: Meta-World's reward functions, v1 or v2.
        horizon: Time limit of an episode.
        env_steps: Environment steps of all tasks together.
        seeds: Number of training runs.
        statistic: What was made of the runs, and what the interval is.
    """

    reward_version: str | None = None
    horizon: int | None = None
    env_steps: int | None = None
    seeds: int | None = None
    statistic: str = ""


@dataclass(frozen=True)
class Published:
    """One number from the literature.

    Attributes:
        benchmark: As in `env.benchmark`.
        method: The paper's name of it, with the network where the paper varies it.
        success: Mean success over tasks, 0 to 1.
        interval: Printed interval or plus-minus one standard error, see `protocol.statistic`; `None` if not printed.
        protocol: How it was measured.
        source: Paper and table.
    """

    benchmark: str
    method: str
    success: float
    interval: tuple[float, float] | None
    protocol: Protocol
    source: str


def published(benchmark: str) -> tuple[Published, ...]:
    """Returns all published numbers of a benchmark; empty if none is known."""
    return tuple(number for number in PUBLISHED if number.benchmark == benchmark)


_Row = tuple[float, float, float] | float
"""Success with interval (low, high), or alone."""


def _table(
    source: str, protocols: Mapping[str, Protocol], rows: Mapping[str, tuple[_Row | None, ...]]
) -> Iterator[Published]:
    """Reads a table whose columns are the benchmarks of `protocols` and whose rows are methods."""
    for method, cells in rows.items():
        for (benchmark, protocol), cell in zip(protocols.items(), cells, strict=True):
            match cell:
                case (success, low, high):
                    yield Published(benchmark, method, success, (low, high), protocol, source)
                case float(success):
                    yield Published(benchmark, method, success, None, protocol, source)


def _with_errors(rows: Mapping[str, tuple[tuple[float, float] | None, ...]]) -> dict[str, tuple[_Row | None, ...]]:
    """Turns (mean, standard error) into (mean, mean - error, mean + error)."""
    return {
        method: tuple(cell and (cell[0], round(cell[0] - cell[1], 3), round(cell[0] + cell[1], 3)) for cell in cells)
        for method, cells in rows.items()
    }


_SCALING = Protocol("v2", 500, None, None, "interquartile mean over runs, 95 % bootstrap")
_SCALING_10 = replace(_SCALING, env_steps=20_000_000)
_SCALING_50 = replace(_SCALING, env_steps=100_000_000)
_PLUS = Protocol("v2", 500, None, 10, "interquartile mean over runs")
_PLUS_10 = replace(_PLUS, env_steps=20_000_000)
_PLUS_50 = replace(_PLUS, env_steps=100_000_000)
_CAGRAD = Protocol("v1", 150, None, 10, "mean over runs, ± standard error; reportedly of each run's best evaluation")
_CAGRAD_10 = replace(_CAGRAD, env_steps=20_000_000)
_CAGRAD_50 = replace(_CAGRAD, env_steps=100_000_000)
_T3S_10 = Protocol(env_steps=15_000_000, seeds=3, statistic="mean over runs")
_T3S_50 = Protocol(env_steps=50_000_000, seeds=3, statistic="mean over runs")
_AUTHORS = Protocol(statistic="as its authors report it; protocols differ")

PUBLISHED: tuple[Published, ...] = (
    *_table(
        SCALING,
        {"MT10": _SCALING_10, "MT50": _SCALING_50},
        {
            "MTMHSAC 400x3": ((0.748, 0.729, 0.769), (0.549, 0.546, 0.551)),
            "Soft Modules": ((0.812, 0.770, 0.865), (0.659, 0.653, 0.665)),
            "MOORE": ((0.810, 0.785, 0.838), (0.649, 0.642, 0.655)),
            "PaCo": ((0.738, 0.728, 0.747), (0.586, 0.573, 0.597)),
            "MTMHSAC, size of Soft Modules": (0.857, 0.678),
            "MTMHSAC, size of MOORE": (0.875, 0.722),
            "MTMHSAC, size of PaCo": (0.869, 0.802),
        },
    ),
    *_table(
        SCALING,
        {"MT10": _SCALING_10, "MT25": _SCALING, "MT50": _SCALING_50},
        {
            "MTMHSAC 256x3": ((0.743, 0.723, 0.764), (0.587, 0.584, 0.590), (0.527, 0.523, 0.531)),
            "MTMHSAC 512x3": (0.841, 0.630, 0.590),
            "MTMHSAC 1024x3": (0.870, 0.739, 0.727),
            "MTMHSAC 2048x3": (0.922, 0.802, 0.823),
            "MTMHSAC 4096x3": (0.937, 0.791, 0.825),
        },
    ),
    *_table(
        META_WORLD_PLUS_FIGURE,
        {"MT10": _PLUS_10, "MT25": _PLUS, "MT50": _PLUS_50},
        {"MTMHSAC": (0.75, 0.65, 0.60)},
    ),
    *_table(
        META_WORLD_PLUS,
        {"MT10": _PLUS_10, "MT50": _PLUS_50},
        {"Soft Modules": (0.849, 0.658), "PaCo": (0.736, 0.584), "MOORE": (0.832, 0.720)},
    ),
    *_table(
        META_WORLD_PLUS,
        {"MT10": replace(_PLUS_10, reward_version="v1"), "MT50": replace(_PLUS_50, reward_version="v1")},
        {"Soft Modules": (0.714, 0.606), "PaCo": (0.262, 0.186), "MOORE": (0.614, 0.612)},
    ),
    *_table(
        AUTHORS,
        {"MT10": _AUTHORS, "MT50": _AUTHORS},
        {"Soft Modules": (0.718, 0.610), "PaCo": (0.854, 0.573), "MOORE": (0.887, 0.729)},
    ),
    *_table(
        CAGRAD,
        {"MT10": _CAGRAD_10, "MT50": _CAGRAD_50},
        _with_errors(
            {
                "MT-SAC": ((0.49, 0.073), (0.36, 0.013)),
                "MT-SAC + task encoder": ((0.54, 0.047), (0.40, 0.024)),
                "Multi-headed SAC": ((0.61, 0.036), (0.45, 0.064)),
                "PCGrad": ((0.72, 0.022), (0.50, 0.017)),
                "Soft Modularization": ((0.73, 0.043), (0.50, 0.035)),
                "CAGrad": ((0.83, 0.045), (0.52, 0.023)),
                "CAGrad-Fast": ((0.82, 0.039), (0.50, 0.016)),
                "CARE": ((0.84, 0.051), (0.54, 0.031)),
                "one SAC per task": ((0.90, 0.032), (0.74, 0.041)),
            }
        ),
    ),
    *_table(
        NASH_MTL,
        {"MT10": _CAGRAD_10},
        _with_errors(
            {
                "Nash-MTL": ((0.91, 0.031),),
                "Nash-MTL-50": ((0.85, 0.022),),
                "Nash-MTL-100": ((0.87, 0.033),),
            }
        ),
    ),
    *_table(
        T3S,
        {"MT10": _T3S_10, "MT50": _T3S_50},
        {
            "MT-SAC": (0.36, 0.25),
            "MT-MH-SAC": (0.61, 0.29),
            "Soft Modules": (0.64, 0.62),
            "CAGrad": (0.75, 0.67),
            "T3S": (0.80, 0.65),
        },
    ),
)

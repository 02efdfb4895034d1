"""Statistics of success rates: means, interquartile means, and how sure they are.

Everything is a pure function of arrays and a generator. A success matrix is `[seed, task]`: the success rate of each
trained policy on each task. Two kinds of doubt are kept apart: intervals over *seeds* say how another training run
would come out, intervals over *episodes* only how well these policies were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 1_000  # resamples held in memory at once


@dataclass(frozen=True)
class Interval:
    """A confidence interval of 95 %.

    Attributes:
        low: Lower end.
        high: Upper end.
        over: What was drawn at random: `seeds` or `episodes`.
    """

    low: float
    high: float
    over: str


@dataclass(frozen=True)
class Scores:
    """The scores of one method on a list of tasks.

    Attributes:
        mean: Mean over seeds and tasks.
        mean_interval: Over seeds; over episodes where there is one seed.
        iqm: Interquartile mean over seeds and tasks.
        iqm_interval: Over seeds; `None` where there is one seed, as episodes say nothing about it.
        per_task: Mean over seeds [task].
        per_task_intervals: Over episodes, those of all seeds together [task].
    """

    mean: float
    mean_interval: Interval
    iqm: float
    iqm_interval: Interval | None
    per_task: Array
    per_task_intervals: tuple[Interval, ...]


def mean(success: Array) -> Array:
    """Returns the mean over seeds and tasks, `[..., seed, task]` to `[...]`."""
    return np.asarray(success.mean(axis=(-2, -1)))


def interquartile_mean(success: Array) -> Array:
    """Returns the mean of the middle half of all seed-and-task entries, `[..., seed, task]` to `[...]`.

    As in rliable (Agarwal et al. 2021, arXiv 2108.13264): a trimmed mean that leaves out the lowest and the highest
    quarter, each rounded down to whole entries. Below four entries it is the mean.
    """
    entries = np.sort(success.reshape(*success.shape[:-2], -1), axis=-1)
    cut = entries.shape[-1] // 4
    return np.asarray(entries[..., cut : entries.shape[-1] - cut].mean(axis=-1))


def seed_interval(
    success: Array, statistic: Statistic, generator: np.random.Generator, resamples: int = RESAMPLES
) -> Interval:
    """Returns the percentile interval of a statistic by the stratified bootstrap of rliable.

    Each resample draws, for each task by itself, as many seeds as there are, with replacement.

    Args:
        success: Success rates [seed, task].
        statistic: Function from `[resample, seed, task]` to `[resample]`.
        generator: Source of the draws.
        resamples: Number of resamples.

    Raises:
        ValueError: With fewer than two seeds, as one seed says nothing about another.
    """
    num_seeds, num_tasks = success.shape
    if num_seeds < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {num_seeds}")
    values = []
    for start in range(0, resamples, _CHUNK):
        shape = (min(_CHUNK, resamples - start), num_seeds, num_tasks)
        drawn = generator.integers(num_seeds, size=shape)
        values.append(statistic(success[drawn, np.arange(num_tasks)]))  # [resample]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(values), (tail, 1 - tail))
    return Interval(float(low), float(high), "seeds")


def wilson_interval(successes: int, episodes: int) -> Interval:
    """Returns the Wilson score interval of a success rate (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Raises:
        ValueError: Without episodes, or with more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"{successes} successes in {episodes} episodes: expected 0 <= successes <= episodes, episodes > 0"
        )
    z = norm.ppf((1 + CONFIDENCE) / 2)
    rate = successes / episodes
    centre = (rate + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    half = z / (1 + z**2 / episodes) * math.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), "episodes")


def episode_interval(successes: NDArray[np.int64], episodes: NDArray[np.int64]) -> Interval:
    """Returns an interval over episodes for the mean over tasks of success rates, from counts [task].

    Combines the tasks' Wilson intervals by the method of variance estimates recovery (Zou & Donner 2008, Stat. Med. 27,
    1693-1702); unlike a bootstrap it has a width where every episode succeeds.
    """
    rates = successes / episodes
    intervals = [wilson_interval(int(s), int(n)) for s, n in zip(successes, episodes, strict=True)]
    below = rates - [interval.low for interval in intervals]
    above = np.array([interval.high for interval in intervals]) - rates
    centre = float(rates.mean())
    low = centre - float(np.linalg.norm(below)) / len(rates)
    high = centre + float(np.linalg.norm(above)) / len(rates)
    return Interval(low, high, "episodes")


def scores(successes: NDArray[np.int64], episodes: NDArray[np.int64], generator: np.random.Generator) -> Scores:
    """Scores a method from its counts of successes and of episodes, both [seed, task].

    Raises:
        ValueError: For counts of different shapes, or a task without episodes.
    """
    if successes.shape != episodes.shape or successes.ndim != 2:
        raise ValueError(f"expected two arrays [seed, task], got shapes {successes.shape} and {episodes.shape}")
    pooled_successes, pooled_episodes = successes.sum(axis=0), episodes.sum(axis=0)  # [task]
    per_task_intervals = tuple(
        wilson_interval(int(s), int(n)) for s, n in zip(pooled_successes, pooled_episodes, strict=True)
    )
    rates: Array = successes / episodes  # [seed, task]
    if len(rates) == 1:
        mean_interval, iqm_interval = episode_interval(pooled_successes, pooled_episodes), None
    else:
        mean_interval = seed_interval(rates, mean, generator)
        iqm_interval = seed_interval(rates, interquartile_mean, generator)
    return Scores(
        mean=float(mean(rates)),
        mean_interval=mean_interval,
        iqm=float(interquartile_mean(rates)),
        iqm_interval=iqm_interval,
        per_task=rates.mean(axis=0),
        per_task_intervals=per_task_intervals,
    )

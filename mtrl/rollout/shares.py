"""Sharing environments out to rollout workers so that none waits long for the others."""

from __future__ import annotations

from collections.abc import Sequence


def balanced(costs: Sequence[float], num_workers: int) -> list[list[int]]:
    """Shares out so that the largest sum of costs is small.

    The dearest goes first, each to the worker that has least so far (Graham, "Bounds on Multiprocessing Timing
    Anomalies", 1969); where dealing out in turn is as good, that is taken.

    Args:
        costs: Of each environment, above 0.
        num_workers: How many share them.

    Returns:
        By worker, the numbers of its environments in ascending order; some have none if there are fewer of them.
    """
    in_turn = [list(range(worker, len(costs), num_workers)) for worker in range(num_workers)]
    greedy: list[list[int]] = [[] for _ in range(num_workers)]
    sums = [0.0] * num_workers
    for env in sorted(range(len(costs)), key=lambda env: -costs[env]):
        worker = sums.index(min(sums))
        greedy[worker].append(env)
        sums[worker] += costs[env]
    if max(sum(costs[env] for env in mine) for mine in in_turn) <= max(sums):
        return in_turn
    return [sorted(mine) for mine in greedy]

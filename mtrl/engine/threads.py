"""How many threads compute, with which precision, and on which cores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mtrl.config import ConfigError, RunConfig
from mtrl.learners.device import choose_device


class Cores(NamedTuple):
    """Who keeps to which cores with `pin_threads`."""

    collection: frozenset[int]
    """Of the thread that collects and of the simulator's."""
    learner: frozenset[int]


def share_cores(config: RunConfig) -> Cores:
    """Shares the cores out that the calling thread may use: to collection the first ones, one for each thread.

    Raises:
        ConfigError: If one side would have none, or the system cannot keep threads to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError(
            "pin_threads", "this system cannot keep a thread to some cores, as Linux can; set it to false"
        )
    cores, num_threads = sorted(os.sched_getaffinity(0)), config.env.num_threads or 1
    if len(cores) == 1:
        raise ConfigError(
            "pin_threads", "there is one core to use, and collection and learner need one each; set it to false"
        )
    if num_threads >= len(cores):
        raise ConfigError(
            "env.num_threads",
            f"{num_threads} threads leave the learner none of {len(cores)} cores; with pin_threads take at most "
            f"{len(cores) - 1}",
        )
    return Cores(frozenset(cores[:num_threads]), frozenset(cores[num_threads:]))


@contextmanager
def kept_to(cores: Set[int]) -> Iterator[None]:
    """Keeps the calling thread, and the threads that it starts, to some cores within the body."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def set_up_torch(config: RunConfig) -> None:
    """Sets torch's number of threads, if the configuration does, and the precision of a GPU's products.

    Raises:
        ConfigError: If threads are to keep to cores of their own and cannot, or there is no such device.
    """
    num_threads = config.torch_threads
    if config.pin_threads:
        num_threads = num_threads or len(share_cores(config).learner)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    rounded = config.learner.tf32 and choose_device(config.device).type == "cuda"
    torch.set_float32_matmul_precision("high" if rounded else "highest")


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread within the body, as rollout workers do.

    A policy gains little from more for the few rows of one step, and torch's threads, which look for new work for a
    while before they sleep, would take the cores from the simulator's. Threads that ask torch for their number for the
    first time meanwhile get one as well.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_with_one_thread() -> None:
    """Lets torch compute with one thread in the calling thread from now on.

    Threads that have asked torch for their number before keep it; those that have not will get one as well.
    """
    torch.get_num_threads()  # sets this thread up, which would undo what follows if it came later
    torch.set_num_threads(1)

"""Where tensors live, and how many threads compute with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtrl.config import ConfigError, RunConfig


def choose_device(name: str, key: str = "device") -> torch.device:
    """Returns the device for `auto`, `cpu` or `cuda`.

    Args:
        name: The device asked for.
        key: The setting that asks.

    Raises:
        ConfigError: If cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(key, "cuda was asked for, but torch sees no GPU here; set it to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_threads(config: RunConfig) -> None:
    """Sets torch's number of threads if the configuration does."""
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread within the body, as rollout workers do.

    A policy gains little from more for the few rows of one step, and torch's threads, which look for new work for a
    while before they sleep, would take the cores from the simulator's. MKL has one setting for the whole process: not
    for a body beside which another thread learns.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""One seed, many named and independent random streams.

A stream depends on the seed, its name and its indices only: adding a worker or a stream does not change another's
numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_sequence(seed: int, name: str, *indices: int) -> np.random.SeedSequence:
    """Returns the seed sequence of the stream `name`, e.g. `seed_sequence(1, "collector", worker)`."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(name.encode()), *indices))


def stream_seed(seed: int, name: str, *indices: int) -> int:
    """Returns a non-negative 63-bit integer seed for libraries that take one number."""
    return int(seed_sequence(seed, name, *indices).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, name: str, *indices: int) -> np.random.Generator:
    """Returns a NumPy generator of its own for the stream `name`."""
    return np.random.default_rng(seed_sequence(seed, name, *indices))


def torch_generator(seed: int, name: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Returns a torch generator of its own for the stream `name`, on `device`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name, *indices))

"""Replay by slot: a dense float32 ring of transitions for each slot, on the CPU or on the learner's device.

Raw rewards are stored; scaling belongs to the learner and happens at sampling.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtrl.data import Array, Block

BYTES_PER_NUMBER = 4
GIB = 1024**3


class Transitions(NamedTuple):
    """Sampled transitions; float32 tensors [slot, n, ...] that may be views of one another's memory."""

    obs: Tensor
    """[slot, n, obs_dim]."""
    action: Tensor
    """[slot, n, action_dim]."""
    reward: Tensor
    """[slot, n], raw."""
    next_obs: Tensor
    """[slot, n, obs_dim]."""
    terminated: Tensor
    """[slot, n], 0 or 1."""


class Replay:
    """A ring of `capacity` transitions for each of `num_slots` slots, allocated when the first transition comes.

    A transition is one row of `obs | action | reward | next_obs | terminated`, so that a batch is one gather. On
    the CPU the system hands out memory page by page, so that slots take what they hold and not what they could hold.
    """

    def __init__(self, num_slots: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device) -> None:
        """Sizes the replay.

        Raises:
            ValueError: If the memory that it would take is not available; the text gives both sizes.
        """
        self.num_slots = num_slots
        self.capacity = capacity
        self.device = device
        self._widths = (obs_dim, action_dim, 1, obs_dim, 1)
        self.added = np.zeros(num_slots, np.int64)
        """[slot], transitions ever added to each slot."""
        self._rows: Tensor | None = None
        available = available_bytes(device)
        if self.required_bytes > available:
            raise ValueError(
                f"{self.describe()} do not fit: {available / GIB:.2f} GiB are available; "
                "lower replay.capacity_per_task or choose another replay.device"
            )

    @property
    def required_bytes(self) -> int:
        """Memory of the full replay."""
        return self.num_slots * self.capacity * sum(self._widths) * BYTES_PER_NUMBER

    @property
    def sizes(self) -> Array:
        """[slot], transitions that can be sampled."""
        return np.minimum(self.added, self.capacity)

    def describe(self) -> str:
        """Says in one line how much memory the replay takes and why."""
        row = sum(self._widths) * BYTES_PER_NUMBER
        return (
            f"replay: {self.num_slots} slots x {self.capacity:,} transitions x {row} bytes "
            f"= {self.required_bytes / GIB:.2f} GiB on {self.device}"
        )

    def add(self, slot: int, obs: Array, action: Array, reward: Array, next_obs: Array, terminated: Array) -> None:
        """Adds transitions to one slot in order; the oldest are overwritten.

        Args:
            slot: Index of the ring.
            obs: [n, obs_dim].
            action: [n, action_dim].
            reward: [n].
            next_obs: [n, obs_dim].
            terminated: [n].
        """
        assert reward.ndim == 1
        assert len(reward) == len(obs) == len(action) == len(next_obs) == len(terminated)
        self._append(np.full(len(reward), slot), self._as_rows(obs, action, reward, next_obs, terminated))

    def add_block(self, block: Block) -> None:
        """Adds the transitions of a block to their slots, in order."""
        valid = block.valid
        columns = (block.obs, block.action, block.reward, block.next_obs, block.terminated)
        self._append(block.slot[valid], self._as_rows(*(column[valid] for column in columns)))

    def clear(self, slot: int) -> None:
        """Empties one slot."""
        self.added[slot] = 0

    def sample(self, slots: Tensor, n: int, generator: torch.Generator) -> Transitions:
        """Draws `n` transitions of each slot, with replacement and independently for each.

        Args:
            slots: int64 [slot].
            n: Number of transitions per slot.
            generator: On the replay's device.

        Raises:
            ValueError: If a slot is empty.
        """
        return self.draw(self.ranges(slots), n, generator)

    def ranges(self, slots: Tensor) -> Tensor:
        """Returns for `draw` all that slots hold.

        Args:
            slots: int64 [slot], on the CPU.

        Returns:
            int64 [3, slot] on the replay's device: number of the first transition, how many there are, and the slot.

        Raises:
            ValueError: If a slot is empty.
        """
        sizes = self.sizes[slots.numpy()]
        if self._rows is None or not sizes.all():
            empty = [int(slot) for slot, size in zip(slots, sizes, strict=True) if not size]
            raise ValueError(f"replay slots {empty} are empty; collect before sampling")
        return on_device(np.stack([np.zeros_like(sizes), sizes, slots.numpy()]), self.device)

    def draw(self, ranges: Tensor, n: int, generator: torch.Generator) -> Transitions:
        """Draws from ranges [3, slot] as `sample` does, without a look at anything that is not on the device."""
        assert self._rows is not None, "whoever has ranges has transitions"
        begin, length, slot = ranges.unsqueeze(2)
        draws = torch.rand((ranges.shape[1], n), generator=generator, device=self.device, dtype=torch.float64)
        index = (begin + (draws * length).long()) % self.capacity + slot * self.capacity  # [slot, n]
        drawn = self._rows.index_select(0, index.view(-1)).view(*index.shape, -1)
        obs, action, reward, next_obs, terminated = torch.split(drawn, list(self._widths), dim=2)
        return Transitions(obs, action, reward.squeeze(2), next_obs, terminated.squeeze(2))

    def sample_range(
        self, slots: Tensor, first: Array, count: Array, n: int, generator: torch.Generator
    ) -> Transitions:
        """Draws `n` transitions of a range of each slot, with replacement and independently for each.

        Args:
            slots: int64 [slot].
            first: [slot], number of the range's first transition among all that were ever added to its slot.
            count: [slot], length of the range.
            n: Number of transitions per slot.
            generator: On the replay's device.

        Raises:
            ValueError: If a range is empty, or not all of it is there.
        """
        added = self.added[slots.numpy()]
        there = (count > 0) & (first >= added - self.capacity) & (first + count <= added)
        if self._rows is None or not there.all():
            lacking = [int(slot) for slot, whole in zip(slots, there, strict=True) if not whole]
            raise ValueError(f"replay slots {lacking} do not hold the ranges that were asked for")
        return self.draw(on_device(np.stack([first, count, slots.numpy()]), self.device), n, generator)

    def chunks(self, since: Array, most_rows: int) -> Iterator[dict[str, Tensor]]:
        """Yields what was added after `since` [slot] and is still there, to be appended to a saved replay.

        Args:
            since: [slot], numbers of transitions ever added.
            most_rows: Transitions of one chunk, so that no large copy is made.
        """
        start = np.maximum(since, self.added - self.capacity)
        per_slot = max(1, most_rows // self.num_slots)
        while (start < self.added).any():
            stop = np.minimum(start + per_slot, self.added)
            parts = [self._slot_rows(slot, int(start[slot]), int(stop[slot])) for slot in range(self.num_slots)]
            yield {"rows": torch.cat(parts), "start": torch.from_numpy(start), "stop": torch.from_numpy(stop)}
            start = stop

    def restore_chunk(self, chunk: dict[str, Tensor]) -> None:
        """Takes in a chunk made by `chunks`; chunks must come in the order in which they were made.

        Raises:
            ValueError: If the chunk is of a replay of another shape.
        """
        start, stop = chunk["start"].numpy(), chunk["stop"].numpy()
        if len(start) != self.num_slots or chunk["rows"].shape[1] != sum(self._widths):
            raise ValueError(
                f"the saved replay has {len(start)} slots of {chunk['rows'].shape[1]} numbers per transition, "
                f"this run has {self.num_slots} of {sum(self._widths)}"
            )
        parts = torch.split(chunk["rows"], (stop - start).tolist())
        for slot, rows in enumerate(parts):
            self.added[slot] = start[slot]
            self._append(np.full(len(rows), slot), rows.numpy())

    def _as_rows(self, obs: Array, action: Array, reward: Array, next_obs: Array, terminated: Array) -> Array:
        columns = (obs, action, reward[:, None], next_obs, terminated[:, None])
        assert tuple(column.shape[1] for column in columns) == self._widths
        return np.concatenate([np.asarray(column, np.float32) for column in columns], axis=1)

    def _allocate(self) -> Tensor:
        shape = self.num_slots * self.capacity, sum(self._widths)
        return untouched_zeros(*shape) if self.device.type == "cpu" else torch.zeros(shape, device=self.device)

    def _append(self, slots: Array, rows: Array) -> None:
        """Adds rows [n, width] to slots [n], each slot's in order."""
        if self._rows is None:
            self._rows = self._allocate()
        counts = np.bincount(slots, minlength=self.num_slots)
        order = np.argsort(slots, kind="stable")
        rank = np.empty(len(slots), np.int64)  # of each row among those of its slot
        rank[order] = np.arange(len(slots)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = (self.added[slots] + rank) % self.capacity + slots.astype(np.int64) * self.capacity
        if counts.max(initial=0) > self.capacity:  # then only the newest are kept
            kept = rank >= (counts - self.capacity)[slots]
            places, rows = places[kept], rows[kept]
        self._rows.index_copy_(0, on_device(places, self.device), on_device(rows, self.device))
        self.added += counts

    def _slot_rows(self, slot: int, start: int, stop: int) -> Tensor:
        if self._rows is None:
            return torch.zeros(0, sum(self._widths))
        places = torch.arange(start, stop) % self.capacity + slot * self.capacity
        return self._rows[places.to(self.device)].cpu()


def on_device(array: Array, device: torch.device) -> Tensor:
    """Returns an array as a tensor on a device; the host does not wait for what a GPU is at."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def untouched_zeros(rows: int, columns: int) -> Tensor:
    """Returns float32 zeros [rows, columns] on the CPU whose pages the system hands out as they are first written.

    Memory of malloc would do so only by chance: a block that was freed before is cleared, so touched, from end to end.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, rows * columns * BYTES_PER_NUMBER, **private)
    with suppress(AttributeError, OSError):  # a kernel may be built without them
        memory.madvise(mmap.MADV_HUGEPAGE)  # a batch gathers rows from all over it
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, columns)


def available_bytes(device: torch.device) -> int:
    """Returns the free memory of the device; for the CPU also within the limit of this process's control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        # MemAvailable counts caches that the kernel gives back, SC_AVPHYS_PAGES does not
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free

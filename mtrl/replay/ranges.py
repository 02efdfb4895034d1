"""Ranges of each slot's newest transitions: what PEARL calls the encoder's buffer, without a second copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.data import Array
from mtrl.replay.ring import Replay, Transitions


class NewestRanges:
    """For each slot of a replay, where its newest contexts begin and how many transitions they have.

    A context is what was collected one after the other since `begin`, so it lies in the slot's ring without a gap.
    """

    def __init__(self, replay: Replay, kept: int = 1) -> None:
        """Begins without contexts.

        Args:
            replay: Whose slots they are parts of.
            kept: How many contexts each slot keeps; the next one takes the place of the oldest.
        """
        self._replay = replay
        self.begun = np.zeros(replay.num_slots, np.int64)
        """[slot], how many contexts were begun so far."""
        self.first = np.zeros((replay.num_slots, kept), np.int64)
        """[slot, kept], number of the first transition among all that were ever added to the slot."""
        self.count = np.zeros((replay.num_slots, kept), np.int64)
        """[slot, kept], transitions of the context."""

    def begin(self, slots: Array) -> None:
        """Begins another context of each of some slots; what is added to them next comes first."""
        emptied = slots[self._replay.added[slots] == 0]  # as after a restart without the replay
        self.begun[emptied] = 0
        self.begun[slots] += 1
        newest = self._newest(slots)
        self.first[slots, newest] = self._replay.added[slots]
        self.count[slots, newest] = 0

    def extend(self, slots: Array) -> None:
        """Lets the newest contexts of slots reach to their newest transition."""
        newest = self._newest(slots)
        self.count[slots, newest] = self._replay.added[slots] - self.first[slots, newest]

    def sample(self, slots: Tensor, n: int, generator: torch.Generator) -> Transitions:
        """Draws one of the contexts of each slot, and from it `n` transitions with replacement.

        Args:
            slots: int64 [slot].
            n: Number of transitions per slot.
            generator: On the replay's device.

        Raises:
            ValueError: If a context is empty.
        """
        chosen, kept = slots.numpy(), self.first.shape[1]
        if kept == 1:  # without a draw, so that runs with one have the numbers that they had before
            return self.sample_newest(slots, n, generator)
        there = np.minimum(self.begun[chosen], kept)
        draws = torch.rand(len(chosen), generator=generator, device=generator.device, dtype=torch.float64)
        return self._sample(slots, (draws.cpu().numpy() * there).astype(np.int64), n, generator)

    def sample_newest(self, slots: Tensor, n: int, generator: torch.Generator) -> Transitions:
        """Draws `n` transitions of each slot's newest context; arguments and errors as `sample`."""
        return self._sample(slots, self._newest(slots.numpy()), n, generator)

    def state_dict(self) -> dict[str, Any]:
        """Returns arrays with an entry for each slot."""
        return {"begun": self.begun.copy(), "first": self.first.copy(), "count": self.count.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`, which belongs to the replay of the same moment."""
        self.begun, self.first, self.count = (state[name].copy() for name in ("begun", "first", "count"))

    def _newest(self, slots: Array) -> Array:
        """Returns which of the contexts kept is the newest, [slot]."""
        newest: Array = (self.begun[slots] - 1) % self.first.shape[1]
        return newest

    def _sample(self, slots: Tensor, which: Array, n: int, generator: torch.Generator) -> Transitions:
        chosen = slots.numpy()
        return self._replay.sample_range(slots, self.first[chosen, which], self.count[chosen, which], n, generator)

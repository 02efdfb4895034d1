"""A range of each slot's newest transitions: what PEARL calls the encoder's buffer, without a second copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.data import Array
from mtrl.replay.ring import Replay, Transitions


class NewestRanges:
    """For each slot of a replay, where its context begins and how many transitions it has.

    A context is what was collected one after the other since `begin`, so it lies in the slot's ring without a gap.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self.first = np.zeros(replay.num_slots, np.int64)
        """[slot], number of the first transition among all that were ever added to the slot."""
        self.count = np.zeros(replay.num_slots, np.int64)
        """[slot], transitions of the context."""

    def begin(self, slots: Array) -> None:
        """Empties the contexts of slots; what is added to them next comes first."""
        self.first[slots] = self._replay.added[slots]
        self.count[slots] = 0

    def extend(self, slots: Array) -> None:
        """Lets the contexts of slots reach to their newest transition."""
        self.count[slots] = self._replay.added[slots] - self.first[slots]

    def sample(self, slots: Tensor, n: int, generator: torch.Generator) -> Transitions:
        """Draws `n` transitions of each slot's context, with replacement and independently for each.

        Args:
            slots: int64 [slot].
            n: Number of transitions per slot.
            generator: On the replay's device.

        Raises:
            ValueError: If a context is empty.
        """
        chosen = slots.numpy()
        return self._replay.sample_range(slots, self.first[chosen], self.count[chosen], n, generator)

    def state_dict(self) -> dict[str, Any]:
        """Returns arrays [slot]."""
        return {"first": self.first.copy(), "count": self.count.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`, which belongs to the replay of the same moment."""
        self.first, self.count = state["first"].copy(), state["count"].copy()

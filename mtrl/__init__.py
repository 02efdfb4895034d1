"""Multi-task and meta reinforcement learning on Meta-World."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtrl.api import LoadedPolicy

__all__ = ["load_policy"]


def load_policy(run: str | Path) -> LoadedPolicy:
    """Returns the policy of a run directory: observation → action; see `mtrl.api.LoadedPolicy`."""
    from mtrl import api  # torch is imported when it is needed, not by `import mtrl`

    return api.load_policy(run)

"""Multi-task and meta reinforcement learning on Meta-World."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtrl.api import LoadedPolicy

__all__ = ["load_policy"]

# Without it products of torch may differ in their last bits with where matrices lie in memory, and a resumed run from
# an uninterrupted one: Intel's library, which torch's builds for x86 use, does so on processors of AMD, where this
# costs no time. It is read at the first product, so here is early enough.
os.environ.setdefault("MKL_CBWR", "AUTO")


def load_policy(run: str | Path) -> LoadedPolicy:
    """Returns the policy of a run directory: observation → action; see `mtrl.api.LoadedPolicy`."""
    from mtrl import api  # torch is imported when it is needed, not by `import mtrl`

    return api.load_policy(run)

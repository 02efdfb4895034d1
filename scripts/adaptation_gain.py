"""Prints what adaptation is worth: mean return on held-out goals before and after it, by row, over seeds.

python scripts/adaptation_gain.py RUN...
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtrl.config_io import load_config


class Gain(NamedTuple):
    """Of the final evaluation of one run, means over held-out tasks and goals."""

    before: float
    """Return of the policy that has not adapted."""
    after: float
    """Return after all episodes of adaptation."""
    success_before: float
    success_after: float


def gain(run: Path) -> Gain:
    """Returns what the last evaluation of a run says.

    Raises:
        ValueError: If there is none, or it did not test the policy before adaptation, too (`meta.curve`).
    """
    files = sorted((run / "evaluations").glob("*.json"))
    if not files:
        raise ValueError(f"{run} holds no evaluation; let its training end, or call mtrl evaluate")
    result = json.loads(files[-1].read_text())
    episodes = [e for e in result["episodes"] + result["other_episodes"] if not e["task"].startswith("train/")]
    most = max(episode["adapted"] for episode in episodes)
    found = []
    for quantity in ("return", "success"):
        for adapted in (0, most):
            chosen = [episode[quantity] for episode in episodes if episode["adapted"] == adapted]
            if not chosen:
                raise ValueError(f"{run} was not tested before adaptation; train with meta.curve=[0]")
            found.append(float(np.mean(chosen)))
    return Gain(*found)


def in_words(values: Sequence[float], digits: int) -> str:
    """Returns the mean and, of several seeds, their standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main(runs: list[Path]) -> None:
    """Prints a table with a line for each row."""
    rows = defaultdict(list)
    for run in runs:
        rows[load_config(run / "config.yaml").name].append(gain(run))
    print("| row | seeds | return before adaptation | after | gain | success before | after |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, gains in rows.items():
        columns = [*zip(*gains, strict=True)]
        columns.insert(2, tuple(one.after - one.before for one in gains))
        cells = [in_words(column, digits) for column, digits in zip(columns, (1, 1, 1, 2, 2), strict=True)]
        print(f"| {name} | {len(gains)} | {' | '.join(cells)} |")
    print("\nMean ± standard deviation over seeds.")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

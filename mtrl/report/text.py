"""Numbers and grids of cells as text: for the terminal, Markdown and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of cells; the first column is text, the others are numbers.

    Attributes:
        title: What it shows.
        header: One cell per column.
        lines: The lines, each as long as the header.
        notes: Sentences that belong under it.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """Returns a Markdown table with aligned columns, without the title, with the notes under it."""
        table = [self.header, *self.lines]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in table]
        widths = [max(len(line[column]) for line in cells) for column in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(cells[0], widths), _line(rule, widths), *(_line(line, widths) for line in cells[1:])]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_rich(self) -> Table:
        """Returns the table for a terminal."""
        table = Table(title=Text(self.title), caption=Text("\n".join(self.notes)), caption_justify="left")
        table.add_column(Text(self.header[0]))
        for name in self.header[1:]:
            table.add_column(Text(name), justify="right")
        for line in self.lines:
            table.add_row(*map(Text, line))  # as Text, brackets are no markup
        return table


def count(number: float) -> str:
    """Returns a count in short, as in `950`, `200k`, `1.5M`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1_000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units, as in `48 s`, `7 min 3 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def spread(low: str, high: str) -> str:
    """Returns `low` alone where both are equal, else `low to high`."""
    return low if low == high else f"{low} to {high}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
    ]
    return f"| {' | '.join(padded)} |"

"""Numbers and grids of cells as text: for the terminal, Markdown and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of cells.

    Attributes:
        title: What it shows.
        header: One cell per column.
        lines: The lines, each as long as the header.
        notes: Sentences that belong under it.
        text_columns: Columns set flush left; the others are numbers.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: tuple[int, ...] = (0,)

    def to_markdown(self) -> str:
        """Returns a Markdown table with aligned columns, without the title, with the notes under it."""
        cells = [[cell.replace("|", "\\|") for cell in line] for line in (self.header, *self.lines)]
        widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(self.header))]
        rule = ["-" * (width - (not left)) + ":" * (not left) for width, left in zip(widths, self._left(), strict=True)]
        lines = [self._markdown_line(line, widths) for line in (cells[0], rule, *cells[1:])]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_rich(self) -> Table:
        """Returns the table for a terminal."""
        table = Table(title=Text(self.title), caption=Text("\n".join(self.notes)), caption_justify="left")
        for name, left in zip(self.header, self._left(), strict=True):
            table.add_column(Text(name), justify="left" if left else "right")
        for line in self.lines:
            table.add_row(*map(Text, line))  # as Text, brackets are no markup
        return table

    def turned(self) -> Grid:
        """Returns the table with its lines as columns, which fits a narrow terminal where the lines are few."""
        header, *lines = zip(self.header, *self.lines, strict=True)
        return Grid(self.title, header, tuple(lines), self.notes)

    def _left(self) -> list[bool]:
        return [column in self.text_columns for column in range(len(self.header))]

    def _markdown_line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, self._left(), strict=True)
        ]
        return f"| {' | '.join(padded)} |"


def count(number: float) -> str:
    """Returns a count in short, three digits of it, as in `950`, `200k`, `1.5M`."""
    number = float(f"{number:.3g}")
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


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

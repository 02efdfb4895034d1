"""What a person sees of a run: lines, and on a terminal a bar with speed, success and time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class ConsoleDisplay:
    """Prints lines; on a terminal it also draws a bar, elsewhere it stays quiet between lines."""

    def __init__(self, total_env_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.completed:>11,} env steps"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[env_sps]:,.0f} env steps/s  {task.fields[updates_s]:,.0f} updates/s"),
            TextColumn("{task.fields[success]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_env_steps, env_sps=0.0, updates_s=0.0, success="")
        self._last: tuple[float, int, int] | None = None

    def __enter__(self) -> ConsoleDisplay:
        """Begins to draw."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops drawing."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False)

    def update(self, env_steps: int, gradient_steps: int, success: float | None) -> None:
        """Moves the bar; speeds are those since the last call."""
        now = time.monotonic()
        env_sps = updates_s = 0.0
        if self._last is not None and now > self._last[0]:
            seconds = now - self._last[0]
            env_sps = (env_steps - self._last[1]) / seconds
            updates_s = (gradient_steps - self._last[2]) / seconds
        self._last = now, env_steps, gradient_steps
        shown = "" if success is None else f"success {success:.2f}"
        self._bar.update(self._task, completed=env_steps, success=shown, env_sps=env_sps, updates_s=updates_s)

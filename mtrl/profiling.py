"""Where a run spends its time: a trace of a second of training, its operators, and processes to look at.

RUN/profile/trace.json.gz    what the thread that trains did in a window, for https://ui.perfetto.dev
RUN/profile/operators.txt    the parts of the loop and the operators of the window, with the time they took
RUN/profile/processes.json   processes and threads of the run, for py-spy

How to read them is in docs/profiling.md. The trace holds neither other threads nor other processes.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.autograd import profiler as torch_profiler
from torch.profiler import ProfilerActivity, profile, record_function

WARM_S = 2.0
"""Seconds after the first update before anything is recorded, in which caches, memory and clocks settle."""
WINDOW_S = 1.0
"""Least seconds that are recorded, hundreds of thousands of events; the round that they end in is recorded whole."""
_FILES = ("trace.json.gz", "operators.txt", "processes.json")
_NUM_ROWS = 50
_CHUNK_BYTES = 1 << 20
_WITHOUT_A_NAME = re.compile(r"Thread-\d+")


class Counts(Protocol):
    """What the window needs to know of a learner."""

    env_steps: int
    """Environment steps received so far, all tasks together."""
    gradient_steps: int
    """Updates made so far."""


def named(part: str) -> AbstractContextManager[Any]:
    """Gives the body a name in a trace that this thread records; does nothing where none is recorded."""
    # torch keeps this flag for such quick looks
    return record_function(part) if torch_profiler._is_profiler_enabled else nullcontext()


class Profile:
    """Records a window of training and writes what is in it; it is made only for runs that ask for it.

    What it does between rounds belongs to no part of the loop, so that no `perf/` value counts it.
    """

    def __init__(
        self,
        folder: Path,
        learner: Counts,
        device: torch.device,
        workers: Callable[[], Mapping[str, Sequence[Mapping[str, Any]]]],
        say: Callable[[str], None],
    ) -> None:
        """Makes the folder and writes down the processes that there are.

        Args:
            folder: For all files; those of an earlier part of the run are replaced.
            learner: Its updates say when training has begun.
            device: Of the learner; with cuda the trace holds what the GPU does too.
            workers: What they do → number, pid and host of the other processes of the run.
            say: Tells a person.
        """
        self._folder, self._learner, self._workers, self._say = folder, learner, workers, say
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._updates_before = learner.gradient_steps
        self._warm_at: float | None = None
        self._profiler: profile | None = None
        self._began = (0.0, 0, 0)  # the window: seconds of the clock, env_steps, gradient_steps
        self._longest_s = 0.0  # of the windows so far
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        self._write_processes()

    def watching(self, pause: Callable[[], bool]) -> Callable[[], bool]:
        """Returns a `pause` for an engine that is asked after every round, so that windows are whole rounds."""

        def watched() -> bool:
            self._round_ended()
            return pause()

        return watched

    def end_window(self) -> None:
        """Stops recording, if anything is, and writes it down.

        For what is no training, and for the end of the run. A window that was cut short is followed by another; the
        files are those of the longest.
        """
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        seconds = time.monotonic() - self._began[0]
        profiler.stop()
        if seconds > self._longest_s:
            self._longest_s = seconds
            self._write(profiler, seconds)

    def close(self) -> None:
        """Writes what is recorded, and says so where nothing was."""
        self.end_window()
        if not self._longest_s:
            self._say(f"no profile: the run ended less than {WARM_S:g} s after its first update")

    def _round_ended(self) -> None:
        if self._profiler is not None:
            if time.monotonic() - self._began[0] >= WINDOW_S:
                self.end_window()
        elif self._longest_s < WINDOW_S and self._is_warm():
            self._begin_window()

    def _is_warm(self) -> bool:
        if self._warm_at is None and self._learner.gradient_steps > self._updates_before:
            self._warm_at = time.monotonic() + WARM_S
        return self._warm_at is not None and time.monotonic() >= self._warm_at

    def _begin_window(self) -> None:
        self._write_processes()  # again: some threads begin with the first step
        self._profiler = profile(activities=self._activities)
        self._profiler.start()
        self._began = time.monotonic(), self._learner.env_steps, self._learner.gradient_steps

    def _write(self, profiler: profile, seconds: float) -> None:
        _, env_steps, gradient_steps = self._began
        averages = profiler.key_averages()
        orders = ["self_cpu_time_total", "self_device_time_total"][: len(self._activities)]
        what = (
            f"{seconds:.2f} s of training: env_steps {env_steps} to {self._learner.env_steps}, "
            f"gradient_steps {gradient_steps} to {self._learner.gradient_steps}"
        )
        sections = [
            what,
            _table_of_ranges(averages, seconds),
            *(averages.table(order, row_limit=_NUM_ROWS, max_name_column_width=60) for order in orders),
        ]
        (self._folder / "operators.txt").write_text("\n\n".join(sections))
        _export(profiler, self._folder / "trace.json.gz")
        self._say(f"profiled {seconds:.1f} s of training: {self._folder}")

    def _write_processes(self) -> None:
        found = {
            "driver": {"pid": os.getpid(), "host": platform.node(), "threads": _threads()},
            **self._workers(),
        }
        (self._folder / "processes.json").write_text(json.dumps(found, indent=1))


def _table_of_ranges(averages: Iterable[Any], seconds: float) -> str:
    """Returns a line for each range of the host, the longest first: seconds, and those outside what is within it."""
    lines = [f"{'range':<30}{'calls':>8}{'seconds':>10}{'of window':>11}{'by itself':>12}"]
    ranges = [one for one in averages if one.is_user_annotation and one.device_type.name == "CPU"]
    for one in sorted(ranges, key=lambda one: -one.cpu_time_total):
        total_s, own_s = one.cpu_time_total / 1e6, one.self_cpu_time_total / 1e6
        lines.append(f"{one.key:<30}{one.count:>8}{total_s:>10.3f}{total_s / seconds:>11.1%}{own_s:>12.3f}")
    return "\n".join(lines)


def _export(profiler: profile, path: Path) -> None:
    """Writes the trace; torch's own way to compress it takes several times as long."""
    plain, partial = path.with_name("partial.json"), path.with_name("partial.json.gz")
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(partial, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
    plain.unlink()
    partial.replace(path)


def _threads() -> list[dict[str, Any]]:
    """Returns name and native id of the threads of this process that Python knows, all of them with telling names."""
    threads = threading.enumerate()
    for thread in threads:
        if _WITHOUT_A_NAME.fullmatch(thread.name):  # some library's
            library = type(thread).__module__.partition(".")[0]
            thread.name = f"{library} {type(thread).__name__}"
    return [{"name": thread.name, "native_id": thread.native_id} for thread in threads]

"""EnvPool's Meta-World beside ours: another MuJoCo and random goals, so it lives in a Python of its own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.config import ConfigError

_CHILD = Path(__file__).with_name("envpool_child.py")


@contextmanager
def envpool_timer(
    python: Path, tasks: Sequence[str], copies: int, blocks: NDArray[np.float32]
) -> Iterator[Callable[[int], float]]:
    """Runs another process that steps EnvPool's environments, on one core, and gives what times a block of steps there.

    Args:
        python: A Python in whose environment envpool is installed.
        tasks: For example `pick-place-v3`.
        copies: Environments of each task, neighbours in the batch.
        blocks: Actions [block, step, env, 4].

    Raises:
        ConfigError: If that Python cannot run EnvPool's Meta-World.
    """
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "actions.npy"
        np.save(held, blocks)
        command = [str(python), str(_CHILD), ",".join(map(envpool_name, tasks)), str(copies), str(held)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise ConfigError("bench --envpool", f"cannot run {python}: {error.strerror}") from error
        with process:
            try:
                _expect(process, "ready")
                yield partial(_seconds, process)
            finally:
                process.kill()


def _seconds(process: subprocess.Popen[str], block: int) -> float:
    assert process.stdin is not None
    process.stdin.write(f"{block}\n")
    process.stdin.flush()
    return float(_expect(process, "seconds"))


def _expect(process: subprocess.Popen[str], kind: str) -> str:
    """Returns what follows the word in the next line that begins with it; EnvPool may print lines of its own."""
    assert process.stdout is not None
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == kind:
            return rest
    raise ConfigError("bench --envpool", "that Python cannot run EnvPool's Meta-World; its error is above")


def envpool_name(task: str) -> str:
    """Returns EnvPool's name of a task: `MetaWorld/PickPlace-v3` of `pick-place-v3`."""
    words, _, version = task.rpartition("-")
    return f"MetaWorld/{words.title().replace('-', '')}-{version}"

"""EnvPool's Meta-World beside ours: another MuJoCo and random goals, so it lives in a Python of its own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.config import ConfigError

_CHILD = Path(__file__).with_name("envpool_child.py")


class EnvPoolProcess:
    """Another process that steps EnvPool's environments with given actions, on one core."""

    def __init__(self, python: Path, tasks: Sequence[str], copies: int, actions: NDArray[np.float32]) -> None:
        """Starts it and waits until its environments are ready.

        Args:
            python: A Python in whose environment envpool is installed.
            tasks: For example `pick-place-v3`.
            copies: Environments of each task, neighbours in the batch.
            actions: [step, env, 4].

        Raises:
            ConfigError: If that Python cannot run EnvPool's Meta-World.
        """
        self._folder = tempfile.TemporaryDirectory()
        held = Path(self._folder.name) / "actions.npy"
        np.save(held, actions)
        names = ",".join(map(envpool_name, tasks))
        try:
            self._process = subprocess.Popen(
                [str(python), str(_CHILD), names, str(copies), str(held)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ConfigError("bench --envpool", f"cannot run {python}: {error.strerror}") from error
        if self._answer() != "ready":
            raise ConfigError("bench --envpool", f"{python} cannot run EnvPool's Meta-World; its error is above")

    def seconds(self, first_step: int, num_steps: int) -> float:
        """Makes some steps of all environments and returns how long they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{first_step} {num_steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def envpool_name(task: str) -> str:
    """Returns EnvPool's name of a task: `MetaWorld/PickPlace-v3` of `pick-place-v3`."""
    words, _, version = task.rpartition("-")
    return f"MetaWorld/{words.title().replace('-', '')}-{version}"

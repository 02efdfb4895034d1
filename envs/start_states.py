"""The states after reset of every (task, goal): simulated once per machine, kept in files, copied at every reset.

The files lie beside the compiled models in the cache folder (`cache.py`), about 8 kB each. Their folder is named after
everything that decides their content: versions of libraries, the kind of processor, and the sources that make them.
Deleting them is always safe; a file that is damaged is made anew, one that cannot be written is done without.
"""

import hashlib
import io
import json
import logging
import platform
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from envs.cache import cache_folder, write_whole
from envs.rounding import dot_is_fused
from envs.simulator import FloatArray
from envs.snapshots import Snapshot, TaskObject, capture, reset_task
from envs.state_codec import decode, encode

_LOGGER = logging.getLogger(__name__)
_SOURCES = ("start_states.py", "snapshots.py", "state_codec.py", "lean_step.py", "task_objects.py")


class StartStates:
    """All start states met so far in this process, with their first observations.

    The physics does not depend on who asks, so all vector environments of a process share them.
    """

    def __init__(self) -> None:
        """Starts with none."""
        self._known: dict[tuple[Any, ...], tuple[Snapshot, FloatArray]] = {}

    def get(self, task: TaskObject, goal: FloatArray) -> tuple[Snapshot, FloatArray]:
        """Returns the state and the observation [39] after a reset.

        The first time on this machine it is simulated, which leaves the task object and its model in some state of
        that reset; otherwise these are not touched.
        """
        key = (type(task).__name__, task.reward_function_version, task._partially_observable, goal.tobytes())
        if key not in self._known:
            file = _file(*key)
            found = _read(file)
            if found is None:
                obs = reset_task(task, goal)
                obs.flags.writeable = False
                found = capture(task), obs
                _write(file, *found)
            self._known[key] = found
        return self._known[key]


@cache
def start_states() -> StartStates:
    """Returns the start states of this process."""
    return StartStates()


def _file(class_name: str, reward_version: str, hidden: bool, goal: bytes) -> Path:
    name = f"{class_name}-{reward_version}-{'hidden' if hidden else 'visible'}-{hashlib.sha256(goal).hexdigest()[:16]}"
    return cache_folder() / "starts" / _maker() / f"{name}.npz"


@cache
def _maker() -> str:
    """Returns a name for everything that decides what a start state is, besides task and goal."""
    digest = hashlib.sha256()
    for package in ("metaworld", "mujoco", "numpy", "scipy"):
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    digest.update(f"{platform.system()} {platform.machine()}\n".encode())
    processor = Path("/proc/cpuinfo")
    if processor.exists():  # NumPy takes other instructions on other processors
        lines = processor.read_text().splitlines()
        digest.update("\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode())
    digest.update(f"dot fused {dot_is_fused()}\n".encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> tuple[Snapshot, FloatArray] | None:
    """Returns what is in the file, or None if it is missing or damaged."""
    try:
        with file.open("rb") as opened, np.load(opened) as held:
            arrays = {name: held[name] for name in held.files}
        snapshot = decode({**arrays, "python": json.loads(arrays["python"].tobytes())})
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _LOGGER.warning("the start state %s is damaged (%s); making it anew", file, error)
        return None
    for array in (arrays["obs"], snapshot.physics, snapshot.body_pos, snapshot.site_pos):
        array.flags.writeable = False
    for value in snapshot.attributes.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return snapshot, arrays["obs"]


def _write(file: Path, snapshot: Snapshot, obs: FloatArray) -> None:
    encoded = encode(snapshot)
    python = np.frombuffer(json.dumps(encoded.pop("python")).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **encoded, python=python, obs=obs)
    try:
        write_whole(file, content.getvalue())
    except OSError as error:
        _tell_once(f"cannot keep start states in {file.parent} ({error.strerror}); set MTRL_CACHE to a writable folder")


@cache
def _tell_once(text: str) -> None:
    _LOGGER.warning(text)

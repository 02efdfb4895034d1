"""Whether compiled code may stand in for metaworld's classes here: versions, tasks, and the processor's arithmetic."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Floats = npt.NDArray[np.float64]
PROVED_ON = {"metaworld": "3.1.1", "mujoco": "3.3.0"}
"""Versions of the packages with which observations were shown to be equal."""


def obstacle(task_names: Sequence[str], reward_version: str) -> str | None:
    """Returns what keeps compiled code from simulating the tasks here, None if nothing does."""
    for package, version in PROVED_ON.items():
        installed = metadata.version(package)
        if installed != version:
            return f"it was proved equal on {package} {version}, installed is {installed}"
    if reward_version != "v2":
        return f"it knows reward v2 only, asked for is {reward_version}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"it was proved equal on Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    from envs.compiled.catalogue import CATALOGUE

    unknown = [name for name in task_names if name not in CATALOGUE]
    if unknown:
        return f"it does not know {', '.join(unknown)}"
    return _disagreement()


@cache
def _disagreement() -> str | None:
    """Compares the arithmetic that equality hangs on with that of the libraries, in about a millisecond."""
    from envs.compiled import primitives

    draws = np.random.default_rng(0)
    vectors = draws.normal(size=(50, 3))
    if any(primitives.length(vector) != np.linalg.norm(vector) for vector in vectors):
        return "its norm of a vector differs from NumPy's on this processor"
    matrices = Rotation.random(50, rng=draws).as_matrix()
    found = np.array([primitives.quaternion(matrix.ravel()) for matrix in matrices])
    if not np.array_equal(found, Rotation.from_matrix(matrices).as_quat()):
        return "its quaternion of a matrix differs from SciPy's on this processor"
    if not np.array_equal(_fall(primitives.simulate), _fall(mujoco.mj_step)):
        return "its physics differs from MuJoCo's Python interface"
    return None


def _fall(step: Callable[[Any, Any], None]) -> Floats:
    """Returns where a tumbling box is after some steps [7]."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/>"
        "<body pos='0 0 .12' euler='10 20 30'><freejoint/><geom type='box' size='.1 .05 .02'/></body>"
        "</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    for _ in range(40):
        step(model, data)
    return np.array(data.qpos)

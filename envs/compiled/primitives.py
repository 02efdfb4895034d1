"""Compiled entries of their own for what `obstacle.py` compares with the libraries; nothing else uses them."""

from __future__ import annotations

from typing import Any

from envs.compiled.layout import Floats
from envs.compiled.maths import Quaternion, norm, scipy_quaternion
from envs.compiled.native import entry, mj_step


@entry
def length(vector: Floats) -> float:
    """Returns the length of a vector [3]."""
    return norm((vector[0], vector[1], vector[2]))


@entry
def quaternion(matrix: Floats) -> Quaternion:
    """Returns the quaternion (x, y, z, w) of a rotation matrix [9]."""
    rows = (matrix[0], matrix[1], matrix[2], matrix[3], matrix[4], matrix[5], matrix[6], matrix[7], matrix[8])
    return scipy_quaternion(rows)


@entry
def _step(model: int, data: int) -> None:
    mj_step(model, data)


def simulate(model: Any, data: Any) -> None:
    """Makes one step of physics."""
    _step(model._address, data._address)

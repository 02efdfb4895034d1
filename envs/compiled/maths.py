"""Vectors of three numbers as tuples, and the shaping functions that Meta-World's rewards are made of.

The shaping functions are those of dm_control's `rewards` as metaworld 3.1.1 carries them.
"""

from __future__ import annotations

import math

from envs.compiled.native import fma, inner
from envs.rounding import dot_is_fused

Vec = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
_LONG_TAIL_SCALE = 3.0  # sqrt(1 / 0.1 - 1): 0.1 is the value at the margin
_GAUSSIAN_SCALE = math.sqrt(-2.0 * math.log(0.1))
_DOT_IS_FUSED = dot_is_fused()


@inner
def add(a: Vec, b: Vec) -> Vec:
    """Returns a + b."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@inner
def subtract(a: Vec, b: Vec) -> Vec:
    """Returns a − b."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


@inner
def scaled(a: Vec, b: Vec) -> Vec:
    """Returns the products a_i b_i."""
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


@inner
def _plus_square(total: float, x: float) -> float:
    """Returns total + x², rounded as in NumPy's dot product on this machine."""
    return fma(x, x, total) if _DOT_IS_FUSED else total + x * x


@inner
def norm(a: Vec) -> float:
    """Returns the length of a, as NumPy does."""
    return math.sqrt(_plus_square(_plus_square(a[0] * a[0], a[1]), a[2]))


@inner
def distance(a: Vec, b: Vec) -> float:
    """Returns the length of a − b."""
    return norm(subtract(a, b))


@inner
def distance_in_plane(a: Vec, b: Vec, first: int, second: int) -> float:
    """Returns the distance of a and b in two of their coordinates."""
    x, y = a[first] - b[first], a[second] - b[second]
    return math.sqrt(_plus_square(x * x, y))


@inner
def quaternion_distance(a: Quaternion, b: Quaternion) -> float:
    """Returns the length of the difference of two quaternions."""
    w, x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]
    return math.sqrt(w * w + x * x + y * y + z * z)


@inner
def clip(x: float, low: float, high: float) -> float:
    """Returns x within [low, high]."""
    return min(max(x, low), high)


@inner
def indicator(condition: bool) -> float:
    """Returns 1 where the condition holds, else 0."""
    return 1.0 if condition else 0.0


@inner
def _depth(x: float, low: float, high: float, margin: float) -> float:
    """Returns how far x lies outside of [low, high] in units of the margin: 0 inside, infinite without a margin."""
    outside = max(low - x, x - high)
    if outside <= 0.0:
        return 0.0
    return outside / margin if margin > 0.0 else math.inf


@inner
def long_tail(x: float, low: float, high: float, margin: float) -> float:
    """Returns 1 in [low, high], and 0.1 at `margin` outside, falling like 1 / (1 + d²)."""
    shape = _depth(x, low, high, margin) * _LONG_TAIL_SCALE
    return 1.0 / (shape * shape + 1.0)


@inner
def gaussian(x: float, low: float, high: float, margin: float) -> float:
    """Returns 1 in [low, high], and 0.1 at `margin` outside, falling like exp(−d²)."""
    shape = _depth(x, low, high, margin) * _GAUSSIAN_SCALE
    return math.exp(-0.5 * shape * shape)


@inner
def hamacher(a: float, b: float) -> float:
    """Returns the Hamacher product of two numbers in [0, 1]: 1 only where both are 1, 0 where one is 0."""
    denominator = a + b - a * b
    return a * b / denominator if denominator > 0.0 else 0.0


@inner
def _between(x: float, a: float, b: float) -> bool:
    return min(a, b) <= x <= max(a, b)


@inner
def in_box(point: Vec, zero: Vec, one: Vec) -> float:
    """Returns 1 outside of the box between two corners; inside it grows from 0 at the corner `zero` to 1 at `one`."""
    product = 1.0
    for axis in range(3):
        if not _between(point[axis], zero[axis], one[axis]):
            return 1.0
        product *= (point[axis] - zero[axis]) / (one[axis] - zero[axis])
    return product


@inner
def scipy_quaternion(matrix: tuple[float, ...]) -> Quaternion:
    """Returns the quaternion (x, y, z, w) of a rotation matrix, given as nine numbers by rows.

    The arithmetic is that of SciPy's `Rotation.from_matrix`, which some tasks' observations go through.
    """
    trace = matrix[0] + matrix[4] + matrix[8]
    choice, largest = 0, matrix[0]
    if matrix[4] > largest:
        choice, largest = 1, matrix[4]
    if matrix[8] > largest:
        choice, largest = 2, matrix[8]
    if trace > largest:
        x, y, z, w = matrix[7] - matrix[5], matrix[2] - matrix[6], matrix[3] - matrix[1], 1.0 + trace
    elif choice == 0:
        x, y, z, w = (
            1.0 - trace + 2.0 * matrix[0],
            matrix[3] + matrix[1],
            matrix[6] + matrix[2],
            matrix[7] - matrix[5],
        )
    elif choice == 1:
        x, y, z, w = (
            matrix[1] + matrix[3],
            1.0 - trace + 2.0 * matrix[4],
            matrix[7] + matrix[5],
            matrix[2] - matrix[6],
        )
    else:
        x, y, z, w = (
            matrix[2] + matrix[6],
            matrix[5] + matrix[7],
            1.0 - trace + 2.0 * matrix[8],
            matrix[3] - matrix[1],
        )
    length = math.sqrt(x * x + y * y + z * z + w * w)
    return (x / length, y / length, z / length, w / length)

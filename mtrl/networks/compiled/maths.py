"""How functions on arrays become machine code, and the activations that recurrent units are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numba import types
from numba.extending import overload

from envs.cache import Function, compile_and_keep

_LIBERTIES = {"reassoc", "contract", "nsz"}  # sums in any order, so several numbers at a time; NaN stays NaN
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)
_SATURATED = np.float32(4.6)  # half of where tanh differs from 1 by less than float32 can tell
# tanh(y) = y P(y²) / Q(y²), the eighth convergent of Lambert's continued fraction y / (1 + y² / (3 + y² / (5 + ...)))
_P0, _P1, _P2, _P3 = (np.float32(number) for number in (2_027_025, 270_270, 6_930, 36))
_Q0, _Q1, _Q2, _Q3 = (np.float32(number) for number in (2_027_025, 945_945, 51_975, 630))


def compiled(function: Function) -> Function:
    """Returns a function that is compiled when it is first called, runs without Python's lock and is kept on disk."""
    return compile_and_keep(function, Path(__file__).parent, fastmath=_LIBERTIES, error_model="numpy")


def compiled_as_written(function: Function) -> Function:
    """The same, with sums in the order in which they stand and a rounding for each operation."""
    return compile_and_keep(function, Path(__file__).parent)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent in compiled code: of float32 right to 3e-7 and fast, of float64 to its last digits."""
    raise NotImplementedError


@cast("Callable[..., Any]", overload(tanh))
def _tanh(x: Any) -> Callable[[Any], Any]:
    def of_float32(x: Any) -> Any:
        """2 tanh(x/2) / (1 + tanh(x/2)²), with the convergent for x/2."""
        y = min(max(x * _HALF, -_SATURATED), _SATURATED)
        s = y * y
        p = y * (_P0 + s * (_P1 + s * (_P2 + s * _P3)))
        q = _Q0 + s * (_Q1 + s * (_Q2 + s * (_Q3 + s)))
        return min(max(_TWO * p * q / (p * p + q * q), -_ONE), _ONE)

    def of_float64(x: Any) -> Any:
        return math.tanh(x)

    return of_float32 if x == types.float32 else of_float64


@compiled
def sigmoid(x: Any) -> Any:
    """Returns 1 / (1 + exp(-x))."""
    return _HALF + _HALF * tanh(_HALF * x)

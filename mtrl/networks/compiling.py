"""How functions on float32 and float64 arrays become machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from envs.cache import machine_code_in

Function = TypeVar("Function", bound=Callable[..., Any])
_LIBERTIES = {"reassoc", "contract", "nsz"}  # sums in any order, so several numbers at a time; NaN stays NaN


def compiled(function: Function) -> Function:
    """Returns a function that is compiled when it is first called, runs without Python's lock and is kept on disk."""
    import numba  # takes a while, and most runs have no use for it here

    with machine_code_in("networks"):
        made = numba.njit(nogil=True, cache=True, fastmath=_LIBERTIES, error_model="numpy")(function)
    return cast("Function", made)

"""What compiled code needs below NumPy: MuJoCo's functions, numbers at addresses, the fused multiply-add, a safe cache.

Everything that numba compiles in this package is Python source; no compiler is needed. libmujoco is the one that the
`mujoco` package has loaded already.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import llvmlite.binding as llvm
import mujoco
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from envs.cache import Function, compile_and_keep
from envs.rounding import dot_is_fused

_intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic  # numba types its calls wrongly
SOURCES = Path(__file__).parent
_C = ctypes.CDLL(None)


def library_path() -> Path:
    """Returns the file of libmujoco."""
    (library,) = Path(mujoco.__file__).parent.glob("libmujoco.so*")
    return library


llvm.load_library_permanently(str(library_path()))
_two_addresses = types.void(types.uintp, types.uintp)
mj_step: Any = types.ExternalFunction("mj_step", _two_addresses)
mj_forward: Any = types.ExternalFunction("mj_forward", _two_addresses)
this_thread: Any = types.ExternalFunction("pthread_self", types.int64())
"""Returns what `threading.get_ident` returns."""
semaphore_wait: Any = types.ExternalFunction("sem_wait", types.int32(types.int64))
"""Waits until the semaphore at an address can be lowered by one; not 0 where a signal cut that short."""
semaphore_try: Any = types.ExternalFunction("sem_trywait", types.int32(types.int64))
"""Lowers the semaphore at an address by one and is 0, if that is possible at once."""
semaphore_post: Any = types.ExternalFunction("sem_post", types.int32(types.int64))
"""Raises the semaphore at an address by one."""


class Semaphores:
    """A row of the C library's semaphores, all at 0, on which compiled code waits without Python."""

    num_words = 4
    """Size of one, in int64 words; that of `sem_t` on 64-bit Linux."""

    def __init__(self, count: int) -> None:
        """Makes `count` of them."""
        self._memory = np.zeros((count, self.num_words), np.int64)
        for index in range(count):
            _C.sem_init(ctypes.c_void_p(self.address(index)), 0, 0)

    def address(self, index: int) -> int:
        """Returns where one lies."""
        first: int = self._memory.__array_interface__["data"][0]
        return first + index * self._memory.itemsize * self.num_words

    def post(self, index: int) -> None:
        """Raises one by one."""
        _C.sem_post(ctypes.c_void_p(self.address(index)))


def inner(function: Function) -> Function:
    """Compiles a function that only compiled code calls."""
    return cast("Function", numba.njit(nogil=True)(function))


def entry(function: Function) -> Function:
    """Compiles a function that Python calls, and keeps the machine code on disk, of each way to round its own."""
    return compile_and_keep(function, SOURCES, variant="fused" if dot_is_fused() else "plain")


def _pointed_at(builder: Any, arguments: Any, element: Any) -> Any:
    address, index = arguments
    return builder.gep(builder.inttoptr(address, element.as_pointer()), [index])


@_intrinsic
def double_at(typing_context: Any, address: Any, index: Any) -> Any:
    """`double_at(address, i)` is the float64 number `i` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointed_at(builder, arguments, ir.DoubleType()))

    return types.float64(types.int64, types.int64), generate


@_intrinsic
def set_double_at(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """`set_double_at(address, i, x)` writes the float64 number `i` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index, value = arguments
        builder.store(value, _pointed_at(builder, (address, index), ir.DoubleType()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate


@_intrinsic
def int_at(typing_context: Any, address: Any, index: Any) -> Any:
    """`int_at(address, i)` is the int32 number `i` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_pointed_at(builder, arguments, ir.IntType(32)))
        return builder.sext(loaded, ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@_intrinsic
def address_at(typing_context: Any, address: Any, index: Any) -> Any:
    """`address_at(address, i)` is the pointer number `i` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointed_at(builder, arguments, ir.IntType(64)))

    return types.int64(types.int64, types.int64), generate


@_intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """`fma(a, b, c)` is a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


@_intrinsic
def cycles(typing_context: Any) -> Any:
    """`cycles()` is the processor's clock, in ticks of its own."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        clock = builder.module.declare_intrinsic("llvm.readcyclecounter", (), ir.FunctionType(ir.IntType(64), ()))
        return builder.call(clock, ())

    return types.int64(), generate


@_intrinsic
def take_next(typing_context: Any, address: Any) -> Any:
    """`take_next(address)` is the int64 number at an address before it grows by one, for several threads at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@_intrinsic
def let_breathe(typing_context: Any) -> Any:
    """`let_breathe()` tells the processor that this is a loop that waits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.FunctionType(ir.VoidType(), ())
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), nothing), ())
        return context.get_dummy_value()

    return types.void(), generate


@_intrinsic
def call_actor(
    typing_context: Any, function: Any, context: Any, group: Any, turn: Any, obs: Any, reward: Any, action: Any
) -> Any:
    """`call_actor(function, ...)` calls the C function at an address; see `envs.simulator.Actor`."""

    def generate(generating: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [number] * 6)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return generating.get_dummy_value()

    return types.void(*[types.int64] * 7), generate

"""What happens when MuJoCo gives up inside compiled code, where no exception can be raised.

MuJoCo's own handler prints a line, waits for Enter and exits. Ours says which environment, task and goal it was, and
ends the process at once with `EXIT_CODE`, so that whoever started it can go on without it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import cache

from envs.compiled.native import library_path

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_running: dict[int, Callable[[], str]] = {}
"""Thread → what tells where it is."""


def watch(describe: Callable[[], str] | None) -> None:
    """Lets `describe` tell where this thread is if MuJoCo gives up from now on; None says that no step is under way."""
    _install()
    _running[threading.get_ident()] = describe or _outside


def _outside() -> str:
    return "no step"


@cache
def _install() -> object:
    """Puts our handler where MuJoCo looks for one; what is returned must live as long as the process."""
    handler = _HANDLER(_give_up)
    slot = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library_path())), "mju_user_error")
    slot.value = ctypes.cast(handler, ctypes.c_void_p).value
    return handler


def _give_up(message: bytes) -> None:
    where = _running.get(threading.get_ident(), _outside)()
    sys.stderr.write(f"MuJoCo gave up in {where}: {message.decode(errors='replace')}\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)

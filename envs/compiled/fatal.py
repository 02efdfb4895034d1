"""What happens when MuJoCo gives up inside compiled code, where no exception can be raised.

MuJoCo's own handler prints a line, waits for Enter and exits. Ours says which environment, task and goal it was, and
ends the process at once with `EXIT_CODE`, so that whoever started it can go on without it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from typing import Protocol
from weakref import WeakSet

from envs.compiled.native import library_path

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_watched: WeakSet[Watched] = WeakSet()


class Watched(Protocol):
    """What steps environments in compiled code."""

    def where(self, thread: int) -> str | None:
        """Returns which environment a thread is at, in words, None if it is at none here."""


def watch(simulator: Watched) -> None:
    """Lets a simulator tell where a thread is if MuJoCo gives up."""
    _install()
    _watched.add(simulator)


@cache
def _install() -> object:
    """Puts our handler where MuJoCo looks for one; what is returned must live as long as the process."""
    handler = _HANDLER(_give_up)
    slot = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library_path())), "mju_user_error")
    slot.value = ctypes.cast(handler, ctypes.c_void_p).value
    return handler


def _give_up(message: bytes) -> None:
    try:
        thread = threading.get_ident()
        places = [place for simulator in list(_watched) if (place := simulator.where(thread)) is not None]
        text = f"MuJoCo gave up in {', '.join(places) or 'no step'}: {message.decode(errors='replace')}\n"
        os.write(2, text.encode())
    finally:
        os._exit(EXIT_CODE)  # to return from here would let MuJoCo go on

"""The folder of files that save time: compiled models, start states, machine code; and reports of broken physics.

It is `$MTRL_CACHE`, else `$XDG_CACHE_HOME/mtrl`, else `~/.cache/mtrl`. All but the reports is made anew where it is
missing, so that deleting it is always safe.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])
_LOGGER = logging.getLogger(__name__)
_callbacks: list[Any] = []


def cache_folder() -> Path:
    """Returns the folder of all of this package's cached files; it need not exist."""
    if folder := os.environ.get("MTRL_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtrl"


def compile_and_keep(function: Function, sources: Path, variant: str = "any", **options: Any) -> Function:
    """Returns a function that numba compiles when it is first called, and keeps in the cache for other processes.

    It runs without Python's lock. Where the cache cannot be written, every process compiles anew, after a warning.

    Args:
        function: In one of the sources.
        sources: Folder of all that the function is made of. numba looks for changes in the function's own file only, so
            what it keeps lies in a folder that is named after a hash of all Python files there.
        variant: Names what else the machine code depends on.
        options: Of `numba.njit`.
    """
    import numba  # takes a while, and not everybody compiles

    with _kept_in(cache_folder() / f"machine-code-{source_hash(sources)}-{variant}") as can_be_kept:
        return cast("Function", numba.njit(nogil=True, cache=can_be_kept, **options)(function))


def compile_and_keep_callback(function: Callable[..., None], signature: str, sources: Path) -> int:
    """Compiles a function for other compiled code to call, keeps it likewise, and returns its address.

    Args:
        function: In one of the sources; must not raise.
        signature: Types of what it takes and returns, in numba's notation.
        sources: As for `compile_and_keep`.
    """
    import numba

    with _kept_in(cache_folder() / f"machine-code-{source_hash(sources)}-any") as can_be_kept:
        callback = numba.cfunc(signature, cache=can_be_kept)(function)
    _callbacks.append(callback)  # its code lives as long as it does
    assert callback.address is not None
    return callback.address


@contextmanager
def _kept_in(folder: Path) -> Iterator[bool]:
    """Lets numba keep machine code in a folder; says whether that is possible."""
    import numba

    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(folder)
    try:
        yield _can_be_written(folder)
    finally:
        settings.CACHE_DIR = before


@cache
def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        _LOGGER.warning("cannot keep machine code (%s); set MTRL_CACHE to a writable folder", error)
        return False


@cache
def source_hash(folder: Path) -> str:
    """Returns a hash of all Python files in a folder and below."""
    text = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        text.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()[:16]


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file, and its folder, so that no process ever sees a part of it.

    Raises:
        OSError: If that is not possible.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        part.write_bytes(content)
        part.replace(file)

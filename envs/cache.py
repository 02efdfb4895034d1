"""The folder of files that save time: compiled models, start states, machine code; and reports of broken physics.

It is `$MTRL_CACHE`, else `$XDG_CACHE_HOME/mtrl`, else `~/.cache/mtrl`. All but the reports is made anew where it is
missing, so that deleting it is always safe.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Returns the folder of all of this package's cached files; it need not exist."""
    if folder := os.environ.get("MTRL_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtrl"


@contextmanager
def machine_code_in(folder: str) -> Iterator[None]:
    """Lets numba keep the machine code of functions that are made within it in a folder of the cache."""
    import numba  # takes a while, and not everybody compiles

    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_folder() / folder)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


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

"""The folder of files that save time: compiled models, start states, machine code; and reports of broken physics.

It is `$MTRL_CACHE`, else `$XDG_CACHE_HOME/mtrl`, else `~/.cache/mtrl`. All but the reports is made anew where it is
missing, so that deleting it is always safe.
"""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of all of this package's cached files; it need not exist."""
    if folder := os.environ.get("MTRL_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtrl"


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

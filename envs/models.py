"""Compiled MuJoCo models, kept as binary files because parsing XML and meshes takes ten times as long as reading one.

The files lie in `$MTRL_CACHE`, else `$XDG_CACHE_HOME/mtrl`, else `~/.cache/mtrl`; about 21 MB each. Deleting them is
always safe.
"""

import hashlib
import logging
import os
import re
import tempfile
import zlib
from functools import cache
from importlib import metadata
from pathlib import Path

import mujoco
import numpy as np

_LOGGER = logging.getLogger(__name__)
_CHECKSUM_BYTES = 4


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


def load_model(xml: Path) -> mujoco.MjModel:
    """Returns a new model of the scene, from the cache if it is there and whole, else compiled and then cached.

    A damaged file is replaced. Where the cache cannot be written the model is compiled every time and a warning logged.

    Raises:
        ValueError: If MuJoCo cannot compile the XML.
    """
    file = cache_folder() / "models" / _versions() / f"{xml.stem}-{_content_hash(xml)}.mjb"
    model = _read(file)
    if model is None:
        model = mujoco.MjModel.from_xml_path(str(xml))
        _write(model, file)
    return model


@cache
def _versions() -> str:
    return f"mujoco-{mujoco.__version__}-metaworld-{metadata.version('metaworld')}"


def _content_hash(xml: Path) -> str:
    """Returns a hash of the XML file and of the XML files that it includes, to any depth."""
    digest = hashlib.sha256()
    waiting, seen = [xml.resolve()], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        text = path.read_bytes()
        digest.update(text)
        for name in re.findall(rb'<include\s+file="([^"]+)"', text):
            relative = name.decode().replace("\\", "/")  # some files of metaworld have Windows paths
            waiting += [(folder / relative).resolve() for folder in (path.parent, xml.parent)]
    return digest.hexdigest()[:16]


def _read(file: Path) -> mujoco.MjModel | None:
    """Returns the model in the file, or None if the file is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, binary = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if checksum != _checksum(binary):
        _LOGGER.warning("the model file %s is damaged; making it anew", file)
        return None
    return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": binary})


def _write(model: mujoco.MjModel, file: Path) -> None:
    """Keeps the model in the file."""
    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    content = binary.tobytes()
    try:
        write_whole(file, _checksum(content) + content)
    except OSError as error:
        _LOGGER.warning("cannot keep the compiled model %s (%s); set MTRL_CACHE to a writable folder", file, error)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")

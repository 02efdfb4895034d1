"""Compiled MuJoCo models, kept as binary files because parsing XML and meshes takes ten times as long as reading one.

The files lie in the folder `models` of the cache, about 21 MB each, the checksum at the end of the name.
"""

import hashlib
import logging
import mmap
import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path

import mujoco
import numpy as np

from envs.cache import cache_folder, write_whole

_LOGGER = logging.getLogger(__name__)
_MOST_LOADERS = 8


def load_models(xmls: Sequence[Path]) -> list[mujoco.MjModel]:
    """Returns `load_model` of each scene; several at once, as reading needs no GIL."""
    silence_warnings()
    with ThreadPoolExecutor(min(_MOST_LOADERS, os.cpu_count() or 1), thread_name_prefix="models") as pool:
        return list(pool.map(load_model, xmls))


def load_model(xml: Path) -> mujoco.MjModel:
    """Returns a new model of the scene, from the cache if it is there and whole, else compiled and then cached.

    A damaged file is replaced. Where the cache cannot be written the model is compiled every time and a warning logged.

    Raises:
        ValueError: If MuJoCo cannot compile the XML.
    """
    silence_warnings()
    name = f"{xml.stem}-{_content_hash(xml)}"
    folder = cache_folder() / "models" / _versions()
    for file in sorted(folder.glob(f"{name}-*.mjb")):
        model = _read(file)
        if model is not None:
            return model
    model = mujoco.MjModel.from_xml_path(str(xml))
    _write(model, folder, name)
    return model


@cache
def silence_warnings() -> None:
    """Keeps MuJoCo from writing MUJOCO_LOG.TXT into the working directory; warnings are counted in its data anyway."""
    mujoco.set_mju_user_warning(lambda message: None)


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
    """Returns the model in the file; None if it is damaged, and then removed, or has been removed by somebody else."""
    reason = ""
    for _ in range(2):  # somebody else may remove it, and make it anew, between the two looks at it
        try:
            if _checksum(file) == file.stem.rpartition("-")[2]:
                return mujoco.MjModel.from_binary_path(str(file))
            reason = "its checksum is another"
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = str(error)
    if not file.exists():
        return None
    _LOGGER.warning("the model file %s is damaged (%s); making it anew", file, reason)
    file.unlink(missing_ok=True)
    return None


def _write(model: mujoco.MjModel, folder: Path, name: str) -> None:
    """Keeps the model in the folder."""
    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    content = binary.tobytes()
    try:
        write_whole(folder / f"{name}-{zlib.crc32(content):08x}.mjb", content)
    except OSError as error:
        _LOGGER.warning("cannot keep the compiled model %s (%s); set MTRL_CACHE to a writable folder", name, error)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            return ""  # cannot be mapped
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return f"{zlib.crc32(content):08x}"

"""One checkpoint format for all engines: safetensors for tensors, JSON for the rest, replay in append-only chunks.

A checkpoint is a folder `checkpoints/<env_steps>/` with `tensors.safetensors`, `state.json` and, written last,
`manifest.json`, which lists every file with its size and hash, replay chunks included. What has no manifest is not a
checkpoint. No pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtrl.replay.ring import Replay

FORMAT = 2
MANIFEST = "manifest.json"
_MOST_ROWS = 200_000  # of a replay chunk


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the text names the file and what is wrong with it."""


def save_checkpoint(run: Path, env_steps: int, state: Mapping[str, Any], replay: Replay | None, keep: int) -> Path:
    """Saves a checkpoint and removes all but the `keep` newest; one that is there already for these steps stays.

    Args:
        run: Run directory.
        env_steps: Names the checkpoint.
        state: Nested dictionaries of tensors, arrays and JSON-able values.
        replay: Saved as the transitions that no earlier chunk holds; None leaves it out.
        keep: Number of checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If the disk refuses; earlier checkpoints stay as they were.
    """
    folder = run / "checkpoints" / f"{env_steps:012d}"
    if (folder / MANIFEST).exists():
        return folder  # nothing happened since
    if folder.exists():
        shutil.rmtree(folder)  # a save that was cut short
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _take_out_tensors(state, "", tensors)
    _write_tensors(folder / "tensors.safetensors", tensors)
    _write_text(folder / "state.json", json.dumps(skeleton))
    files = [_file_entry(run, folder / name) for name in ("tensors.safetensors", "state.json")]
    chunks = _append_replay(run, env_steps, replay) if replay is not None else []
    manifest = {"format": FORMAT, "env_steps": env_steps, "files": files, "replay": chunks}
    _write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    _remove_old(run, keep)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Returns the folders that have a manifest, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"*/{MANIFEST}"))


def newest_checkpoint(run: Path) -> tuple[Path, list[str]]:
    """Returns the newest checkpoint whose files are whole, and one line about each newer one that is not.

    Raises:
        CheckpointError: If there is none.
    """
    damage: list[str] = []
    for folder in reversed(list_checkpoints(run)):
        try:
            _check_files(run, folder)
        except CheckpointError as error:
            damage.append(str(error))
        else:
            return folder, damage
    reason = "; ".join(damage) if damage else f"{run / 'checkpoints'} holds no checkpoint"
    raise CheckpointError(f"nothing to go on from: {reason}")


@dataclass(frozen=True)
class CheckpointInfo:
    """What there is to know of a checkpoint without loading it."""

    env_steps: int
    num_bytes: int
    """Of its own files."""
    replay_bytes: int
    """Of the replay chunks that it lists, most of which it shares with other checkpoints."""
    damage: str | None
    """What is wrong with it."""


def describe_checkpoints(run: Path) -> list[CheckpointInfo]:
    """Returns what there is to know of every checkpoint of a run, oldest first."""
    found = []
    for folder in list_checkpoints(run):
        num_bytes = replay_bytes = 0
        damage = None
        try:
            manifest = _read_manifest(folder)
            num_bytes = sum(entry["num_bytes"] for entry in manifest["files"])
            replay_bytes = sum(entry["num_bytes"] for entry in manifest["replay"])
            _check_files(run, folder)
        except CheckpointError as error:
            damage = str(error)
        found.append(CheckpointInfo(int(folder.name), num_bytes, replay_bytes, damage))
    return found


def discard_newer(run: Path, folder: Path) -> None:
    """Removes what was saved after a checkpoint, so that a run can go on from it."""
    for other in (run / "checkpoints").iterdir():
        if other.name > folder.name:
            shutil.rmtree(other)
    _remove_old(run, len(list_checkpoints(run)))


def load_state(folder: Path) -> dict[str, Any]:
    """Reads the state of a checkpoint.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    try:
        tensors = load_file(folder / "tensors.safetensors")
        skeleton = json.loads((folder / "state.json").read_text())
    except (OSError, SafetensorError, ValueError) as error:  # the last for what is no JSON, or no text at all
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    state: dict[str, Any] = _put_back_tensors(skeleton, tensors)
    return state


def load_replay(run: Path, folder: Path, replay: Replay) -> int:
    """Fills the replay from the chunks that a checkpoint lists.

    Returns:
        The number of transitions that can be sampled afterwards; 0 if the replay was not saved.

    Raises:
        CheckpointError: If a chunk is missing or damaged.
    """
    for entry in _read_manifest(folder)["replay"]:
        try:
            replay.restore_chunk(load_file(run / entry["path"]))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"replay chunk {run / entry['path']} cannot be read: {error}") from error
    return int(replay.sizes.sum())


def _append_replay(run: Path, env_steps: int, replay: Replay) -> list[dict[str, Any]]:
    existing = list_checkpoints(run)
    chunks = _whole_chunks(run, existing[-1]) if existing else []
    since = np.array(chunks[-1]["stop"]) if chunks else np.zeros(replay.num_slots, np.int64)
    (run / "replay").mkdir(exist_ok=True)
    for number, chunk in enumerate(replay.chunks(since, _MOST_ROWS)):
        path = run / "replay" / f"{env_steps:012d}-{number:03d}.safetensors"
        _write_tensors(path, chunk)
        chunks.append({**_file_entry(run, path), "stop": chunk["stop"].tolist()})
    oldest_kept = replay.added - replay.capacity
    return [entry for entry in chunks if (np.array(entry["stop"]) > oldest_kept).any()]


def _whole_chunks(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Returns the chunks that a checkpoint lists, none if one of them is not there: then all is saved anew."""
    chunks = _listed_chunks(folder)
    there = all(
        (run / one["path"]).exists() and (run / one["path"]).stat().st_size == one["num_bytes"] for one in chunks
    )
    return chunks if there else []


def _listed_chunks(folder: Path) -> list[dict[str, Any]]:
    """Returns the chunks that a checkpoint lists, none if it is damaged."""
    try:
        chunks: list[dict[str, Any]] = _read_manifest(folder)["replay"]
    except CheckpointError:
        return []
    return chunks


def _remove_old(run: Path, keep: int) -> None:
    checkpoints = list_checkpoints(run)
    for folder in checkpoints[:-keep]:
        shutil.rmtree(folder)
    needed = {entry["path"] for folder in checkpoints[-keep:] for entry in _listed_chunks(folder)}
    for chunk in (run / "replay").glob("*.safetensors"):
        if str(chunk.relative_to(run)) not in needed:
            chunk.unlink()


def _check_files(run: Path, folder: Path) -> None:
    manifest = _read_manifest(folder)
    for entry in [*manifest["files"], *manifest["replay"]]:
        path = run / entry["path"]
        if not path.exists():
            raise CheckpointError(f"checkpoint {folder.name} is damaged: {path} is missing")
        if path.stat().st_size != entry["num_bytes"] or _sha256(path) != entry["sha256"]:
            raise CheckpointError(f"checkpoint {folder.name} is damaged: {path} is not what was saved")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder.name} is damaged: its {MANIFEST} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder.name} has format {manifest.get('format')}, this version of mtrl reads {FORMAT}"
        )
    return manifest


def _take_out_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(value.copy())
        return {"__array__": path}
    if isinstance(value, Mapping):
        return {
            str(key): _take_out_tensors(item, f"{path}/{key}" if path else str(key), tensors)
            for key, item in value.items()
        }
    return value


def _put_back_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__tensor__"}:
            return tensors[value["__tensor__"]]
        if set(value) == {"__array__"}:
            return tensors[value["__array__"]].numpy()
        return {key: _put_back_tensors(item, tensors) for key, item in value.items()}
    return value


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    _replace(partial, path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    _replace(partial, path)


def _replace(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _file_entry(run: Path, path: Path) -> dict[str, Any]:
    return {"path": str(path.relative_to(run)), "num_bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints: what comes back, what is kept, what is refused."""

import errno
import hashlib
import json
import pickle

import numpy as np
import pytest
import torch

from mtrl.checkpoint import (
    CheckpointError,
    discard_newer,
    list_checkpoints,
    load_replay,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)
from mtrl.replay.ring import Replay

STATE = {
    "weights": {"a": torch.arange(3.0), "deep": {"b": torch.ones(2, dtype=torch.uint8)}},
    "count": 7,
    "list": [1, "x"],
}


def replay(capacity=10):
    return Replay(2, capacity, obs_dim=3, action_dim=2, device=torch.device("cpu"))


def add(made, slot, numbers):
    column = np.asarray(numbers, np.float32)
    made.add(
        slot,
        np.ones((len(column), 3)),
        np.ones((len(column), 2)),
        column,
        np.ones((len(column), 3)),
        np.zeros(len(column)),
    )


def rewards(made, slot):
    drawn = made.sample(torch.tensor([slot]), 300, torch.Generator().manual_seed(0)).reward
    return sorted({int(reward) for reward in drawn[0]})


def test_tensors_and_values_come_back(tmp_path):
    folder = save_checkpoint(tmp_path, 5, STATE, None, keep=2)
    state = load_state(folder)
    assert torch.equal(state["weights"]["a"], torch.arange(3.0))
    assert torch.equal(state["weights"]["deep"]["b"], torch.ones(2, dtype=torch.uint8))
    assert state["count"] == 7
    assert state["list"] == [1, "x"]


def test_a_checkpoint_that_is_there_is_not_touched_by_another_at_the_same_step(tmp_path):
    folder = save_checkpoint(tmp_path, 5, STATE, None, keep=1)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert save_checkpoint(tmp_path, 5, STATE, None, keep=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_newest_are_kept_and_found(tmp_path):
    for env_steps in (5, 20, 100):
        save_checkpoint(tmp_path, env_steps, {"n": env_steps}, None, keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["000000000020", "000000000100"]
    assert load_state(newest_checkpoint(tmp_path)[0])["n"] == 100


def test_the_replay_is_saved_in_parts_and_comes_back_whole(tmp_path):
    filled = replay()
    for first in (0, 4, 9):
        add(filled, 0, range(first, first + 4))
        add(filled, 1, [100 + first])
        folder = save_checkpoint(tmp_path, first + 1, {}, filled, keep=1)
    assert len(list((tmp_path / "replay").iterdir())) == 3
    restored = replay()
    assert load_replay(tmp_path, folder, restored) == filled.sizes.sum()
    assert rewards(restored, 0) == rewards(filled, 0)
    assert rewards(restored, 1) == [100, 104, 109]
    assert restored.added.tolist() == filled.added.tolist()


def test_chunks_of_overwritten_transitions_are_removed(tmp_path):
    filled = replay(capacity=3)
    for first in (0, 3, 6):
        for slot in (0, 1):
            add(filled, slot, range(first, first + 3))
        folder = save_checkpoint(tmp_path, first + 1, {}, filled, keep=1)
    assert [path.name for path in (tmp_path / "replay").iterdir()] == ["000000000007-000.safetensors"]
    restored = replay(capacity=3)
    load_replay(tmp_path, folder, restored)
    assert rewards(restored, 0) == [6, 7, 8]


@pytest.mark.parametrize("damage", ["truncate", "remove", "change"])
@pytest.mark.parametrize("victim", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path, damage, victim):
    good = save_checkpoint(tmp_path, 1, STATE, None, keep=2)
    path = save_checkpoint(tmp_path, 2, STATE, None, keep=2) / victim
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncate" else content[:-1] + b"?")
    folder, told = newest_checkpoint(tmp_path)
    assert folder == good
    assert len(told) == 1
    assert str(path) in told[0]


def test_a_missing_chunk_damages_its_checkpoint(tmp_path):
    filled = replay()
    add(filled, 0, range(3))
    save_checkpoint(tmp_path, 1, {}, filled, keep=2)
    next((tmp_path / "replay").iterdir()).unlink()
    with pytest.raises(
        CheckpointError, match=r"nothing to go on from: checkpoint 000000000001 is damaged: .* is missing"
    ):
        newest_checkpoint(tmp_path)


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, STATE, None, keep=2)
    (save_checkpoint(tmp_path, 2, STATE, None, keep=2) / "manifest.json").unlink()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["000000000001"]


def test_another_format_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, 1, STATE, None, keep=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version of mtrl reads 2"):
        newest_checkpoint(tmp_path)


def test_going_on_from_an_older_checkpoint_forgets_the_newer(tmp_path):
    filled = replay()
    add(filled, 0, [1])
    older = save_checkpoint(tmp_path, 1, {}, filled, keep=2)
    add(filled, 0, [2])
    newer = save_checkpoint(tmp_path, 2, {}, filled, keep=2)
    (newer / "state.json").write_text("")
    folder, _ = newest_checkpoint(tmp_path)
    discard_newer(tmp_path, folder)
    assert folder == older
    assert not newer.exists()
    assert [path.name for path in (tmp_path / "replay").iterdir()] == ["000000000001-000.safetensors"]


def test_an_empty_run_has_nothing_to_go_on_from(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        newest_checkpoint(tmp_path)


def test_no_pickle_is_written(tmp_path):
    filled = replay()
    add(filled, 0, range(3))
    save_checkpoint(tmp_path, 1, STATE, filled, keep=2)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path, monkeypatch):
    good = save_checkpoint(tmp_path, 1, STATE, None, keep=2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "tensors.partial")

    monkeypatch.setattr("mtrl.checkpoint._write_tensors", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(tmp_path, 2, STATE, None, keep=2)
    assert newest_checkpoint(tmp_path) == (good, [])
    monkeypatch.undo()
    again = save_checkpoint(tmp_path, 2, STATE, None, keep=2)  # what the failure left is in nobody's way
    assert newest_checkpoint(tmp_path)[0] == again


@pytest.mark.parametrize("victim", ["manifest", "chunk"])
def test_saving_goes_on_after_damage(tmp_path, victim):
    filled = replay()
    add(filled, 0, [1])
    first = save_checkpoint(tmp_path, 1, {}, filled, keep=3)
    if victim == "manifest":
        (first / "manifest.json").write_bytes(b"\x80")
    else:
        next((tmp_path / "replay").iterdir()).unlink()
    add(filled, 0, [2])
    second = save_checkpoint(tmp_path, 2, {}, filled, keep=3)
    assert newest_checkpoint(tmp_path)[0] == second
    restored = replay()
    load_replay(tmp_path, second, restored)
    assert rewards(restored, 0) == [1, 2]


class Planted:
    """Would leave a file behind if anything unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("victim", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_planted_pickle_is_never_opened(tmp_path, victim):
    good = save_checkpoint(tmp_path, 1, STATE, None, keep=2)
    bad = save_checkpoint(tmp_path, 2, STATE, None, keep=2)
    planted = pickle.dumps(Planted(tmp_path / "proof"))
    (bad / victim).write_bytes(planted)
    if victim != "manifest.json":  # even where the manifest was made to fit
        manifest = json.loads((bad / "manifest.json").read_text())
        for entry in manifest["files"]:
            if entry["path"].endswith(victim):
                entry |= {"num_bytes": len(planted), "sha256": hashlib.sha256(planted).hexdigest()}
        (bad / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_state(bad)
    else:
        assert newest_checkpoint(tmp_path)[0] == good
    assert not (tmp_path / "proof").exists()

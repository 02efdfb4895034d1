"""What it costs to save and load a learner whose replay is full: seconds, bytes, memory.

The learner is the real one of a row. Its transitions are random, which take as many bytes as real ones; nothing is
simulated, so the states of environments, which a run saves too, are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtrl.bench.memory import forget_peak, peak_bytes, resident_bytes
from mtrl.checkpoint import load_replay, load_state, newest_checkpoint, save_checkpoint
from mtrl.config import ConfigError, RunConfig
from mtrl.config_io import load_config, to_dict
from mtrl.data import Block
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device
from mtrl.learners.protocol import Learner
from mtrl.networks.build import Suite
from mtrl.replay.ring import GIB, Replay
from mtrl.rollout.build import build_suite

ROW = Path("configs/mt50/pcgrad.yaml")
_MOST_ROWS = 100_000  # that are hashed at once


def bench_checkpoint(config: RunConfig, folder: Path, num_new: int = 100_000) -> dict[str, float]:
    """Saves a learner with a full replay, saves it again after some more transitions, and loads what was saved.

    Saving ends when the disk has the bytes (fsync). Loading is what a resume does: all files are checked by their hash,
    then read; they come from the page cache, as after the end of a process, not of the machine.

    Args:
        config: Of a row whose replay holds more than its warm-up; networks are put on the CPU, so that the memory of a
            process with CUDA does not hide that of saving.
        folder: On the disk to be measured; a temporary folder is made in it and removed.
        num_new: Transitions between the two saves, as many for each task; what cannot be shared evenly is left out.

    Returns:
        `replay_bytes`, the full replay in memory; `full_save_s`, `full_save_bytes`, `incremental_save_s`,
        `incremental_save_bytes`, the bytes being those of new files; `load_s`. On Linux also `memory_bytes`, what the
        process holds before the first save, `peak_memory_bytes`, the most that it holds during either save (`VmHWM` of
        /proc/self/status, set back before each by writing 5 to /proc/self/clear_refs), and `peak_over_memory`; left
        out where the peak cannot be set back.

    Raises:
        ConfigError: If the disk has too little space.
        ValueError: If the replay does not fit into memory.
        RuntimeError: If the replay that was loaded is not the one that was saved.
    """
    config = dataclasses.replace(config, device="cpu")
    suite = build_suite(config)
    with tempfile.TemporaryDirectory(prefix="mtrl-bench-", dir=folder) as made:
        run = Path(made)
        figures, saved_hash = _save_twice(config, suite, run, num_new)
        learner = build_learner(config, suite, choose_device(config.device))
        figures["load_s"] = _load_s(learner, run)
        if _hash(_replay(learner)) != saved_hash:
            raise RuntimeError(f"the replay loaded from {run} is not the one that was saved: a bug of mtrl or the disk")
    return figures


def bench_row(folder: Path) -> dict[str, dict[str, float]]:
    """Returns the figures of `ROW`, whose replay is as large as that of any row."""
    config = load_config(ROW)
    num_transitions = build_suite(config).num_tasks * config.replay.capacity_per_task
    return {f"checkpoint, {config.env.benchmark}, {num_transitions:,} transitions": bench_checkpoint(config, folder)}


class _Save(NamedTuple):
    """What one save cost."""

    seconds: float
    num_bytes: int
    """Of the files that were not there before."""
    peak_bytes: int | None
    """The most memory that the process held; None where that cannot be told."""


def _save_twice(config: RunConfig, suite: Suite, run: Path, num_new: int) -> tuple[dict[str, float], str]:
    """Returns the figures of both saves and the hash of the replay; keeps no learner: there may be room for one."""
    learner = build_learner(config, suite, choose_device(config.device))
    replay = _replay(learner)
    _refuse_small_disk(run.parent, replay, num_new)
    draws = np.random.default_rng(0)
    _receive(learner, config, suite, replay.capacity, draws)
    updated = learner.update()  # an optimizer has nothing to save before its first step
    assert updated is not None, "the replay holds less than the warm-up"
    memory = resident_bytes() if forget_peak() else None
    full = _save(learner, config, run)
    _receive(learner, config, suite, num_new // suite.num_tasks, draws)
    incremental = _save(learner, config, run)
    figures: dict[str, float] = {
        "replay_bytes": replay.required_bytes,
        "full_save_s": full.seconds,
        "full_save_bytes": full.num_bytes,
        "incremental_save_s": incremental.seconds,
        "incremental_save_bytes": incremental.num_bytes,
    }
    if memory is not None and full.peak_bytes is not None and incremental.peak_bytes is not None:
        peak = max(full.peak_bytes, incremental.peak_bytes)
        figures |= {"memory_bytes": memory, "peak_memory_bytes": peak, "peak_over_memory": peak / memory}
    return figures, _hash(replay)


def _save(learner: Learner, config: RunConfig, run: Path) -> _Save:
    there = _files(run)
    peak_counts = forget_peak()
    began = time.perf_counter()
    state = {"learner": learner.state_dict(), "policy": dict(learner.policy_weights()), "config": to_dict(config)}
    save_checkpoint(run, learner.env_steps, state, learner.replay, config.checkpoint.keep)
    seconds = time.perf_counter() - began
    peak = peak_bytes() if peak_counts else None
    return _Save(seconds, sum(path.stat().st_size for path in _files(run) - there), peak)


def _load_s(learner: Learner, run: Path) -> float:
    began = time.perf_counter()
    checkpoint, _ = newest_checkpoint(run)
    learner.load_state_dict(load_state(checkpoint)["learner"])
    load_replay(run, checkpoint, _replay(learner))
    return time.perf_counter() - began


def _receive(learner: Learner, config: RunConfig, suite: Suite, num_per_task: int, draws: np.random.Generator) -> None:
    """Gives the learner as many random transitions of each task, an episode of all tasks at a time."""
    for first in range(0, num_per_task, config.env.max_episode_steps):
        learner.receive([_random_block(suite, min(config.env.max_episode_steps, num_per_task - first), draws)])


def _random_block(suite: Suite, num_steps: int, draws: np.random.Generator) -> Block:
    """Returns an episode in one environment of each task."""
    shape = (num_steps, suite.num_tasks)  # [step, env]
    ended = np.zeros(shape, bool)
    ended[-1] = True
    task_id = np.broadcast_to(np.arange(suite.num_tasks, dtype=np.int32), shape)
    return Block(
        obs=draws.standard_normal((*shape, suite.obs_dim), np.float32),
        action=draws.random((*shape, suite.action_dim), np.float32),
        reward=draws.random(shape, np.float32),
        next_obs=draws.standard_normal((*shape, suite.obs_dim), np.float32),
        terminated=np.zeros(shape, bool),
        truncated=ended,
        success=np.zeros(shape, bool),
        valid=np.ones(shape, bool),
        task_id=task_id,
        goal_id=np.zeros(shape, np.int32),
        slot=task_id,
        episode_id=np.zeros(shape, np.int64),
        trial_id=np.zeros(shape, np.int64),
        weights_version=0,
    )


def _refuse_small_disk(folder: Path, replay: Replay, num_new: int) -> None:
    num_transitions = replay.num_slots * replay.capacity
    # a tenth more for networks and optimizers, twice
    needed = 1.1 * replay.required_bytes * (num_transitions + num_new) / num_transitions
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            "bench checkpoint",
            f"{folder.resolve()} has {free / GIB:.2f} GiB free, {needed / GIB:.2f} GiB are needed for a while; "
            "give --out in a folder with more space",
        )


def _hash(replay: Replay) -> str:
    """Returns a hash of all that a replay holds, each slot in the order in which it came."""
    found = hashlib.sha256(replay.added.tobytes())
    for chunk in replay.chunks(np.zeros(replay.num_slots, np.int64), _MOST_ROWS):
        found.update(chunk["rows"].numpy().tobytes())
    return found.hexdigest()


def _replay(learner: Learner) -> Replay:
    assert learner.replay is not None, "a row of MTSAC has a replay"
    return learner.replay


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}

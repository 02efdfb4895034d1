"""A run that was stopped and resumed equals the one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_in
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl import train as training
from mtrl.checkpoint import CheckpointError, list_checkpoints, load_replay, load_state, newest_checkpoint
from mtrl.config import (
    CheckpointConfig,
    EnvConfig,
    EvalConfig,
    ReplayConfig,
    RllibConfig,
    RunConfig,
    SacConfig,
    SurgeryConfig,
)
from mtrl.engine.local import LocalEngine
from mtrl.engine.progress import WorkersLostError
from mtrl.replay.ring import Replay

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SETTINGS: dict[str, Any] = {
    # pieces do not divide one another, so that a stop finds everything half done
    "env": EnvConfig(benchmark="toy", max_episode_steps=23, num_goals=4, copies=2),
    "sac": SacConfig(
        batch_size=8,
        samples_per_insert=8.0,
        warmup_steps_per_task=10,
        collect_steps=3,
        reward_scaling="per_task_return",
    ),
    "surgery": SurgeryConfig(method="pcgrad", statistics_every=3),
    "replay": ReplayConfig(capacity_per_task=70),
    "eval": EvalConfig(every_env_steps=170, goals=2, final_goals=4),
    "checkpoint": CheckpointConfig(every_env_steps=130, keep=10),
    "total_env_steps": 900,
}


class StopAt:
    """A display that sends SIGTERM when a number of environment steps is reached."""

    def __init__(self, env_steps: int | None) -> None:
        self.env_steps, self.said = env_steps, list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, env_steps: int, gradient_steps: int, success: float | None) -> None:
        if self.env_steps is not None and env_steps >= self.env_steps:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def pause_after_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a signal come between any two rounds; usually the loop looks up once a second."""
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Returns path → leaf of nested dictionaries and lists; clocks are left out."""
    if isinstance(value, dict):
        return {name: leaf for key in value for name, leaf in flat(value[key], f"{path}/{key}").items()}
    if isinstance(value, list):
        return {name: leaf for key, item in enumerate(value) for name, leaf in flat(item, f"{path}/{key}").items()}
    return {} if any(clock in path for clock in ("/perf/", "/wall_s", "/seconds", "/log/")) else {path: value}


def without_clocks(path: Path) -> list[dict[str, Any]]:
    return [flat(json.loads(line)) for line in path.read_text().splitlines()]


def assert_equal_states(one: Path, other: Path) -> None:
    """Checks that the newest checkpoints and all records of two runs are equal, but for clocks."""
    states = [flat(load_state(newest_checkpoint(run)[0])) for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        if path.endswith("/runs_dir"):
            continue
        if isinstance(value, torch.Tensor | np.ndarray):
            np.testing.assert_array_equal(np.asarray(states[1][path]), np.asarray(value), err_msg=path)
        else:
            assert states[1][path] == value, path
    for name in ("metrics.jsonl", "surgery.jsonl"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert without_clocks(one / name) == without_clocks(other / name)
    evaluations = [sorted(path.name for path in (run / "evaluations").iterdir()) for run in (one, other)]
    assert evaluations[0] == evaluations[1]
    for name in evaluations[0]:
        assert json.loads((one / "evaluations" / name).read_text()) == json.loads(
            (other / "evaluations" / name).read_text()
        )


def assert_equal_runs(one: Path, other: Path, config: RunConfig) -> None:
    assert_equal_states(one, other)
    replays = []
    for run in (one, other):
        held = Replay(4, config.replay.capacity_per_task, 6, 2, torch.device("cpu"))
        load_replay(run, newest_checkpoint(run)[0], held)
        replays.append(held)
    np.testing.assert_array_equal(replays[0].added, replays[1].added)
    torch.testing.assert_close(replays[0]._rows, replays[1]._rows, rtol=0, atol=0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train(run_in(tmp_path_factory.mktemp("whole"), **SETTINGS), StopAt(None)).run


@pytest.mark.parametrize("stops", [(1,), (100,), (137, 300, 305), (860,)], ids=str)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Path, stops: tuple[int, ...]
) -> None:
    config = run_in(tmp_path, **SETTINGS)
    run, reason = training.train(config, StopAt(stops[0]))
    assert reason is signal.SIGTERM
    for following in (*stops[1:], None):
        display = StopAt(following)
        assert training.resume(run, [], display).stopped_by is (signal.SIGTERM if following else None)
        assert not any("begin new episodes" in line for line in display.said)
    assert_equal_runs(uninterrupted, run, config)


@pytest.mark.parametrize(("rows", "width"), [(1, 24), (20, 24), (200, 4096)])
def test_products_do_not_depend_on_where_matrices_lie_in_memory(rows: int, width: int) -> None:
    draws = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(rows, width, generator=draws), torch.randn(4, width, generator=draws)

    def moved(matrix: torch.Tensor, places: int) -> torch.Tensor:
        return torch.cat([torch.zeros(places), matrix.flatten()])[places:].view(matrix.shape)

    expected = torch.nn.functional.linear(inputs, weight)
    for places in range(16):
        found = torch.nn.functional.linear(moved(inputs, places), moved(weight, places))
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_what_was_logged_after_the_checkpoint_is_forgotten(tmp_path: Path, uninterrupted: Path) -> None:
    """A killed run leaves records, evaluations and half a line behind its last checkpoint."""
    config = run_in(tmp_path, **SETTINGS)
    run, _ = training.train(config, StopAt(500))
    newest = list_checkpoints(run)[-1]
    (newest / "manifest.json").unlink()  # as if it had been killed while it saved
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    training.resume(run, [], StopAt(None))
    assert_equal_runs(uninterrupted, run, config)


@pytest.mark.parametrize(
    "num_kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.nightly)]
)
def test_a_run_killed_anywhere_resumes_to_the_same_end(tmp_path: Path, num_kills: int) -> None:
    """kill -9 at random moments; the run saves so often that many of them fall into saving."""
    draws = np.random.default_rng(int.from_bytes(os.urandom(4)))
    settings = {**SETTINGS, "checkpoint": CheckpointConfig(every_env_steps=24, keep=2), "torch_threads": 1}
    config = run_in(tmp_path, **{**settings, "total_env_steps": 500 * num_kills})
    whole = training.train(config, StopAt(None)).run
    victim = training.train(config, StopAt(1)).run
    command = [sys.executable, "-m", "mtrl", "resume", str(victim)]
    while_saving = 0
    for _ in range(num_kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("resuming"):
                break
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=float(draws.uniform(0.0, 2.0)))
        process.kill()
        process.communicate()
        folders = set((victim / "checkpoints").iterdir())
        while_saving += len(folders - set(list_checkpoints(victim)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{num_kills} kills, {while_saving} of them while a checkpoint was written")
    assert_equal_runs(whole, victim, config)


def test_environments_of_another_simulator_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = training.train(run_in(tmp_path, **SETTINGS), StopAt(100))

    def other(self: Any, state: Any) -> None:
        raise ValueError("the state was made with simulator 'a'; this environment has 'b'")

    monkeypatch.setattr("envs.vector.TaskVectorEnv.set_state", other)
    with pytest.raises(CheckpointError, match="cannot go on here: the state was made with simulator 'a'") as told:
        training.resume(run, [], StopAt(None))
    assert "\n" not in str(told.value)


@pytest.mark.ray
@pytest.mark.parametrize("num_env_runners", [0, 1, 2])
def test_a_run_on_ray_resumes_exactly(tmp_path: Path, num_env_runners: int) -> None:
    config = run_in(
        tmp_path,
        **SETTINGS,
        engine="rllib",
        rllib=RllibConfig(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000),
    )
    whole = training.train(config, StopAt(None)).run
    run, _ = training.train(config, StopAt(333))
    training.resume(run, [], StopAt(None))
    assert_equal_runs(whole, run, config)


@pytest.mark.ray
def test_a_run_goes_on_under_another_engine_and_back(tmp_path: Path, uninterrupted: Path) -> None:
    config = run_in(tmp_path, **SETTINGS)
    run, _ = training.train(config, StopAt(200))
    on_ray = ["engine=rllib", "rllib.num_cpus_per_env_runner=0.5", "rllib.object_store_bytes=80_000_000"]
    training.resume(run, [*on_ray, "rllib.num_env_runners=1"], StopAt(400))  # one share of the environments, as locally
    training.resume(run, ["engine=local"], StopAt(600))
    display = StopAt(700)
    training.resume(run, [*on_ray, "rllib.num_env_runners=2"], display)
    assert any("they begin new episodes" in line for line in display.said)
    state = load_state(newest_checkpoint(run)[0])["learner"]
    assert state["env_steps"] >= 700


def test_a_run_that_fails_in_its_last_evaluation_keeps_what_it_learned(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_in(tmp_path, **SETTINGS)
    real = training._Training._checked_final

    def fail(self: Any) -> float:
        real(self)  # its record is in the log already
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_checked_final", fail)
        with pytest.raises(OSError, match="power"):
            training.train(config, StopAt(None))
    (run,) = tmp_path.iterdir()
    assert load_state(newest_checkpoint(run)[0])["learner"]["env_steps"] >= 900
    training.resume(run, [], StopAt(None))
    assert_equal_runs(uninterrupted, run, config)
    training.resume(run, [], StopAt(None))  # once more, with nothing left to do
    assert_equal_runs(uninterrupted, run, config)


def test_tensorboard_has_every_record_once(tmp_path: Path, uninterrupted: Path) -> None:
    run, _ = training.train(run_in(tmp_path, **SETTINGS), StopAt(400))
    training.resume(run, [], StopAt(None))
    steps = [
        [event.step for event in EventAccumulator(str(one / "tensorboard")).Reload().Scalars("train/loss/critic/mean")]
        for one in (run, uninterrupted)
    ]
    assert steps[0] == steps[1] != []


def test_a_checkpoint_does_without_environments_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: Any) -> None:
        raise RuntimeError("rollout worker 0 died")

    display = StopAt(200)
    with monkeypatch.context() as patch:
        patch.setattr("mtrl.engine.local.LocalEngine.collection_state", dead)
        run, _ = training.train(run_in(tmp_path, **SETTINGS), display)
    assert any("saving without the environments" in line for line in display.said)
    display = StopAt(None)
    training.resume(run, [], display)
    assert "the environments were not saved: they begin new episodes" in display.said
    assert load_state(newest_checkpoint(run)[0])["learner"]["env_steps"] >= 900


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_a_run_whose_workers_are_lost_keeps_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, told_to_stop: bool
) -> None:
    config = run_in(tmp_path, **SETTINGS)
    real = LocalEngine.advance

    def advance(self: LocalEngine, until_env_steps: int, pause: Any) -> Any:
        if self.learner.env_steps < 500:
            return real(self, until_env_steps, pause)
        if told_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        raise WorkersLostError("rollout worker 0 died")

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "advance", advance)
        if told_to_stop:
            assert training.train(config, StopAt(None)).stopped_by is signal.SIGTERM
        else:
            with pytest.raises(
                WorkersLostError, match=r"worker 0 died\. A checkpoint was saved; go on with: mtrl resume"
            ):
                training.train(config, StopAt(None))
    (run,) = tmp_path.iterdir()
    assert load_state(newest_checkpoint(run)[0])["learner"]["env_steps"] >= 500
    display = StopAt(None)
    training.resume(run, [], display)
    assert "the environments were not saved: they begin new episodes" in display.said
    assert load_state(newest_checkpoint(run)[0])["learner"]["env_steps"] >= 900


def test_a_second_interrupt_stops_at_once_though_an_evaluation_is_under_way(tmp_path: Path) -> None:
    script = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from builders import run_in
from envs.vector import TaskVectorEnv
from mtrl import train as training
from mtrl.config import EvalConfig

class Interrupted:
    def say(self, text):
        print(text)
    def update(self, env_steps, gradient_steps, success):
        if env_steps > 100:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

real = TaskVectorEnv.step
def step(self, actions, **keywords):
    time.sleep(5.0 if threading.current_thread().name.startswith("evaluation") else 0.0)
    return real(self, actions, **keywords)
TaskVectorEnv.step = step

evaluated = EvalConfig(every_env_steps=100, goals=2, final_goals=4, parallel=True)
try:
    training.train(run_in(Path(sys.argv[2]), eval=evaluated, total_env_steps=10**6), Interrupted())
except KeyboardInterrupt:
    print("interrupted")
"""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, folder, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr

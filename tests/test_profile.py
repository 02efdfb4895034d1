"""`profile=true`: what it writes, that it changes no number, that it costs nothing where it is off."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_in, tiny_config
from torch.profiler import ProfilerActivity

import envs
from mtrl import profiling
from mtrl import train as training
from mtrl.checkpoint import load_state, newest_checkpoint
from mtrl.config import CheckpointConfig, EvalConfig, RllibConfig, RunConfig
from mtrl.engine.local import LocalEngine
from mtrl.profiling import Profile, named
from mtrl.rollout.build import build_suite

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PARTS = {"request", "collect", "receive", "update", "single_update"}


class Lines:
    """A display that remembers what was said, and may act on updates."""

    def __init__(self, on_update=None):
        self.said, self.on_update = list[str](), on_update

    def say(self, text):
        self.said.append(text)

    def update(self, env_steps, gradient_steps, success):
        if self.on_update:
            self.on_update(env_steps)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def at_once(monkeypatch):
    """Begins to record with the first round that has updates, and does not stop by itself."""
    monkeypatch.setattr(profiling, "WARM_S", 0.0)
    monkeypatch.setattr(profiling, "WINDOW_S", 1000.0)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profiling, "time", clock)
    return clock


@pytest.fixture
def profile_of(tmp_path):
    """Makes profiles of learners, and ends them also where a test fails: the process would die of one at its end."""
    made = []

    def make(learner, say=lambda text: None):
        made.append(Profile(tmp_path / "profile", learner, torch.device("cpu"), dict, say))
        return made[-1]

    yield make
    for profile in made:
        profile.close()


def short_in(folder: Path, **changes: Any) -> RunConfig:
    """Returns a profiled run of 30 updates; reading a trace takes longer than making it."""
    return run_in(folder, **{"profile": True, "total_env_steps": 160, "log_every_env_steps": 40, **changes})


def ranges(folder: Path) -> list[dict[str, Any]]:
    """Returns the ranges of a trace that have names of ours, in their order."""
    with gzip.open(folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return sorted((e for e in events if e.get("cat") == "user_annotation"), key=lambda event: event["ts"])


def names(folder: Path) -> set[str]:
    return {event["name"] for event in ranges(folder)}


def processes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "processes.json").read_text())


def learner_state(run: Path) -> dict[str, Any]:
    return load_state(newest_checkpoint(run)[0])["learner"]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Returns path → leaf of nested dictionaries."""
    if isinstance(value, dict):
        return {name: leaf for key in value for name, leaf in flat(value[key], f"{path}/{key}").items()}
    return {path: value.numpy() if isinstance(value, torch.Tensor) else value}


def rounds(profile: Profile, count: int = 1) -> None:
    """Lets rounds of a little arithmetic pass."""
    for _ in range(count):
        with named("collect"):
            torch.ones(3).add(1)
        assert not profile.watching(lambda: False)()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("collection", ["sync", "async"])
def test_the_trace_names_the_parts_of_the_loop(tmp_path, collection):
    # small requests, so that many come after the window began
    run = training.train(short_in(tmp_path, collection=collection, steps_per_request=1), Lines()).run
    found = ranges(run / "profile")
    assert {event["name"] for event in found} >= PARTS
    whole = [(event["ts"], event["ts"] + event["dur"]) for event in found if event["name"] == "update"]
    single = [(event["ts"], event["ts"] + event["dur"]) for event in found if event["name"] == "single_update"]
    assert len(single) >= 10
    assert all(any(begin <= first and last <= end for begin, end in whole) for first, last in single)


@pytest.mark.usefixtures("at_once")
def test_operators_are_told_with_what_they_belong_to(tmp_path):
    display = Lines()
    run = training.train(short_in(tmp_path), display).run
    text = (run / "profile" / "operators.txt").read_text()
    assert "env_steps 44 to 160, gradient_steps 1 to 30\n" in text  # it began after the first round with updates
    calls = {words[0]: words[1] for line in text.splitlines() if len(words := line.split()) == 5}
    assert (calls["request"], calls["collect"], calls["receive"]) == ("29", "29", "29")
    assert int(calls["single_update"]) >= 58  # every second one finds none due
    assert {"aten::baddbmm", "aten::_fused_adam_"} <= {line.split()[0] for line in text.splitlines() if line.strip()}
    assert any(line.endswith(f"of training: {run / 'profile'}") for line in display.said)


@pytest.mark.usefixtures("at_once")
def test_a_profiled_run_gives_the_same_numbers(tmp_path):
    found = []
    for profiled in (False, True):
        often = EvalConfig(every_env_steps=100, goals=2, final_goals=2)
        config = short_in(tmp_path / str(profiled), profile=profiled, eval=often)
        run = training.train(config, Lines()).run
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        values = [
            {tag: value for tag, value in record["values"].items() if not tag.startswith("perf/")} for record in records
        ]
        tags = [set(record["values"]) for record in records]
        found.append((flat(learner_state(run)), values, tags))
    (plain, plain_values, plain_tags), (profiled, profiled_values, profiled_tags) = found
    assert plain.keys() == profiled.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(value, profiled[name], err_msg=name)
    assert plain_values == profiled_values
    assert plain_tags == profiled_tags


def test_without_the_setting_nothing_of_it_is_touched(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("profiling is off")

    monkeypatch.setattr(profiling, "record_function", refuse)
    monkeypatch.setattr(profiling, "profile", refuse)
    monkeypatch.setattr(training, "Profile", refuse)
    seen = []
    advance = LocalEngine.advance

    def watched(self, until_env_steps, pause):
        seen.append(pause)
        return advance(self, until_env_steps, pause)

    monkeypatch.setattr(LocalEngine, "advance", watched)
    run = training.train(run_in(tmp_path), Lines()).run
    assert not (run / "profile").exists()
    assert isinstance(named("update"), nullcontext)
    assert all(pause.__func__ is training._Stop.pause for pause in seen)  # nobody stands between


@pytest.mark.usefixtures("at_once")
def test_evaluations_and_checkpoints_are_not_recorded(tmp_path, monkeypatch):
    recorded = []

    def spied(real):
        def call(*args, **kwargs):
            recorded.append(torch.autograd._profiler_enabled())
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(LocalEngine, "evaluate", spied(LocalEngine.evaluate))
    monkeypatch.setattr(training, "save_checkpoint", spied(training.save_checkpoint))
    during = []
    settings = {
        "eval": EvalConfig(every_env_steps=60, goals=2, final_goals=2),
        "checkpoint": CheckpointConfig(every_env_steps=50),
    }
    display = Lines(lambda env_steps: during.append(torch.autograd._profiler_enabled()))
    training.train(short_in(tmp_path, **settings), display)
    assert any(during)
    assert recorded == [False] * 7  # 3 evaluations and 4 checkpoints, those of the end included


@pytest.mark.usefixtures("at_once")
def test_a_run_that_is_stopped_writes_what_there_is(tmp_path):
    stops = iter([120])

    def stop(env_steps):
        if env_steps >= 120 and next(stops, None):  # a second one would interrupt at once
            os.kill(os.getpid(), signal.SIGINT)

    run, stopped_by = training.train(short_in(tmp_path), Lines(stop))
    assert stopped_by is signal.SIGINT
    assert names(run / "profile") >= PARTS
    assert "env_steps 44 to 120" in (run / "profile" / "operators.txt").read_text()
    assert not torch.autograd._profiler_enabled()


@pytest.mark.usefixtures("at_once")
def test_a_run_that_breaks_off_writes_what_there_is(tmp_path):
    def break_off(env_steps):
        if env_steps >= 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(short_in(tmp_path), Lines(break_off))
    (run,) = tmp_path.iterdir()
    assert names(run / "profile") >= PARTS
    assert not torch.autograd._profiler_enabled()


def test_a_run_that_ends_before_it_is_warm_says_so(tmp_path):
    display = Lines()
    run = training.train(short_in(tmp_path), display).run
    assert [path.name for path in (run / "profile").iterdir()] == ["processes.json"]
    assert "no profile: the run ended less than 2 s after its first update" in display.said


def test_the_window_begins_when_training_is_warm_and_ends_with_a_round(tmp_path, clock, profile_of):
    learner = SimpleNamespace(env_steps=7, gradient_steps=5)  # as after a resume
    profile = profile_of(learner)
    rounds(profile)
    clock.now += 100
    rounds(profile)
    assert not torch.autograd._profiler_enabled()
    learner.gradient_steps += 1
    rounds(profile)
    clock.now += profiling.WARM_S - 0.1
    rounds(profile)
    assert not torch.autograd._profiler_enabled()
    clock.now += 0.1
    rounds(profile)
    assert torch.autograd._profiler_enabled()
    clock.now += profiling.WINDOW_S - 0.1
    rounds(profile)
    assert torch.autograd._profiler_enabled()
    clock.now += 0.1
    rounds(profile)
    assert not torch.autograd._profiler_enabled()
    assert [event["name"] for event in ranges(tmp_path / "profile")] == ["collect"] * 2
    rounds(profile, 3)
    assert not torch.autograd._profiler_enabled()  # once is enough


def test_of_windows_cut_short_the_longest_is_kept(tmp_path, clock, profile_of):
    learner, said = SimpleNamespace(env_steps=0, gradient_steps=0), []
    profile = profile_of(learner, said.append)
    learner.gradient_steps = 1
    rounds(profile)
    clock.now += profiling.WARM_S
    for seconds, num_rounds in ((0.5, 2), (0.75, 3), (0.25, 4)):
        rounds(profile)  # begins a window at its end
        clock.now += seconds
        rounds(profile, num_rounds)
        profile.end_window()
    assert len(ranges(tmp_path / "profile")) == 3
    assert (tmp_path / "profile" / "operators.txt").read_text().startswith("0.75 s of training")
    assert len(said) == 2


@pytest.mark.parametrize(("device", "with_gpu"), [("cpu", False), ("cuda", True)])
def test_the_gpu_is_recorded_where_the_learner_is_on_it(tmp_path, monkeypatch, device, with_gpu):
    asked = []

    class Recorded:
        def __init__(self, activities):
            asked.append(set(activities))

        def start(self):
            pass

    monkeypatch.setattr(profiling, "profile", Recorded)
    monkeypatch.setattr(profiling, "WARM_S", 0.0)
    learner = SimpleNamespace(env_steps=0, gradient_steps=0)
    profile = Profile(tmp_path / "profile", learner, torch.device(device), dict, print)
    learner.gradient_steps = 1
    profile.watching(lambda: False)()
    assert asked == [{ProfilerActivity.CPU, ProfilerActivity.CUDA} if with_gpu else {ProfilerActivity.CPU}]


@pytest.mark.usefixtures("at_once")
def test_profiling_can_be_switched_on_at_resume(tmp_path):
    run = training.train(short_in(tmp_path, profile=False), Lines()).run
    training.resume(run, ["total_env_steps=280", "profile=true"], Lines())
    assert names(run / "profile") >= PARTS
    assert "env_steps 164 to 280" in (run / "profile" / "operators.txt").read_text()


@pytest.mark.usefixtures("at_once")
def test_every_thread_has_a_telling_name_and_its_native_id(tmp_path, monkeypatch):
    alive = {}
    collect = LocalEngine.finished_evaluation

    def spied(self, *, wait):
        alive.update({thread.name: thread.native_id for thread in threading.enumerate()})
        return collect(self, wait=wait)

    monkeypatch.setattr(LocalEngine, "finished_evaluation", spied)
    evaluation = EvalConfig(every_env_steps=150, goals=2, final_goals=2, parallel=True)
    # so long that evaluations begin before collecting is over
    config = short_in(tmp_path, eval=evaluation, collection="async", total_env_steps=900)
    run = training.train(config, Lines()).run
    found = processes(run / "profile")
    assert found.keys() == {"driver"}
    assert found["driver"]["pid"] == os.getpid()
    named_there = {thread["name"]: thread["native_id"] for thread in found["driver"]["threads"]}
    assert {"MainThread", "collection"} <= named_there.keys()
    assert "evaluation_0" in alive
    assert named_there["collection"] == alive["collection"]
    assert not [name for name in (*alive, *named_there) if name.startswith("Thread-")]


def test_threads_that_simulate_have_telling_names():
    made = envs.make("MT1", tasks=["reach-v3"], copies=3, backend="compiled", num_threads=3, num_goals=1)
    made.reset(seed=0)
    made.step(made.action_space.sample())
    alive = {thread.name for thread in threading.enumerate()}
    made.close()
    assert {"simulation-1", "simulation-2"} <= alive


@pytest.mark.ray
@pytest.mark.parametrize("collection", ["sync", "async"])
def test_workers_on_ray_are_named_by_their_pids(collection):
    pytest.importorskip("ray", reason="ray is not installed")
    from mtrl.engine.rllib.engine import RllibEngine

    rllib = RllibConfig(num_env_runners=2, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000)
    config = tiny_config(engine="rllib", collection=collection, rllib=rllib)
    engine = RllibEngine(config, build_suite(config))
    try:
        engine.advance(100, lambda: False)
        pids = engine._algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (runner.worker, os.getpid()), local_env_runner=False
        )
        found = engine.processes()["rollout_workers"]
    finally:
        engine.close()
    assert [(worker["worker"], worker["pid"]) for worker in found] == sorted(pids)
    assert os.getpid() not in {worker["pid"] for worker in found}


@pytest.mark.ray
def test_a_worker_that_was_started_again_is_named_by_its_new_pid():
    pytest.importorskip("ray", reason="ray is not installed")
    from mtrl.engine.rllib.calls import Answer, Calls

    answers = [Answer(1, pid=11, host="a"), Answer(0, pid=10, host="b"), Answer(1, pid=12, host="a")]
    group = SimpleNamespace(
        num_remote_env_runners=lambda: 2,
        fetch_ready_async_reqs=lambda tags, timeout_seconds: [(answer.worker + 1, answer) for answer in answers],
    )
    calls = Calls(group)
    calls.ready()
    assert calls.processes() == [{"worker": 0, "pid": 10, "host": "b"}, {"worker": 1, "pid": 12, "host": "a"}]


@pytest.mark.ray
@pytest.mark.usefixtures("at_once")
def test_the_driver_of_workers_on_ray_is_recorded(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    rllib = RllibConfig(num_env_runners=1, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000)
    run = training.train(short_in(tmp_path, engine="rllib", rllib=rllib), Lines()).run
    assert names(run / "profile") >= PARTS
    assert len(processes(run / "profile")["rollout_workers"]) == 1

"""Threads that keep to cores of their own: which ones, until when, and that no number depends on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_in, tiny_config
from test_train import Lines, learner_state

from envs.vector import TaskVectorEnv
from mtrl import train as training
from mtrl.config import ConfigError, EnvConfig
from mtrl.engine.asynchronous import BackgroundCollector
from mtrl.engine.local import LocalEngine
from mtrl.engine.threads import set_up_torch, share_cores
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.rollout.build import build_collector, build_suite

PINNED = {"collection": "async", "pin_threads": True}
needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores and Linux"
)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the calling thread seem to have some cores."""
    return lambda *numbers: monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(numbers), raising=False)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def recorded(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, ask: Any) -> list[Any]:
    """Returns a list to which every call of a method adds what `ask` answers in its thread."""
    answers: list[Any] = []
    called = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        answers.append(ask())
        return called(*arguments, **keywords)

    monkeypatch.setattr(owner, name, call)
    return answers


def affinity() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


@needs_two_cores
def test_each_side_keeps_to_its_cores_until_the_engine_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    config, before = tiny_config(**PINNED), affinity()
    collecting = recorded(monkeypatch, TaskVectorEnv, "step", affinity)
    learning = recorded(monkeypatch, MultiTaskSac, "update", affinity)
    engine = LocalEngine(config, build_suite(config))
    engine.advance(400, lambda: False)
    engine.close()
    first = min(before)
    assert set(collecting) == {frozenset({first})}
    assert set(learning) == {before - {first}}
    assert affinity() == before


@needs_two_cores
def test_new_environments_at_a_resume_leave_the_learner_where_it_was() -> None:
    config, before = tiny_config(**PINNED), affinity()
    engine = LocalEngine(config, build_suite(config))
    assert not engine.restore_collection({"0": {}, "1": {}})
    assert affinity() == before - {min(before)}
    engine.close()
    assert affinity() == before


@needs_two_cores
def test_an_engine_that_cannot_be_built_keeps_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = affinity()
    monkeypatch.setattr(MultiTaskSac, "on_policy", True)
    with pytest.raises(ConfigError, match="old weights"):
        LocalEngine(tiny_config(**PINNED), build_suite(tiny_config()))
    assert affinity() == before


@needs_two_cores
def test_threads_of_the_simulator_keep_to_the_cores_of_collection() -> None:
    config = tiny_config(
        env=EnvConfig(benchmark="custom", tasks=("reach-v3", "push-v3"), num_goals=4, backend="compiled", num_threads=2)
    )
    suite, cores = build_suite(config), frozenset({min(affinity())})
    collector = build_collector(config, suite)
    background = BackgroundCollector(collector, 2, 1, 3, cores)
    background.submit(build_learner(config, suite, choose_device("cpu")).request(), 6)
    assert sum(block.env_steps() for block in background.ready(60.0)) == 6
    (helper,) = (thread for thread in threading.enumerate() if thread.name == "simulation-1")
    assert helper.native_id is not None
    assert os.sched_getaffinity(helper.native_id) == cores
    background.close()
    collector.close()


def test_policies_act_with_one_torch_thread_beside_a_learner_with_more(
    monkeypatch: pytest.MonkeyPatch, torch_threads: None
) -> None:
    torch.set_num_threads(2)
    config = tiny_config(collection="async")
    acting = recorded(monkeypatch, TaskVectorEnv, "step", torch.get_num_threads)
    learning = recorded(monkeypatch, MultiTaskSac, "update", torch.get_num_threads)
    engine = LocalEngine(config, build_suite(config))
    engine.evaluate(1)  # sets the number of this thread again, at which the other must not start
    acting.clear()
    engine.advance(100, lambda: False)
    engine.close()
    assert (set(acting), set(learning)) == ({1}, {2})


@needs_two_cores
@pytest.mark.usefixtures("one_torch_thread")
def test_no_number_depends_on_it(tmp_path: Path) -> None:
    """Of a run that is not timing dependent: one request brings all transitions, then all updates are made."""
    states = {}
    for pinned in (False, True):
        run = run_in(tmp_path / str(pinned), **{**PINNED, "pin_threads": pinned}, steps_per_request=100)
        states[pinned] = learner_state(training.train(run, Lines()).run)
    assert states[True]["gradient_steps"] == states[False]["gradient_steps"] > 0
    for name in ("actor", "critics"):
        for key, value in states[False][name].items():
            assert torch.equal(states[True][name][key], value), key


def test_collection_has_the_first_cores_and_the_learner_the_rest(cores: Any, torch_threads: None) -> None:
    cores(3, 4, 6, 7, 9)
    assert share_cores(tiny_config(**PINNED)) == ({3}, {4, 6, 7, 9})
    config = tiny_config(**PINNED, env=EnvConfig(num_threads=3))
    assert share_cores(config) == ({3, 4, 6}, {7, 9})
    set_up_torch(config)
    assert torch.get_num_threads() == 2
    set_up_torch(tiny_config(**PINNED, torch_threads=1))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("usable", "num_threads", "message"),
    [
        ({5}, None, "pin_threads: there is one core to use, and collection and learner need one each; set it to false"),
        (
            {0, 1},
            2,
            "env.num_threads: 2 threads leave the learner none of 2 cores; with pin_threads take at most 1",
        ),
    ],
)
def test_too_few_cores_are_refused_before_there_is_a_run(
    cores: Any, tmp_path: Path, usable: set[int], num_threads: int | None, message: str
) -> None:
    cores(*usable)
    env = EnvConfig(benchmark="toy", num_goals=4, num_threads=num_threads)
    with pytest.raises(ConfigError) as refused:
        training.train(run_in(tmp_path / "runs", **PINNED, env=env), Lines())
    assert str(refused.value) == message
    assert not (tmp_path / "runs").exists()


def test_a_system_that_cannot_do_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(ConfigError, match=r"^pin_threads: this system cannot keep a thread to some cores"):
        share_cores(tiny_config(**PINNED))


@pytest.mark.parametrize("changes", [{"collection": "sync"}, {"engine": "rllib"}])
def test_it_is_for_asynchronous_collection_in_one_process(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^pin_threads: is for collection=async with engine=local, not for"):
        tiny_config(**{**PINNED, **changes})


def test_a_resumed_run_may_begin_with_it(tmp_path: Path) -> None:
    run = training.train(run_in(tmp_path, total_env_steps=40), Lines()).run
    resumed = training.resumed_config(run, ["collection=async", "pin_threads=true"])
    assert resumed.pin_threads

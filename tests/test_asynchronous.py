"""Asynchronous collection: the ratio of learning to collecting is held, nothing is lost, nothing counts twice."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import run_in, tiny_config
from test_train import Lines, learner_state

from mtrl import train as training
from mtrl.checkpoint import load_replay, newest_checkpoint
from mtrl.config import CheckpointConfig, ConfigError, EvalConfig, RllibConfig, RunConfig
from mtrl.data import Block, Metrics
from mtrl.engine.asynchronous import run_asynchronously
from mtrl.engine.build import build_engine
from mtrl.engine.local import LocalEngine
from mtrl.engine.progress import WorkersLostError
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.replay.ring import Replay
from mtrl.rollout.build import build_suite

ASYNC = {"collection": "async", "total_env_steps": 2000}


def never() -> bool:
    return False


class SlowLearner:
    """Asks for one update for every 10 steps; each takes a while."""

    on_policy = False

    def __init__(self) -> None:
        self.env_steps = self.gradient_steps = self.version = 0
        self.seen: list[tuple[int, int]] = []

    def request(self) -> CollectRequest:
        return CollectRequest({}, self.gradient_steps, Unit.STEPS, 5, Mode.EXPLORE)

    def receive(self, blocks: list[Any]) -> None:
        self.env_steps += sum(block.env_steps() for block in blocks)

    def behind(self) -> int:
        return self.env_steps // 10 - self.gradient_steps

    def update(self) -> Metrics | None:
        if not self.behind():
            return None
        time.sleep(0.002)
        self.gradient_steps += 1
        self.seen.append((self.env_steps, self.gradient_steps))
        return Metrics({}, num_samples=1)


class InstantSource:
    """Delivers each request at the next look, 20 steps at a time."""

    def __init__(self, room: int) -> None:
        self.requests: list[CollectRequest] = []
        self.room, self.largest_delivery = room, 1

    @property
    def env_steps_under_way(self) -> int:
        return 20 * len(self.requests)

    def has_room(self) -> bool:
        return len(self.requests) < self.room

    def submit(self, request: CollectRequest, most_env_steps: int) -> bool:
        assert most_env_steps > 0
        self.requests.append(request)
        return True

    def ready(self, timeout_s: float) -> list[Block]:
        zeros = np.zeros((5, 4))
        flags = zeros.astype(bool)
        blocks = [
            Block(*(zeros,) * 4, *(flags,) * 3, ~flags, *(zeros.astype(int),) * 5, weights_version=request.version)
            for request in self.requests
        ]
        self.requests.clear()
        return blocks


@pytest.mark.parametrize("room", [1, 2, 8])
def test_neither_side_runs_away_from_the_other(room: int) -> None:
    learner = SlowLearner()
    progress = run_asynchronously(learner, InstantSource(room), 4000, 4000, never)  # type: ignore[arg-type] # knows only what the loop needs
    assert (learner.env_steps, learner.gradient_steps) == (4000, 400)
    # a full house of deliveries, and what was requested before it was noticed
    most_behind = max(env_steps / 10 - updates for env_steps, updates in learner.seen)
    assert most_behind <= 2 * 2 * room
    assert progress.largest_lag <= 2 * 2 * room
    assert progress.env_steps == 4000


def test_a_stretch_ends_at_its_boundary_though_updates_are_always_due() -> None:
    learner = SlowLearner()
    run_asynchronously(learner, InstantSource(8), 400, 1_000_000, never)  # type: ignore[arg-type] # knows only what the loop needs
    assert 400 <= learner.env_steps < 1000


class Nobody:
    """Calls to two workers; what they answer, and how often they died, is set by the test."""

    def __init__(self) -> None:
        self.deaths = [0, 0]
        self.answers: list[tuple[int, Any]] = []

    def ready(self) -> list[tuple[int, Any]]:
        answers, self.answers = self.answers, []
        return answers

    def dead(self) -> set[int]:
        return set()

    def refuse_lost(self) -> None:
        pass


def block_of(request: CollectRequest) -> Block:
    zeros, flags = np.zeros((request.amount, 1)), np.zeros((request.amount, 1), bool)
    ints = zeros.astype(int)
    return Block(*(zeros,) * 4, *(flags,) * 3, ~flags, *(ints,) * 5, weights_version=0, number=request.number)  # type: ignore[arg-type] # as good


def two_workers() -> tuple[Any, Nobody, list[CollectRequest]]:
    """A source over two workers of one environment each, and what it asked them for."""
    remote = pytest.importorskip("mtrl.engine.rllib.remote_workers", reason="ray is not installed")
    calls, asked = Nobody(), list[CollectRequest]()
    source = remote.RemoteWorkers(calls, lambda request, worker: asked.append(request) or True, [1, 1], 2, 8)
    source.aim_at(10**6)
    while source.has_room():
        source.submit(CollectRequest({}, 0, Unit.STEPS, 5, Mode.EXPLORE), 10**6)
    return source, calls, asked  # worker 0, worker 1, worker 0, worker 1


def test_blocks_of_a_worker_are_delivered_in_the_order_of_its_requests() -> None:
    source, calls, asked = two_workers()
    first, _, second, _ = (block_of(request) for request in asked)
    calls.answers = [(0, second)]
    assert source.ready(0.0) == []
    assert source.env_steps_under_way == 32
    calls.answers = [(0, first)]
    assert [block.number for block in source.ready(0.0)] == [first.number, second.number]
    assert source.env_steps_under_way == 16


def test_a_request_made_after_a_death_that_nobody_saw_is_not_forgotten_with_the_others() -> None:
    source, calls, asked = two_workers()
    calls.deaths[1] = 1  # died and came back while something else went on
    assert source.has_room()
    source.submit(CollectRequest({}, 0, Unit.STEPS, 5, Mode.EXPLORE), 10**6)
    calls.answers = [(1, block_of(asked[1])), (1, block_of(asked[-1]))]  # one of the dead, one of the living
    assert [block.number for block in source.ready(0.0)] == [asked[-1].number]


def test_a_worker_that_dies_over_every_request_ends_the_run() -> None:
    source, calls, _ = two_workers()
    calls.deaths[1] = 2
    source.has_room()
    calls.deaths[1] = 3
    with pytest.raises(WorkersLostError, match="rollout worker 1 died 3 times over one request after another"):
        source.has_room()


class DeadGroup:
    """A group whose only worker is dead and answers the given look only."""

    def __init__(self, answers_at: int) -> None:
        self.looks, self.answers_at = 0, answers_at

    def num_remote_env_runners(self) -> int:
        return 1

    def healthy_env_runner_ids(self) -> list[int]:
        return [1] if self.looks >= self.answers_at else []

    def probe_unhealthy_env_runners(self, timeout_seconds: float) -> None:
        self.looks += 1


def test_nobody_is_given_up_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago it died: Ray may have started it again while nobody looked."""
    module = pytest.importorskip("mtrl.engine.rllib.calls", reason="ray is not installed")
    calls = module.Calls(DeadGroup(answers_at=1))
    calls._take_note()
    monkeypatch.setattr(module.time, "monotonic", lambda: time.perf_counter() + 10**6)
    calls._wait_for([0], "collect", 0.0)
    assert calls.num_restarts == 1
    lost = module.Calls(DeadGroup(answers_at=10**6))
    for _ in range(module.FEWEST_PROBES - 1):
        lost._take_note()
        lost._died_at[0] = -1e9
        lost._probe(0.0)
        lost.refuse_lost()
    lost._probe(0.0)
    with pytest.raises(WorkersLostError, match="rollout worker 0 died and did not come back"):
        lost.refuse_lost()


def test_requests_are_worth_their_while_and_end_with_the_run() -> None:
    remote = pytest.importorskip("mtrl.engine.rllib.remote_workers", reason="ray is not installed")
    asked: list[tuple[int, int]] = []

    def submit(request: CollectRequest, worker: int) -> bool:
        asked.append((worker, request.amount))
        return True

    source = remote.RemoteWorkers(Nobody(), submit, [2, 1], 9, 8)
    source.aim_at(3 * 20)
    request = CollectRequest({}, 0, Unit.STEPS, 5, Mode.EXPLORE)
    while source.has_room():
        source.submit(request, 1000)
    assert asked == [(0, 8), (1, 8), (0, 8), (1, 8), (0, 4), (1, 4)]
    assert source.env_steps_under_way == 60
    source.aim_at(1000)
    source.submit(request, 3)
    assert asked[-1] == (0, 2)  # the smallest number of steps of two environments that gives three
    source.submit(dataclasses.replace(request, amount=30), 1000)
    assert asked[-1] == (1, 30)


def test_a_local_thread_collects_as_many_steps_at_a_time() -> None:
    lengths = []
    for most in (1000, 3):
        config = tiny_config(collection="async", steps_per_request=7)
        engine = LocalEngine(config, build_suite(config))
        assert engine._background is not None
        engine._background.submit(engine.learner.request(), most)
        lengths += [len(block.reward) for block in engine._background.ready(10.0)]
        engine.close()
    assert lengths == [7, 1]


def test_a_local_run_makes_the_updates_of_a_synchronous_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)  # between any two looks
    counts = {}
    for collection in ("sync", "async"):
        config = run_in(tmp_path / collection, **{**ASYNC, "collection": collection})
        state = learner_state(training.train(config, Lines()).run)
        counts[collection] = (state["env_steps"], state["gradient_steps"])
    assert counts["async"] == counts["sync"]


def saved_transitions(run: Any, config: RunConfig) -> np.ndarray:
    held = Replay(4, config.replay.capacity_per_task, 6, 2, training.torch.device("cpu"))
    load_replay(run, newest_checkpoint(run)[0], held)
    return held.added


@pytest.mark.parametrize("while_evaluating", [False, True])
def test_a_checkpoint_waits_for_what_is_under_way_and_a_resume_goes_on(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, *, while_evaluating: bool
) -> None:
    def interrupt(env_steps: int) -> None:
        if env_steps >= 700 and not while_evaluating:
            os.kill(os.getpid(), signal.SIGTERM)

    evaluate, collection_state = LocalEngine.evaluate, LocalEngine.collection_state

    def interrupted_evaluation(self: LocalEngine, num_goals: int) -> Any:
        if self.learner.env_steps >= 700 and while_evaluating:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, num_goals)

    def settled_state(self: LocalEngine) -> Any:
        assert self._background is None or self._background.env_steps_under_way == 0
        return collection_state(self)

    monkeypatch.setattr(LocalEngine, "evaluate", interrupted_evaluation)
    monkeypatch.setattr(LocalEngine, "collection_state", settled_state)
    evaluated = EvalConfig(every_env_steps=300, goals=2, final_goals=4)
    config = run_in(tmp_path, **ASYNC, eval=evaluated, checkpoint=CheckpointConfig(every_env_steps=300, keep=3))
    run, reason = training.train(config, Lines(interrupt))
    monkeypatch.undo()
    assert reason is signal.SIGTERM
    stopped_at = learner_state(run)["env_steps"]
    assert stopped_at < 2000
    assert saved_transitions(run, config).sum() == stopped_at
    training.resume(run, [], Lines())
    assert learner_state(run)["env_steps"] == 2000
    assert saved_transitions(run, config).tolist() == [500] * 4


def test_what_collection_raises_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**ASYNC)
    engine = LocalEngine(config, build_suite(config))

    def fail(self: Any, *arguments: Any, **keywords: Any) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr("envs.vector.TaskVectorEnv.step", fail)
    with pytest.raises(ValueError, match="on purpose"):
        engine.advance(100, never)
    engine.close()


def test_old_weights_are_refused_for_learners_that_must_not_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.learners.mtsac.MultiTaskSac.on_policy", True)
    config = tiny_config(**ASYNC)
    with pytest.raises(ConfigError, match="collection: async collects with old weights"):
        build_engine(config, build_suite(config))


def on_ray(**changes: Any) -> RunConfig:
    rllib = RllibConfig(num_env_runners=2, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000)
    return tiny_config(**{**ASYNC, "engine": "rllib", "rllib": rllib, **changes})


@pytest.fixture
def build_on_ray() -> Any:
    pytest.importorskip("ray", reason="ray is not installed")
    built = []

    def build(config: RunConfig) -> Any:
        built.append(build_engine(config, build_suite(config)))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


@pytest.mark.ray
def test_workers_on_ray_collect_while_the_learner_learns(build_on_ray: Callable[[RunConfig], Any]) -> None:
    engine = build_on_ray(on_ray())
    progress = engine.advance(2000, never)
    progress.merge(engine.settle())
    assert engine.learner.env_steps == progress.env_steps == 2000
    assert engine.learner.gradient_steps == (2000 - 40) * 8 // 32
    assert engine.learner.replay.added.tolist() == [500] * 4
    assert progress.largest_lag > 0


@pytest.mark.ray
def test_a_death_during_an_evaluation_stops_nobody(build_on_ray: Callable[[RunConfig], Any]) -> None:
    engine = build_on_ray(on_ray(sac=dataclasses.replace(tiny_config().sac, collect_steps=5)))
    engine.advance(400, never)
    (pid,) = engine._algorithm.env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False, remote_worker_ids=[2]
    )
    os.kill(pid, signal.SIGKILL)  # with requests under way
    assert len(engine.evaluate(2)) == 8
    engine.advance(2000, never)
    engine.settle()
    assert engine.learner.env_steps == 2000


def test_without_workers_there_is_nobody_to_collect_meanwhile() -> None:
    with pytest.raises(ConfigError, match=r"collection: async needs workers .* set rllib.num_env_runners"):
        on_ray(rllib=RllibConfig(num_env_runners=0))


@pytest.mark.parametrize(
    "num_kills", [pytest.param(3, marks=pytest.mark.ray), pytest.param(50, marks=pytest.mark.nightly)]
)
def test_what_dead_workers_had_under_way_is_collected_again(
    build_on_ray: Callable[[RunConfig], Any], num_kills: int
) -> None:
    engine = build_on_ray(
        on_ray(
            total_env_steps=10**9, sac=dataclasses.replace(tiny_config().sac, collect_steps=5, samples_per_insert=1.0)
        )
    )
    group = engine._algorithm.env_runner_group
    received: list[tuple[int, int, bytes]] = []
    newest: dict[int, float] = {}
    receive = engine.learner.receive

    def remember(blocks: list[Block]) -> None:
        for block in blocks:
            received.append((block.worker, block.env_steps(), block.obs.tobytes()))
            newest[block.worker] = time.monotonic()
        receive(blocks)

    engine.learner.receive = remember
    engine.advance(400, never)
    outages: list[float] = []
    for kill in range(num_kills):
        victim = kill % 2
        (pid,) = group.foreach_env_runner(
            lambda runner: os.getpid(), local_env_runner=False, remote_worker_ids=[victim + 1]
        )
        os.kill(pid, signal.SIGKILL)
        killed_at, restarts = time.monotonic(), engine._algorithm.calls.num_restarts
        while engine._algorithm.calls.num_restarts == restarts:
            engine.advance(engine.learner.env_steps + 20, never)
        restarted_at = time.monotonic()
        while newest[victim] < restarted_at:
            engine.advance(engine.learner.env_steps + 20, never)
        outages.append(newest[victim] - killed_at)
    engine.settle()
    assert engine._algorithm.calls.num_restarts == num_kills
    assert engine.learner.replay.added.sum() == engine.learner.env_steps == sum(steps for _, steps, _ in received)
    assert len(set(received)) == len(received)  # every block once
    print(
        f"{num_kills} workers killed; back after {np.median(outages):.1f} s in the median, {max(outages):.1f} s at most"
    )

"""The rllib engine: equal to the local one, right counts, failures that can be understood, nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from builders import tiny_config

from envs.episodes import Assignment
from mtrl.config import ConfigError, EnvConfig, NetworkConfig, RllibConfig, SurgeryConfig
from mtrl.engine.local import LocalEngine
from mtrl.engine.progress import WorkersLostError
from mtrl.rollout.build import build_suite

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_torch_thread")]

NUM_TASKS = 4


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    cluster = pytest.importorskip("mtrl.engine.rllib.cluster", reason="ray is not installed")
    with cluster.ray_cluster(RllibConfig(object_store_bytes=80_000_000)):
        yield


@pytest.fixture
def build_rllib():
    from mtrl.engine.rllib.engine import RllibEngine

    built = []

    def build(num_env_runners, **changes):
        # half a core each, so that the tests also run on one core
        rllib = RllibConfig(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5)
        config = tiny_config(engine="rllib", rllib=rllib, **changes)
        built.append(RllibEngine(config, build_suite(config)))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


def never():
    return False


MT10 = {
    "env": EnvConfig(benchmark="MT10"),
    "network": NetworkConfig(actor_widths=(64, 64), critic_widths=(64, 64)),
    "surgery": SurgeryConfig(method="pcgrad"),
}


@pytest.mark.parametrize("num_env_runners", [0, 1])
@pytest.mark.parametrize(
    ("changes", "env_steps"), [({}, 920), pytest.param(MT10, 2200, id="MT10", marks=pytest.mark.slow)]
)
def test_weights_equal_those_of_the_local_engine(build_rllib, num_env_runners, changes, env_steps):
    config = tiny_config(**changes)
    local, rllib = LocalEngine(config, build_suite(config)), build_rllib(num_env_runners, **changes)
    for engine in (local, rllib):
        engine.advance(env_steps // 2, never)
        engine.evaluate(2)  # must not disturb training
        engine.advance(env_steps, never)
    assert local.learner.gradient_steps == rllib.learner.gradient_steps >= 200
    expected, found = local.learner.state_dict(), rllib.learner.state_dict()
    for network in ("actor", "critics", "target_critics"):
        for name, weights in expected[network].items():
            assert torch.equal(weights, found[network][name]), f"{network}.{name}"
    assert torch.equal(expected["log_alpha"], found["log_alpha"])
    local.close()


def test_two_workers_run_every_environment_once(build_rllib):
    engine = build_rllib(2, env=dataclasses.replace(tiny_config().env, copies=3))
    progress = engine.advance(240, never)
    assert engine.learner.env_steps == 240
    steps_of_tasks = engine.learner.replay.sizes.tolist()
    assert steps_of_tasks == [60] * NUM_TASKS
    # 12 environments made 20 steps each, which is the length of an episode here
    assert np.bincount(np.concatenate([part.task_id for part in progress.episodes])).tolist() == [3] * NUM_TASKS
    assert set(progress.seconds) == {"request", "collect", "receive", "update"}
    # a view would keep its block in the object store until the log is written
    assert all(part.returns.flags.owndata for part in progress.episodes)


def test_two_workers_evaluate_every_goal_once_and_as_the_local_engine_does(build_rllib):
    config = tiny_config()
    local, rllib = LocalEngine(config, build_suite(config)), build_rllib(2)
    returns = []
    for engine in (local, rllib):
        episodes = engine.evaluate(3)
        order = np.lexsort((episodes.goal_id, episodes.task_id))
        pairs = zip(episodes.task_id[order].tolist(), episodes.goal_id[order].tolist(), strict=True)
        assert list(pairs) == [(task, goal) for task in range(NUM_TASKS) for goal in range(3)]
        returns.append(episodes.returns[order])
    # one row more or less in a forward pass may change the last bits of an action
    np.testing.assert_allclose(returns[1], returns[0], rtol=1e-4)
    local.close()


def test_pause_stops_after_a_round(build_rllib):
    engine = build_rllib(0)
    engine.advance(10_000, lambda: True)
    assert engine.learner.env_steps == NUM_TASKS


def test_assignments_and_slots_reach_the_environments_they_are_for(build_rllib, monkeypatch):
    engine = build_rllib(2)
    plain = engine.learner.request()
    tasks = (3, 2, 1, 0)
    request = dataclasses.replace(
        plain,
        assignments=tuple(Assignment(task, (task,)) for task in tasks),
        slots=tuple(10 + task for task in tasks),
    )
    blocks = []
    monkeypatch.setattr(engine.learner, "request", lambda: request)
    monkeypatch.setattr(engine.learner, "receive", blocks.extend)
    engine.advance(1, lambda: True)
    # environments 0 and 2 belong to worker 0, environments 1 and 3 to worker 1
    assert [block.task_id[0].tolist() for block in blocks] == [[3, 1], [2, 0]]
    assert [block.goal_id[0].tolist() for block in blocks] == [[3, 1], [2, 0]]
    assert [block.slot[0].tolist() for block in blocks] == [[13, 11], [12, 10]]


@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_failure_in_a_worker_comes_back_with_its_traceback_and_does_not_cost_the_worker(
    build_rllib, monkeypatch, num_env_runners
):
    engine = build_rllib(num_env_runners)
    request = engine.learner.request()
    broken = dataclasses.replace(request, assignments=(Assignment(99, (0,)),) * NUM_TASKS)
    with monkeypatch.context() as patch:
        patch.setattr(engine.learner, "request", lambda: broken)
        with pytest.raises(RuntimeError) as failure:
            engine.advance(1, never)
    text = str(failure.value)
    assert re.match(r"rollout worker 0 \(toy-reach-left goal [0-3], .*; seed 1\) failed:\n", text)
    assert "seed 1" in text
    assert "Traceback" in text
    assert "in collect" in text
    engine.advance(NUM_TASKS, never)
    assert engine.learner.env_steps == NUM_TASKS


def exit_once(worker_number, marker, how):
    """Returns what makes a worker die in the middle of its next collection, the first time only."""

    def plant(worker):
        if worker.worker == worker_number:
            original = type(worker._collector).collect

            def collect(self, request):
                marker.touch()
                how()
                return original(self, request)

            type(worker._collector).collect = collect
        return Answer(worker.worker)

    from mtrl.engine.rllib.calls import Answer

    return plant


@pytest.mark.parametrize("death", ["killed", "hung"])
def test_a_worker_that_dies_comes_back_with_current_weights(build_rllib, tmp_path, death, caplog):
    engine = build_rllib(2, sac=dataclasses.replace(tiny_config().sac, reward_scaling="per_task_return"))
    engine.advance(200, never)
    marker = tmp_path / "died"
    how = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if death == "killed" else (lambda: time.sleep(60))
    algorithm = engine._algorithm
    if death == "hung":

        def soon(worker):
            worker.timeout_s = 1.0

        algorithm.env_runner_group.foreach_env_runner(soon, local_env_runner=False)
    algorithm.calls.all(exit_once(1, marker, how), [{}, {}])
    received = []
    receive = engine.learner.receive
    engine.learner.receive = lambda blocks: (received.append(blocks), receive(blocks))
    engine.advance(400, never)
    assert marker.exists()
    assert engine.learner.env_steps == 400  # every round has both workers' blocks, once
    assert algorithm.progress.num_restarts == 1
    assert all(len(blocks) == 2 for blocks in received)
    versions = [(blocks[0].weights_version, blocks[1].weights_version) for blocks in received]
    assert all(first == second for first, second in versions)
    assert "rollout worker 1 died" in caplog.text
    assert "rollout worker 1 is back" in caplog.text
    assert engine.learner.replay.sizes.tolist() == [100] * NUM_TASKS


def test_a_run_that_is_to_stop_does_not_wait_for_dead_workers(build_rllib, tmp_path, monkeypatch):
    engine = build_rllib(2)
    engine.advance(200, never)
    engine._algorithm.calls.all(exit_once(1, tmp_path / "died", lambda: os.kill(os.getpid(), signal.SIGKILL)), [{}, {}])
    monkeypatch.setattr(engine._algorithm.calls, "_probe", lambda timeout_s: None)  # it is not back at the only look
    engine.hurry()  # as the handler of SIGTERM calls it; the signal may have reached the workers too
    before = engine.learner.state_dict()
    with pytest.raises(WorkersLostError, match="worker 1 died during collect and is not waited for"):
        engine.advance(400, never)
    assert engine.learner.env_steps == before["env_steps"] == 200  # a whole number of rounds, to be saved


def test_a_worker_that_came_back_does_not_repeat_its_first_numbers(build_rllib):
    def first_actions(restarted):
        engine = build_rllib(2)
        group = engine._algorithm.env_runner_group

        def die(worker):
            if worker.worker == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        if restarted:
            group.foreach_env_runner(die, local_env_runner=False)
        blocks = []
        engine.learner.receive = blocks.extend
        engine.advance(1, lambda: True)
        return [block.action for block in blocks]

    fresh, again = first_actions(False), first_actions(True)
    np.testing.assert_array_equal(fresh[0], again[0])
    assert (fresh[1] != again[1]).all()


def test_more_workers_than_environments_are_refused(build_rllib):
    with pytest.raises(ConfigError, match=r"rllib.num_env_runners: 5 workers would share 4 environments"):
        build_rllib(5)


def test_more_workers_than_cores_are_refused_before_anything_is_built(build_rllib):
    with pytest.raises(ConfigError, match=r"rllib.num_env_runners: 1000 workers .* each need 500 cores, this Ray has"):
        build_rllib(1000, env=EnvConfig(benchmark="toy", copies=250))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_wrong_address_is_refused_at_once(address):
    # in a process of its own: this one has a Ray already
    script = (
        "from mtrl.config import ConfigError, RllibConfig\n"
        "from mtrl.engine.rllib.cluster import ray_cluster\n"
        "try:\n"
        f"    ray_cluster(RllibConfig(address={address!r})).__enter__()\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"rllib.address: no Ray takes us in at {address!r}")


def test_errors_of_the_learner_keep_their_type(build_rllib):
    one_task = EnvConfig(benchmark="MT1", tasks=("reach-v3",))
    with pytest.raises(ConfigError, match="surgery"):
        build_rllib(0, env=one_task, surgery=SurgeryConfig(method="pcgrad"))


def test_own_ray_leaves_nothing_in_home_or_working_directory(tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    script = work.parent / "script.py"
    script.write_text(
        "from builders import tiny_config\n"
        "from mtrl.config import RllibConfig\n"
        "from mtrl.engine.rllib.engine import RllibEngine\n"
        "from mtrl.rollout.build import build_suite\n"
        "import ray\n"
        "config = tiny_config(rllib=RllibConfig(num_env_runners=1, object_store_bytes=80_000_000))\n"
        "engine = RllibEngine(config, build_suite(config))\n"
        "engine.advance(80, lambda: False)\n"
        "engine.close()\n"
        "assert not ray.is_initialized()\n"
        "print(engine.learner.env_steps)\n"
    )
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**here, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "80\n"
    assert done.stderr == ""
    # other libraries keep caches; Ray's own places are ~/ray_results and ~/.ray
    assert {path.name for path in home.iterdir()} <= {".cache"}
    assert not list(work.iterdir())

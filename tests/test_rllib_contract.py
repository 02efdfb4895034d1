"""What the adapters rely on, held against the installed RLlib: after an upgrade, look here first."""

from __future__ import annotations

import inspect
import os
import signal
import time

import numpy as np
import pytest
import torch
from builders import tiny_config

from envs.making import choose_backend
from mtrl.config import EnvConfig, EvalConfig, RllibConfig
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.rollout.build import build_suite

pytestmark = pytest.mark.ray

MODULE = "default_policy"


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    cluster = pytest.importorskip("mtrl.engine.rllib.cluster", reason="ray is not installed")
    with cluster.ray_cluster(RllibConfig(object_store_bytes=80_000_000)):
        yield


def algorithm_config(num_env_runners):
    from mtrl.engine.rllib.config import MtrlConfig

    rllib = RllibConfig(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5)
    run = tiny_config(rllib=rllib)
    return MtrlConfig().for_run(run, build_suite(run))


@pytest.fixture
def build_algorithm():
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm
    from mtrl.engine.rllib.cluster import results_in_temporary_folder

    built = []

    def build(config):
        with results_in_temporary_folder():
            built.append(MtrlAlgorithm(config))
        return built[-1]

    yield build
    for algorithm in built:
        algorithm.stop()


@pytest.fixture(scope="module")
def untouched_algorithm():
    """An algorithm with one remote runner, for tests that only look at it."""
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm
    from mtrl.engine.rllib.cluster import results_in_temporary_folder

    with results_in_temporary_folder():
        algorithm = MtrlAlgorithm(algorithm_config(1))
    yield algorithm
    algorithm.stop()


@pytest.fixture
def runner():
    """A worker in this process, made as `EnvRunnerGroup` makes it."""
    from mtrl.engine.rllib.env_runner import BlockEnvRunner

    runner = BlockEnvRunner(config=algorithm_config(0), worker_index=0, num_workers=0, env_creator=None, spaces=None)
    yield runner
    runner.stop()


def module_state():
    learner = algorithm_config(0).build_learner(spaces=spaces())
    return learner.get_state(components="rl_module", inference_only=True)


def spaces():
    from mtrl.engine.rllib.env_runner import BlockEnvRunner

    return BlockEnvRunner(config=algorithm_config(0), worker_index=0).get_spaces()


def test_config_survives_copy_state_and_pickle():
    import pickle

    from mtrl.engine.rllib.config import MtrlConfig

    config = algorithm_config(2)
    expected = config.run_and_suite()
    assert config.copy(copy_frozen=False).run_and_suite() == expected
    assert MtrlConfig.from_state(config.get_state()).run_and_suite() == expected
    assert pickle.loads(pickle.dumps(config)).run_and_suite() == expected


def test_config_without_a_run_is_refused():
    from mtrl.engine.rllib.config import MtrlConfig

    with pytest.raises(ValueError, match="carries no run"):
        MtrlConfig().validate()


def test_env_runner_base_class_gives_what_the_adapter_uses(runner):
    assert runner.worker_index == 0
    assert runner.metrics is not None
    assert runner.config.run_and_suite()[0].name == "tiny"
    runner.assert_healthy()
    assert runner.ping() == "pong"


def test_spaces_come_under_the_three_names_that_setup_looks_up(runner):
    assert set(runner.get_spaces()) == {"__env__", "__env_single__", MODULE}
    suite = build_suite(tiny_config())
    for obs, action in runner.get_spaces().values():
        assert (*obs.shape, *action.shape) == (suite.obs_dim, suite.action_dim)


def test_module_gets_the_spaces_of_the_runner(untouched_algorithm):
    results = untouched_algorithm.learner_group.foreach_learner(lambda learner: learner.module[MODULE])
    module = results.result_or_errors[0].get()
    suite = build_suite(tiny_config())
    assert module.observation_space.shape == (suite.obs_dim,)
    assert module.action_space.shape == (suite.action_dim,)


def test_sample_takes_the_arguments_of_rllib_and_blocks_count_their_steps(runner):
    runner.set_state(module_state())
    blocks = runner.sample(num_timesteps=12, num_episodes=None, explore=True, random_actions=False, force_reset=True)
    assert [(block.env_steps(), block.agent_steps()) for block in blocks] == [(12, 12)]
    blocks = runner.sample(num_episodes=8, explore=False)
    assert sum(len(block.episodes) for block in blocks) == 8
    assert runner.sample(num_timesteps=4, random_actions=True)[0].env_steps() == 4


def test_get_metrics_reduces_to_what_evaluation_reads(runner):
    runner.set_state(module_state())
    runner.sample(num_episodes=8)
    metrics = runner.get_metrics()
    assert {"num_episodes", "num_env_steps_sampled_lifetime"} <= set(metrics)


def test_state_carries_weights_by_value_and_by_reference_of_whatever_version(runner):
    import ray

    state = module_state()
    assert "state" in inspect.signature(runner.set_state).parameters  # remote callers pass it by this name
    runner.set_state(state={"num_env_steps_sampled_lifetime": 3})
    assert runner.get_state() == {"rl_module": {MODULE: {}}}
    forms = [state, ray.put(state), {**state, "rl_module": ray.put(state["rl_module"]), "weights_seq_no": 0}]
    for form in forms:
        runner.set_state(state=form)
        held = runner.get_state(components="rl_module", not_components=None)["rl_module"][MODULE]
        for name, weights in state["rl_module"][MODULE].items():
            np.testing.assert_array_equal(held[name.removeprefix("network.")], weights)
            assert held[name.removeprefix("network.")].flags.writeable


def test_module_shares_the_parameters_of_the_learner():
    learner = algorithm_config(0).build_learner(spaces=spaces())
    module = learner.module[MODULE]
    assert module.network is learner.core.actor
    assert module.get_non_inference_attributes() == []
    state = module.get_state(inference_only=True)
    assert all(isinstance(weights, np.ndarray) for weights in state.values())
    assert {name.removeprefix("network.") for name in state} == set(learner.core.request().weights)


def test_learner_registers_no_optimizer_and_refuses_an_update_by_rllib():
    learner = algorithm_config(0).build_learner(spaces=spaces())
    assert learner.get_optimizers_for_module(MODULE) == []
    with pytest.raises(NotImplementedError, match="core"):
        learner.compute_loss_for_module(module_id=MODULE, config=None, batch={}, fwd_out={})


def test_setup_sends_the_module_to_the_runners(untouched_algorithm):
    (state,) = untouched_algorithm.env_runner_group.foreach_env_runner("get_state", local_env_runner=False)
    for name, weights in untouched_algorithm.core.request().weights.items():
        np.testing.assert_array_equal(state["rl_module"][MODULE][name], weights)


@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_train_reports_counts_under_the_names_rllib_reads(build_algorithm, num_env_runners):
    algorithm = build_algorithm(algorithm_config(num_env_runners))
    algorithm.advance(200, lambda: False)
    result = algorithm.train()  # as Tune calls it: to the next record of the log
    assert result["training_iteration"] == 2
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == algorithm.core.env_steps == 300
    assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 300
    assert np.isfinite(result["mtrl"]["train"]["loss"]["critic"])


def test_evaluation_of_rllib_runs_on_blocks(build_algorithm):
    config = algorithm_config(1).evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=1,
        evaluation_duration=8,
        evaluation_duration_unit="episodes",
    )
    result = build_algorithm(config).evaluate()
    assert result["env_runners"]["num_episodes"] == 8


def check_goes_on_as(expected, algorithm):
    """Checks that an algorithm learns from here what another one has learned."""
    algorithm.advance(400, never)
    for network in ("critics", "actor"):
        for name, weights in expected[network].items():
            assert torch.equal(algorithm.core.state_dict()[network][name], weights)
    assert torch.equal(algorithm.core.state_dict()["streams"]["noise"], expected["streams"]["noise"])


def never():
    return False


def test_checkpoints_asked_for_by_the_names_of_rllib_are_ours_and_whole(build_algorithm, tmp_path):
    algorithm = build_algorithm(algorithm_config(0))
    algorithm.advance(200, never)
    saved = algorithm.save_to_path(tmp_path / "checkpoint")
    files = {path.suffix for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json"}
    algorithm.advance(400, never)
    expected = algorithm.core.state_dict()
    algorithm.restore_from_path(saved)  # a rollback: runners hold newer weights
    assert algorithm.core.env_steps == algorithm.core.replay.added.sum() == 200
    check_goes_on_as(expected, algorithm)
    algorithm.save(str(tmp_path / "of Tune"))
    again = type(algorithm).from_checkpoint(saved)
    check_goes_on_as(expected, again)
    again.stop()


@pytest.mark.parametrize("method", ["save_to_path", "restore_from_path", "from_checkpoint"])
def test_what_our_checkpoints_do_not_know_is_refused(untouched_algorithm, tmp_path, method):
    with pytest.raises(TypeError, match="filesystem cannot be given"):
        getattr(untouched_algorithm, method)(tmp_path, filesystem="far away")


def test_default_config_lacks_only_its_run():
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm
    from mtrl.engine.rllib.config import MtrlConfig

    config = MtrlAlgorithm.get_default_config()
    assert type(config) is MtrlConfig
    assert config.algo_class is MtrlAlgorithm
    suite = build_suite(tiny_config())
    assert config.for_run(tiny_config(), suite).run_and_suite() == (tiny_config(), suite)


def test_training_step_returns_nothing_and_recovery_is_left_to_calls(build_algorithm, monkeypatch):
    """RLlib takes a returned dict for metrics of the old stack, and would look after workers before every step."""
    algorithm = build_algorithm(algorithm_config(1))
    assert algorithm.training_step() is None
    monkeypatch.setattr(
        algorithm.env_runner_group, "probe_unhealthy_env_runners", lambda **_: pytest.fail("a look was taken")
    )
    algorithm.restore_env_runners(algorithm.env_runner_group)
    algorithm.train()


def test_group_counts_its_remote_runners_and_evaluators_are_a_group_of_their_own(build_algorithm):
    from mtrl.engine.rllib.config import MtrlConfig

    run = tiny_config(
        eval=EvalConfig(parallel=True, goals=2, final_goals=4),
        rllib=RllibConfig(num_env_runners=1, num_evaluators=2, num_cpus_per_env_runner=0.5),
    )
    algorithm = build_algorithm(MtrlConfig().for_run(run, build_suite(run)))
    assert algorithm.env_runner_group.num_remote_env_runners() == 1
    assert algorithm.env_runner_group.healthy_env_runner_ids() == [1]
    assert algorithm.eval_env_runner_group.num_remote_env_runners() == 2
    ids = algorithm.eval_env_runner_group.foreach_env_runner(
        lambda runner: (runner.worker, runner.num_workers), local_env_runner=False
    )
    assert ids == [(0, 2), (1, 2)]


def until(condition, seconds=60.0):
    """Waits for a condition and returns what it gave."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)
    return found


def test_requests_beyond_the_number_in_flight_are_dropped_and_answers_come_under_their_tag(build_algorithm):
    group = build_algorithm(algorithm_config(1)).env_runner_group

    def slow(runner, word):
        time.sleep(0.3)
        return word

    made = [
        group.foreach_env_runner_async([slow], tag="ours", kwargs=[{"word": word}], remote_worker_ids=[1])
        for word in ("a", "b", "c")
    ]
    assert made == [1, 1, 0]  # max_requests_in_flight_per_env_runner is requests_in_flight of the run, 2
    assert group.fetch_ready_async_reqs(tags="theirs", timeout_seconds=0.0) == []
    found = []
    until(lambda: found.extend(group.fetch_ready_async_reqs(tags="ours", timeout_seconds=0.0)) or len(found) == 2)
    assert found == [(1, "a"), (1, "b")]


def test_a_dead_runner_is_unhealthy_until_a_probe_finds_it_back_and_knows_that_it_was_made_anew(build_algorithm):
    group = build_algorithm(algorithm_config(1)).env_runner_group

    def die(runner):
        os.kill(os.getpid(), signal.SIGKILL)

    def was_made_anew(runner):
        import ray

        return ray.get_runtime_context().was_current_actor_reconstructed

    assert group.foreach_env_runner(was_made_anew, local_env_runner=False) == [False]
    group.foreach_env_runner([die], kwargs=[{}], local_env_runner=False)
    assert group.healthy_env_runner_ids() == []
    assert group.foreach_env_runner_async([was_made_anew], tag="ours", kwargs=[{}], remote_worker_ids=[1]) == 0
    until(lambda: group.probe_unhealthy_env_runners(timeout_seconds=1.0))
    assert group.healthy_env_runner_ids() == [1]
    assert group.foreach_env_runner(was_made_anew, local_env_runner=False) == [True]


def test_runners_are_stopped_with_the_algorithm(build_algorithm, tmp_path):
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm
    from mtrl.engine.rllib.cluster import results_in_temporary_folder

    with results_in_temporary_folder():
        algorithm = MtrlAlgorithm(algorithm_config(1))
    mark = tmp_path / "stopped"

    def plant(runner):
        type(runner).stop = lambda self: mark.touch()

    algorithm.env_runner_group.foreach_env_runner(plant, local_env_runner=False)
    algorithm.stop()
    until(mark.exists)


def test_the_driver_decides_for_all_what_simulates():
    from mtrl.engine.rllib.config import MtrlConfig

    run = tiny_config(env=EnvConfig(benchmark="MT10", backend="auto"))
    sent, _ = MtrlConfig().for_run(run, build_suite(run)).run_and_suite()
    assert sent.env.backend == choose_backend(build_suite(run).task_names, "v2", "auto") != "auto"
    toy, _ = algorithm_config(0).run_and_suite()
    assert toy.env.backend == "auto"


def test_a_checkpoint_is_not_mixed_with_another(untouched_algorithm, tmp_path):
    untouched_algorithm.save_to_path(tmp_path)
    with pytest.raises(FileExistsError, match="holds a checkpoint already; give an empty folder"):
        untouched_algorithm.save_to_path(tmp_path)


def test_a_rollback_of_an_asynchronous_algorithm_forgets_what_was_under_way(build_algorithm, tmp_path):
    from mtrl.engine.rllib.config import MtrlConfig

    rllib = RllibConfig(num_env_runners=2, num_cpus_per_env_runner=0.5)
    run = tiny_config(collection="async", total_env_steps=10**9, rllib=rllib)
    algorithm = build_algorithm(MtrlConfig().for_run(run, build_suite(run)))
    algorithm.advance(200, never)
    algorithm.save_to_path(tmp_path)
    saved = algorithm.core.env_steps
    algorithm.advance(saved + 400, never)
    algorithm.restore_from_path(tmp_path)
    assert algorithm.settle().env_steps == 0
    assert algorithm.core.env_steps == algorithm.core.replay.added.sum() == saved


def test_arguments_in_a_list_reach_the_runner_they_are_for(build_algorithm):
    group = build_algorithm(algorithm_config(2)).env_runner_group

    def echo(runner, word):
        return runner.worker, word

    answers = group.foreach_env_runner(
        [echo, echo], kwargs=[{"word": "a"}, {"word": "b"}], local_env_runner=False, remote_worker_ids=[1, 2]
    )
    assert answers == [(0, "a"), (1, "b")]


def test_references_among_arguments_arrive_as_values(untouched_algorithm):
    import ray

    group = untouched_algorithm.env_runner_group
    answers = group.foreach_env_runner(
        [lambda runner, word: word], kwargs=[{"word": ray.put("far")}], local_env_runner=False
    )
    assert answers == ["far"]


def test_exception_that_leaves_a_runner_costs_its_process(build_algorithm):
    group = build_algorithm(algorithm_config(1)).env_runner_group

    def fail(runner):
        raise ValueError("on purpose")

    assert group.foreach_env_runner([fail], kwargs=[{}], local_env_runner=False) == []  # and nobody says why
    assert group.healthy_env_runner_ids() == []


def test_remote_runners_use_one_thread(untouched_algorithm):
    group = untouched_algorithm.env_runner_group

    def threads(runner):
        import torch

        return torch.get_num_threads()

    assert group.foreach_env_runner([threads], kwargs=[{}], local_env_runner=False) == [1]


def test_runner_closes_its_environments(monkeypatch, runner):
    from mtrl.rollout.collector import Collector

    closed = []
    monkeypatch.setattr(Collector, "close", lambda collector: closed.append(collector))
    runner.stop()
    assert not closed  # nothing was built
    runner.build()
    runner.stop()
    assert len(closed) == 1


def test_collect_echoes_the_worker_and_the_version(runner):
    weights = algorithm_config(0).build_learner(spaces=spaces()).core.request().weights
    request = CollectRequest(weights={}, version=7, unit=Unit.STEPS, amount=3, mode=Mode.EXPLORE, tag="here")
    answer = runner.collect(request=request, weights=weights)
    assert (answer.worker, answer.failure) == (0, None)
    assert (answer.result.weights_version, answer.result.tag) == (7, "here")
    assert answer.result.reward.shape == (3, 4)

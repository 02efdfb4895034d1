"""What the adapters rely on, held against the installed RLlib: after an upgrade, look here first."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from builders import tiny_config

from mtrl.config import RllibConfig
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


def test_save_and_restore_by_rllib_keep_the_whole_learner(build_algorithm, tmp_path):
    algorithm = build_algorithm(algorithm_config(0))
    algorithm.advance(200, lambda: False)
    saved = {name: weights.clone() for name, weights in algorithm.core.critics.state_dict().items()}
    steps, noise = algorithm.core.gradient_steps, algorithm.core.state_dict()["streams"]["noise"]
    algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.advance(400, lambda: False)
    assert algorithm.core.gradient_steps > steps
    algorithm.restore_from_path(tmp_path / "checkpoint")
    assert algorithm.core.gradient_steps == steps
    assert torch.equal(algorithm.core.state_dict()["streams"]["noise"], noise)
    for name, weights in algorithm.core.critics.state_dict().items():
        assert torch.equal(weights, saved[name])


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

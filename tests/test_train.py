"""Whole runs on the toy suite: what is written, what resumes, what repeats."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from builders import run_in, tiny_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import mtrl
from mtrl import api
from mtrl import train as training
from mtrl.checkpoint import CheckpointError, load_state, newest_checkpoint, save_checkpoint
from mtrl.config import CheckpointConfig, ConfigError, EvalConfig, SacConfig, SurgeryConfig
from mtrl.config_io import to_yaml
from mtrl.engine.local import LocalEngine
from mtrl.engine.progress import WorkersLostError
from mtrl.learners.mtsac import MultiTaskSac, NonFiniteError
from mtrl.losses import sac
from mtrl.report.runs import read_run
from mtrl.runlog import RunLog


class Lines:
    """A display that remembers what was said, and may act on updates."""

    def __init__(self, on_update=None):
        self.said, self.on_update = [], on_update

    def say(self, text):
        self.said.append(text)

    def update(self, env_steps, gradient_steps, success):
        if self.on_update:
            self.on_update(env_steps)


def learner_state(run):
    return load_state(newest_checkpoint(run)[0])["learner"]


def test_a_run_leaves_everything_in_its_directory(tmp_path):
    run = training.train(run_in(tmp_path, surgery=SurgeryConfig(method="pcgrad", statistics_every=5)), Lines()).run
    assert run.parent == tmp_path
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "surgery.jsonl",
        "tensorboard",
        "evaluations",
        "checkpoints",
        "replay",
    } <= names
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["env_steps"] for record in records if record["kind"] == "train"] == [100, 200, 300, 400]
    last = [record for record in records if record["kind"] == "train"][-1]["values"]
    assert {
        "train/loss/critic/mean",
        "train/alpha/toy-reach-up",
        "perf/env_sps",
        "perf/peak_memory_gib",
        "pcgrad/critic/conflict_frac",
        "pcgrad/actor/cos/0_3",
        "plasticity/grad_norm/actor",
        "plasticity/param_norm/critic",
        "plasticity/dormant/critic",
    } <= set(last)
    assert last["perf/spi"] == pytest.approx(8.0)
    versions = json.loads((run / "versions.json").read_text())
    assert versions["torch_threads"] >= 1
    assert versions["metaworld"] == "3.1.1"


def test_tensorboard_shows_the_records_and_what_runs_are_compared_by(tmp_path, monkeypatch):
    monkeypatch.setattr("mtrl.train.mean_success", lambda estimate: 0.75)
    run = training.train(run_in(tmp_path, name="compared"), Lines()).run
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss/critic/mean", "eval/success/iqm", "perf/wall_s", "hparam/success_mean"} <= set(tags)
    assert [event.value for event in events.Scalars("hparam/success_mean")] == [0.75]
    settings = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert settings["name"].string_value == "compared"
    assert settings["env.num_goals"].number_value == 4


def test_time_to_90_is_the_first_evaluation_that_reached_it(tmp_path):
    log = RunLog(tmp_path, run_in(tmp_path))
    for env_steps, success in ((100, 0.5), (200, 0.95), (300, 0.8), (400, 1.0)):
        log.write("eval", env_steps, 0, {"eval/success/mean": success})
    log.write_outcome(400, 1.0)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("hparam/time_to_90")] == [200]


def test_time_to_90_forgets_what_a_resume_made_void(tmp_path):
    log = RunLog(tmp_path, run_in(tmp_path))
    for env_steps, success in ((100, 0.5), (200, 0.95), (150, 0.6), (250, 0.92)):
        log.write("eval", env_steps, 0, {"eval/success/mean": success})
    log.write_outcome(250, 0.92)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("hparam/time_to_90")] == [250]


def test_evaluating_a_finished_run_hides_nothing_of_it(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    training.evaluate(run, 2, Lines())
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert len(events.Scalars("hparam/success_mean")) == 1
    assert [event.step for event in events.Scalars("train/loss/critic/mean")] == [100, 200, 300, 400]


def test_a_resume_is_written_down(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    training.resume(run, ["total_env_steps=500"], Lines())
    assert read_run(run).config.total_env_steps == 500
    versions = json.loads((run / "versions.json").read_text())
    assert [(again["env_steps"], again["engine"]) for again in versions["resumed"]] == [(400, "local")]
    training.resume(run, [], Lines())  # goes on to the newer end, where it is already
    assert learner_state(run)["env_steps"] == 500


def test_the_final_evaluation_runs_every_goal_of_every_task_once(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    result = json.loads(next((run / "evaluations").iterdir()).read_text())
    pairs = [(episode["task"], episode["goal"]) for episode in result["episodes"]]
    assert len(pairs) == len(set(pairs)) == 4 * 4
    assert result["final"]
    assert set(result["estimators"]) == {"mtrl", "metaworld"}


def test_evaluation_does_not_change_training(tmp_path):
    plain = training.train(run_in(tmp_path / "a"), Lines()).run
    often = training.train(
        run_in(tmp_path / "b", eval=EvalConfig(every_env_steps=50, goals=2, final_goals=2)), Lines()
    ).run
    assert len(list((often / "evaluations").iterdir())) == 8
    for name, weights in learner_state(plain)["actor"].items():
        assert torch.equal(weights, learner_state(often)["actor"][name])


def test_equal_seeds_give_equal_runs_of_200_updates(tmp_path):
    settings = {
        "sac": SacConfig(batch_size=8, samples_per_insert=32.0, warmup_steps_per_task=10),
        "total_env_steps": 260,
    }
    states = [learner_state(training.train(run_in(tmp_path / name, **settings), Lines()).run) for name in "ab"]
    assert states[0]["gradient_steps"] >= 200
    for network in ("actor", "critics", "target_critics"):
        for name, weights in states[0][network].items():
            assert torch.equal(weights, states[1][network][name])


def test_checkpoints_come_at_their_steps_and_resume_goes_on(tmp_path):
    config = run_in(tmp_path, checkpoint=CheckpointConfig(every_env_steps=100, keep=10))
    run = training.train(config, Lines()).run
    assert [int(path.name) for path in sorted((run / "checkpoints").iterdir())] == [100, 200, 300, 400]
    display = Lines()
    training.resume(run, ["total_env_steps=600"], display)
    state = learner_state(run)
    assert state["env_steps"] == 600
    # 4 tasks x 10 steps of warm-up; 8 samples per insert and 4 x 8 samples per update
    assert state["gradient_steps"] == (600 - 40) * 8 // 32
    assert any("resuming" in line and "400 transitions" in line for line in display.said)
    steps = [json.loads(line)["env_steps"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_signal_saves_before_leaving(tmp_path):
    def interrupt(env_steps):
        if env_steps == 200:
            os.kill(os.getpid(), signal.SIGTERM)

    display = Lines(interrupt)
    run, stopped_by = training.train(run_in(tmp_path), display)
    assert stopped_by is signal.SIGTERM
    assert learner_state(run)["env_steps"] == 200
    assert display.said[-1] == f"stopped by SIGTERM; go on with: mtrl resume {run}"
    assert not (run / "evaluations").exists()


def test_a_signal_in_the_last_evaluation_is_told(tmp_path, monkeypatch):
    """The run is finished, but whoever began several is not to begin the next one."""
    evaluate = LocalEngine.evaluate

    def interrupted(self, num_goals):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, num_goals)

    monkeypatch.setattr(LocalEngine, "evaluate", interrupted)
    run, stopped_by = training.train(run_in(tmp_path), Lines())
    assert stopped_by is signal.SIGTERM
    assert len(list((run / "evaluations").iterdir())) == 1


def test_workers_that_die_of_the_signal_in_the_last_evaluation_are_no_failure(tmp_path, monkeypatch):
    def lost(self, num_goals):
        os.kill(os.getpid(), signal.SIGTERM)
        raise WorkersLostError("rollout worker 0 died")

    monkeypatch.setattr(LocalEngine, "evaluate", lost)
    run, stopped_by = training.train(run_in(tmp_path), Lines())
    assert stopped_by is signal.SIGTERM
    assert learner_state(run)["env_steps"] == 400


def test_a_run_can_start_from_the_weights_of_another(tmp_path):
    first = training.train(run_in(tmp_path / "a"), Lines()).run
    second = training.train(run_in(tmp_path / "b", init_from=str(first), total_env_steps=4), Lines()).run
    for name, weights in learner_state(first)["actor"].items():
        assert torch.equal(weights, learner_state(second)["actor"][name])
    assert learner_state(second)["gradient_steps"] == 0


def test_weights_of_other_networks_are_refused(tmp_path):
    first = training.train(run_in(tmp_path / "a", total_env_steps=8), Lines()).run
    network = tiny_config().network.__class__(actor_widths=(8,), critic_widths=(16, 16))
    with pytest.raises(ConfigError, match=r"init_from: the networks of .* have other shapes or names"):
        training.train(run_in(tmp_path / "b", init_from=str(first), network=network), Lines())


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("sac.gamma=0.5", "sac.gamma: cannot change when a run is resumed; start a new run with init_from="),
        ("seed=7", "seed: cannot change when a run is resumed"),
    ],
)
def test_resume_refuses_settings_that_change_the_run(tmp_path, override, text):
    run = training.train(run_in(tmp_path, total_env_steps=8), Lines()).run
    with pytest.raises(ConfigError, match=text):
        training.resume(run, [override], Lines())


def test_resume_refuses_a_configuration_file_edited_since(tmp_path):
    run = training.train(run_in(tmp_path, total_env_steps=8), Lines()).run
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("gamma: 0.99", "gamma: 0.5"))
    with pytest.raises(ConfigError, match=r"sac\.gamma: cannot change when a run is resumed"):
        training.resume(run, [], Lines())


def test_resume_of_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config.yaml"):
        training.resume(tmp_path, [], Lines())


def test_a_runs_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir: .*file/x cannot be written \(Not a directory\)"):
        training.train(run_in(tmp_path / "file" / "x"), Lines())


def test_nan_in_a_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = run_in(tmp_path, checkpoint=CheckpointConfig(every_env_steps=100), log_every_env_steps=4)

    def poison(env_steps):
        if env_steps == 100:
            monkeypatch.setattr("mtrl.losses.sac.critic_loss", lambda q, target: q.mean(dim=(0, 2)) * float("nan"))

    with pytest.raises(NonFiniteError, match="train/loss/critic of toy-reach-left is not finite at or before update"):
        training.train(config, Lines(poison))
    run = next(tmp_path.iterdir())
    assert learner_state(run)["env_steps"] == 100


def test_nan_in_weights_is_not_saved(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    state = load_state(newest_checkpoint(run)[0])
    state["learner"]["target_critics"]["stack.shared.0"][0, 0, 0] = float("nan")
    save_checkpoint(run, 401, state, None, keep=9)
    with pytest.raises(NonFiniteError, match=r"target_critics\.stack\.shared\.0 is not finite at update"):
        training.resume(run, [], Lines())


def test_nan_in_the_policy_stops_the_run_and_names_the_update(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    state = load_state(newest_checkpoint(run)[0])
    state["learner"]["actor"]["stack.shared.0"][0, 0, 0] = float("nan")
    save_checkpoint(run, 401, state, None, keep=9)
    with pytest.raises(
        NonFiniteError, match=r"action of toy-reach-left .* at update 90: the policy's weights are not finite"
    ):
        training.resume(run, ["total_env_steps=402"], Lines())


def test_a_loaded_policy_acts_as_the_run_did(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    policy = mtrl.load_policy(run)
    obs = np.zeros((3, 6), np.float32)
    actions = policy(obs, task="toy-reach-up")
    assert actions.shape == (3, 2)
    np.testing.assert_allclose(policy(obs[0], task="toy-reach-up"), actions[0], atol=1e-6)
    assert not np.array_equal(actions, policy(obs, task="toy-reach-left"))
    with pytest.raises(ValueError, match="the policy knows 4 tasks; name one: toy-reach-left"):
        policy(obs)
    with pytest.raises(ValueError, match="reach-v3 is not a task of this policy; known: toy-reach-left"):
        policy(obs, task="reach-v3")
    with pytest.raises(ValueError, match="observations have 5 numbers; the policy takes 6"):
        policy(np.zeros(5), task="toy-reach-up")


def test_the_python_api_trains_a_file(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text(to_yaml(run_in(tmp_path / "runs", total_env_steps=40)))
    first = api.train(path)
    second = api.train(path, ["name=second"], init_from=first)
    assert second.name.startswith("second-seed1-")


@pytest.mark.slow
def test_learning_solves_the_toy_suite_and_broken_learning_does_not(tmp_path, monkeypatch):
    """The mean success over 4 tasks of 20 goals reaches 0.9; with the sign of the actor's loss turned it stays low."""
    settings = {
        "env": tiny_config().env.__class__(benchmark="toy", num_goals=20, max_episode_steps=50),
        "total_env_steps": 24_000,
        "log_every_env_steps": 4000,
        "network": tiny_config().network.__class__(actor_widths=(64, 64), critic_widths=(64, 64)),
        "sac": SacConfig(
            batch_size=32, samples_per_insert=32.0, warmup_steps_per_task=500, actor_lr=1e-3, critic_lr=1e-3,
            alpha_lr=1e-3, reward_scaling="constant", reward_scale=0.1, initial_alpha=0.1, gamma=0.95,
        ),
        "surgery": SurgeryConfig(method="pcgrad"),
        "eval": EvalConfig(every_env_steps=0, goals=10, final_goals=20),
    }  # fmt: skip
    successes = []
    real = sac.actor_loss
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(sac, "actor_loss", lambda q, log_prob, alpha: -real(q, log_prob, alpha))
        run = training.train(run_in(tmp_path / str(broken), **settings), Lines()).run
        result = json.loads(next((run / "evaluations").iterdir()).read_text())
        successes.append(np.mean(list(result["estimators"]["mtrl"]["success"].values())))
    assert successes[0] >= 0.9
    assert successes[1] <= 0.5


def test_an_evaluation_of_fewer_goals_does_not_replace_that_of_the_end(tmp_path):
    run = training.train(run_in(tmp_path), Lines()).run
    training.evaluate(run, 2, Lines())
    assert [path.name for path in sorted((run / "evaluations").iterdir())] == [
        "000000000400-0002.json",
        "000000000400-0004.json",
    ]
    assert read_run(run).result.goals == 4


def test_an_evaluation_of_more_goals_than_are_stored_is_refused(tmp_path):
    run = training.train(run_in(tmp_path, total_env_steps=8), Lines()).run
    with pytest.raises(ConfigError, match="--episodes: 5 is outside 1 to 4, the goals stored per task"):
        training.evaluate(run, 5, Lines())


def test_surgery_of_one_task_leaves_no_run_directory(tmp_path):
    env = tiny_config().env.__class__(benchmark="custom", tasks=("toy-reach-up",))
    with pytest.raises(ConfigError, match=r"surgery\.method: pcgrad needs at least 2 tasks"):
        training.train(run_in(tmp_path, env=env, surgery=SurgeryConfig(method="pcgrad")), Lines())
    assert not list(tmp_path.iterdir())


def test_a_run_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    run = training.train(run_in(tmp_path, total_env_steps=8), Lines()).run
    assert json.loads((run / "versions.json").read_text())["git_commit"] is None


@pytest.mark.parametrize(
    "again", [lambda run: training.resume(run, [], Lines()), lambda run: training.evaluate(run, 2, Lines())]
)
def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path, monkeypatch, again):
    run = training.train(run_in(tmp_path), Lines()).run

    def of_later(self, state):
        return state["what only a later version saves"]

    monkeypatch.setattr(MultiTaskSac, "load_state_dict", of_later)
    with pytest.raises(CheckpointError, match="holds no 'what only a later version saves' of its learner") as told:
        again(run)
    assert "\n" not in str(told.value)

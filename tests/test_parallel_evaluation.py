"""Evaluation beside training: the same results, of the weights that were current when it began."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_in, tiny_config
from test_train import Lines

from mtrl import train as training
from mtrl.config import EvalConfig, RllibConfig
from mtrl.engine.build import build_engine
from mtrl.rollout.build import build_suite

pytestmark = pytest.mark.usefixtures("one_torch_thread")
BESIDE = EvalConfig(every_env_steps=100, goals=3, final_goals=4, parallel=True)


def results(run: Path) -> dict[str, Any]:
    """Returns file name → steps and episodes of every evaluation."""
    read = {path.name: json.loads(path.read_text()) for path in sorted((run / "evaluations").iterdir())}
    return {name: (one["gradient_steps"], one["episodes"]) for name, one in read.items()}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = training.train(
        run_in(tmp_path_factory.mktemp("turn"), eval=dataclasses.replace(BESIDE, parallel=False)), Lines()
    ).run
    torch.set_num_threads(threads)
    return run


def test_results_are_those_of_evaluations_in_turn(tmp_path: Path, in_turn: Path) -> None:
    run = training.train(run_in(tmp_path, eval=BESIDE), Lines()).run
    assert results(run) == results(in_turn)
    assert len(results(run)) == 4
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["env_steps"] for record in records if record["kind"] == "eval"] == [100, 200, 300, 400]


def test_one_that_a_stop_interrupted_is_made_after_the_resume(
    tmp_path: Path, in_turn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(env_steps: int) -> None:
        if env_steps == 200:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.engine.local.LocalEngine.finished_evaluation", lambda self, wait: None)  # is never over
        run, _ = training.train(run_in(tmp_path, eval=BESIDE), Lines(interrupt))
    assert not (run / "evaluations").exists()
    training.resume(run, [], Lines())
    made = results(run)
    # the one at 100 was never over when the one at 200 began, which a real engine would have waited for
    assert {name: made[name] for name in made if not name.startswith("000000000100")} == {
        name: one for name, one in results(in_turn).items() if not name.startswith("000000000100")
    }


@pytest.mark.ray
def test_workers_of_their_own_evaluate_and_come_back_from_the_dead(tmp_path: Path, in_turn: Path) -> None:
    rllib = RllibConfig(num_env_runners=1, num_evaluators=2, num_cpus_per_env_runner=0.4, object_store_bytes=80_000_000)
    config = run_in(tmp_path, engine="rllib", rllib=rllib, eval=BESIDE)
    run = training.train(config, Lines()).run
    expected = results(in_turn)
    assert results(run).keys() == expected.keys()
    for name, (gradient_steps, episodes) in results(run).items():
        key = "task", "goal"
        ours = sorted(episodes, key=lambda one: tuple(one[part] for part in key))
        theirs = sorted(expected[name][1], key=lambda one: tuple(one[part] for part in key))
        assert gradient_steps == expected[name][0]
        assert [one["return"] for one in ours] == pytest.approx([one["return"] for one in theirs], rel=1e-4)
    config = tiny_config(engine="rllib", rllib=rllib, eval=BESIDE)
    engine: Any = build_engine(config, build_suite(config))
    (first, _) = engine._algorithm.eval_env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False
    )
    os.kill(first, signal.SIGKILL)
    engine.begin_evaluation(engine.learner.policy_weights(), 3)
    engine.advance(200, lambda: False)  # goes on
    assert len(engine.finished_evaluation(wait=True)) == 3 * 4
    engine.close()

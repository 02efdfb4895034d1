"""The rows of ML10 and ML45, shortened, on both engines: trained, evaluated, saved, resumed bit for bit, reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_resume import StopAt, assert_equal_states

from mtrl import train as training
from mtrl.config_io import load_config
from mtrl.report.write import write_report

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CONFIGS = Path(__file__).parents[1] / "configs"
EPISODE = 20
NUM_TASKS = {"ml10": 10, "ml45": 45}
SHORT = [
    f"env.max_episode_steps={EPISODE}",
    "meta.adaptation_episodes=2",
    "meta.test_episodes=1",
    "eval.every_env_steps=0",
    "eval.final_goals=1",
    "checkpoint.every_env_steps=0",
    "log_every_env_steps=1",
    "device=cpu",
]
CHEAP = {
    "maml_trpo": ["meta.episodes=2", "env.copies=2", "trpo.cg_iterations=2"],
    "rl2_ppo": ["meta.episodes=2", "ppo.epochs=2"],
    "pearl": [
        *(
            "env.num_goals=2",
            "eval.goals=2",
            "sac.batch_size=32",
            "pearl.context_size=16",
            "replay.capacity_per_task=100",
        ),
        *(f"pearl.{phase}_steps={EPISODE}" for phase in ("initial", "prior", "extra")),
        "pearl.updates_per_iteration=3",
    ],
}
ENGINES = {
    "local": [],
    "rllib": ["engine=rllib", "rllib.num_env_runners=2", "rllib.num_cpus_per_env_runner=0.5"],
}
EPISODES = {"maml_trpo": 4, "rl2_ppo": 2, "pearl": 2}
"""Of each sampled task in an iteration."""


@pytest.fixture(autouse=True)
def pause_after_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a signal come between any two phases."""
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)


def shortened(row: str, algorithm: str, engine: str, folder: Path) -> tuple[list[str], int]:
    """Returns settings of two iterations, and the environment steps of one."""
    sampled = load_config(CONFIGS / row / f"{algorithm}.yaml", []).meta.batch_size
    steps = sampled * EPISODES[algorithm] * EPISODE
    before = 2 * NUM_TASKS[row] * EPISODE if algorithm == "pearl" else 0  # an episode of each goal of each task
    total = [f"total_env_steps={before + 2 * steps}", f"runs_dir={folder}"]
    rllib = ["rllib.object_store_bytes=150_000_000"] if engine == "rllib" else []
    return [*SHORT, *CHEAP[algorithm], *ENGINES[engine], *rllib, *total], before + steps


@pytest.mark.parametrize(
    "engine", [pytest.param("local", marks=pytest.mark.slow), pytest.param("rllib", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("algorithm", CHEAP)
@pytest.mark.parametrize("row", NUM_TASKS)
def test_a_shortened_row_trains_resumes_and_is_reported(row: str, algorithm: str, engine: str, tmp_path: Path) -> None:
    if engine == "rllib":
        pytest.importorskip("ray")
    path = CONFIGS / row / f"{algorithm}.yaml"
    settings, one_iteration = shortened(row, algorithm, engine, tmp_path / "whole")
    whole = training.train(load_config(path, settings), StopAt(None)).run
    settings, _ = shortened(row, algorithm, engine, tmp_path / "parts")
    stopped = training.train(load_config(path, settings), StopAt(one_iteration // 2))
    assert stopped.stopped_by is not None
    resumed = training.resume(stopped.run, [], StopAt(None))
    assert resumed.stopped_by is None
    assert_equal_states(whole, stopped.run)
    assert len(list((whole / "evaluations").iterdir())) == 1
    write_report([stopped.run], tmp_path / "report")
    assert row.upper() in (tmp_path / "report" / "report.md").read_text()

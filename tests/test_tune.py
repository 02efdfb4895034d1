"""The Algorithm under Ray Tune, as it is: results, TensorBoard, restarts from our checkpoints, a trial that goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from builders import tiny_config

from mtrl.config import EvalConfig, RllibConfig
from mtrl.rollout.build import build_suite

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOTAL = 400
STEPS = "env_runners/num_env_steps_sampled_lifetime"


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Any:
    cluster = pytest.importorskip("mtrl.engine.rllib.cluster", reason="ray is not installed")
    with cluster.ray_cluster(RllibConfig(object_store_bytes=80_000_000)):
        yield


def tuner(folder: Path, trainable: Any, max_failures: int) -> Any:
    from ray import tune

    from mtrl.engine.rllib.config import MtrlConfig

    config = tiny_config(
        engine="rllib",
        total_env_steps=TOTAL,
        eval=EvalConfig(every_env_steps=200, goals=2, final_goals=4),
        rllib=RllibConfig(num_env_runners=1, num_cpus_per_env_runner=0.5),
    )
    return tune.Tuner(
        trainable,
        param_space=MtrlConfig().for_run(config, build_suite(config)),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="trial",
            stop={STEPS: TOTAL},
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )


def fails_once(marker: Path) -> Any:
    """Returns an Algorithm whose process dies in the middle of its third iteration, once."""
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm

    class FailsOnce(MtrlAlgorithm):
        def training_step(self) -> None:
            if self.core.env_steps == 200 and not marker.exists():
                marker.touch()
                os._exit(1)
            super().training_step()

    return FailsOnce


def check_finished(result: Any) -> None:
    """Checks that a trial came to its end, exactly, with everything that Tune should have of it."""
    from mtrl.engine.rllib.algorithm import MtrlAlgorithm
    from mtrl.engine.rllib.config import MtrlConfig

    assert result.error is None
    assert result.metrics_dataframe[STEPS].iloc[-1] == TOTAL
    assert 0.0 <= result.metrics["mtrl"]["eval"]["success"]["mean"] <= 1.0
    assert list(Path(result.path).glob("events.out.tfevents.*"))
    files = {path.suffix for path in Path(result.checkpoint.path).rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ""}  # no pickle of ours; Tune's own mark has no suffix
    config = tiny_config(engine="rllib", rllib=RllibConfig(num_env_runners=0))
    again = MtrlAlgorithm(MtrlConfig().for_run(config, build_suite(config)))
    again.load_checkpoint(result.checkpoint.path)
    assert again.core.env_steps == again.core.replay.added.sum() == TOTAL
    again.stop()


def test_a_trial_that_fails_goes_on_from_our_checkpoint(tmp_path: Path) -> None:
    marker = tmp_path / "failed"
    (result,) = tuner(tmp_path / "tune", fails_once(marker), max_failures=1).fit()
    assert marker.exists()
    check_finished(result)


def test_an_interrupted_trial_is_restored(tmp_path: Path) -> None:
    from ray import tune

    trainable = fails_once(tmp_path / "failed")
    (result,) = tuner(tmp_path / "tune", trainable, max_failures=0).fit()
    assert result.error is not None
    (result,) = tune.Tuner.restore(str(tmp_path / "tune" / "trial"), trainable, resume_errored=True).fit()
    check_finished(result)

"""The script that measures on a GPU, rehearsed without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtrl.config_io import load_config

ROOT = Path(__file__).parents[1]


def check(*arguments, python=sys.executable):
    return subprocess.run(
        ["scripts/gpu_check.sh", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_the_rehearsal_measures_trains_and_goes_on(tmp_path):
    first = check("--cpu", "--out", tmp_path)
    assert first.returncode == 0, first.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    assert len(figures) == 2
    assert all(found["graph_pcgrad_per_s"] > 0.0 for found in figures.values())
    (run,) = (tmp_path / "runs").iterdir()
    reached = newest(run)
    assert (tmp_path / "report" / "time.png").stat().st_size > 10_000

    second = check("--cpu", "--out", tmp_path, "--seconds", 12, "train")
    assert second.returncode == 0, second.stderr
    assert list((tmp_path / "runs").iterdir()) == [run]
    assert newest(run) > reached


@pytest.mark.slow
def test_a_run_that_saved_nothing_is_begun_anew(tmp_path):
    (tmp_path / "runs" / "gpu-mt10-pcgrad-seed1-20200101-000000").mkdir(parents=True)
    fresh = check("--cpu", "--out", tmp_path, "--seconds", 12, "train")
    assert fresh.returncode == 0, fresh.stderr
    assert len(list((tmp_path / "runs").glob("*/checkpoints/*/manifest.json"))) >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_it_asks_for_a_gpu():
    refused = check("bench")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "gpu_check.sh: torch sees no GPU here; --cpu rehearses without one"


def test_it_asks_for_an_installation():
    refused = check("bench", python="/nowhere/python")
    assert refused.returncode == 2
    assert "gpu_check.sh: /nowhere/python has no mtrl and torch; install them (make setup), or name" in refused.stderr


def test_it_names_what_it_does_not_know():
    refused = check("--gpu")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "gpu_check.sh: --gpu is none of --cpu, --out FOLDER, --seconds N, bench, train"


def test_the_row_for_a_gpu_keeps_everything_on_it():
    row = load_config(ROOT / "configs" / "gpu" / "mt10_pcgrad.yaml")
    assert row.learner.compile == "graph"
    assert (row.device, row.replay.device) == ("auto", "auto")


def newest(run):
    return max(int(manifest.parent.name) for manifest in run.glob("checkpoints/*/manifest.json"))

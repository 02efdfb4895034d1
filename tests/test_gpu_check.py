"""The script that measures on a GPU, rehearsed without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def check(*arguments):
    return subprocess.run(
        ["scripts/gpu_check.sh", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_the_rehearsal_measures_trains_and_goes_on(tmp_path):
    whole = check("--cpu", "--out", tmp_path)
    assert whole.returncode == 0, whole.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    assert len(figures) == 2
    for found in figures.values():
        assert found["largest_difference"] == 0.0
        assert found["graph_pcgrad_per_s"] > 0.0
    (run,) = (tmp_path / "runs").iterdir()
    assert [file.name for file in sorted((run / "evaluations").iterdir())] == [
        "000000020000-0001.json",
        "000000040000-0001.json",
    ]
    assert (tmp_path / "report" / "time.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_call_that_is_cut_short_is_gone_on_with(tmp_path):
    cut = check("--cpu", "--out", tmp_path, "--seconds", 9, "train")
    assert cut.returncode == 0, cut.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "evaluations" / "000000040000-0001.json").exists()
    whole = check("--cpu", "--out", tmp_path, "train")
    assert whole.returncode == 0, whole.stderr
    assert list((tmp_path / "runs").iterdir()) == [run]
    assert (run / "evaluations" / "000000040000-0001.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_it_asks_for_a_gpu():
    refused = check("bench")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "gpu_check.sh: torch sees no GPU here; --cpu rehearses without one"


def test_it_names_what_it_does_not_know():
    refused = check("--gpu")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "gpu_check.sh: --gpu is none of --cpu, --out FOLDER, --seconds N, bench, train"

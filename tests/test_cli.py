"""The command line: verbs work, and mistakes of the user end in one line and exit code 2."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import run_in, tiny_config

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.config_io import to_yaml

TOY = "configs/toy/mtsac.yaml"
ROOT = Path(__file__).parent.parent


def run(capsys, *words):
    """Returns exit code, standard output and standard error of one call."""
    argv, sys.argv = sys.argv, ["mtrl", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def row(tmp_path):
    """A configuration file of a run of seconds."""
    path = tmp_path / "row.yaml"
    path.write_text(to_yaml(run_in(tmp_path / "runs", total_env_steps=60)))
    return str(path)


def test_train_evaluate_resume_and_report(row, tmp_path, capsys):
    code, out, err = run(capsys, "train", row, "--seeds", "1-2", "--engine", "local", "name=two")
    assert (code, err) == (0, "")
    runs = sorted((tmp_path / "runs").iterdir())
    assert [path.name[:9] for path in runs] == ["two-seed1", "two-seed2"]
    assert "run directory" in out
    assert run(capsys, "evaluate", str(runs[0]), "--episodes", "3")[0] == 0
    assert run(capsys, "resume", str(runs[0]), "total_env_steps=80")[0] == 0
    code, out, _ = run(capsys, "checkpoints", str(runs[0]))
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[0][:3] == ["env", "steps", "success"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("60", "whole"), ("80", "whole")]
    code, out, _ = run(capsys, "report", *map(str, runs), "--out", str(tmp_path / "report"))
    assert code == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"table.md", "table.csv", "curves.png", "tasks.png"} <= names


def test_show_prints_every_setting_with_its_source(capsys):
    code, out, _ = run(capsys, "show", TOY, "sac.tau=0.01")
    assert code == 0
    words = " ".join(out.split())
    assert "sac.tau 0.01 override" in words
    assert "sac.gamma" in words


def test_show_refuses_what_could_not_be_trained(capsys):
    code, out, err = run(capsys, "show", TOY, "env.benchmark=MT11")
    assert (code, out) == (2, "")
    assert "MT10" in err


@pytest.mark.parametrize(
    ("what", "line"),
    [("benchmarks", "MT10"), ("tasks", "reach-v3"), ("algorithms", "mtsac"), ("configs", "configs/mt10/pcgrad.yaml")],
)
def test_list(what, line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = run(capsys, "list", what)
    assert code == 0
    assert line in out


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["sac.tua=0.01"], "sac.tua: no such setting; did you mean sac.tau?"),
        (["sac.batch_size=many"], "sac.batch_size"),
        (["env.benchmark=MT11"], "MT11 is not a benchmark; did you mean MT10?"),
        (["env.benchmark=custom", "env.tasks=[reach-v33]"], "reach-v33 is not a task; did you mean reach-v3?"),
        (["surgery.method=pcgrad", "env.benchmark=custom", "env.tasks=[toy-reach-up]"], "set surgery.method=mean"),
        (["replay.capacity_per_task=4"], "replay.capacity_per_task"),
        (["device=cuda"], "device: cuda was asked for, but torch sees no GPU here; set it to auto or cpu"),
        (["replay.device=cuda"], "replay.device: cuda was asked for"),
        (["runs_dir=/proc/none"], "runs_dir: /proc/none cannot be written"),
        (["replay.capacity_per_task=100000000000"], "do not fit"),
        (["sac.reward_scale=0.1"], "has no effect with sac.reward_scaling=none"),
        (["init_from=nowhere"], "nothing to go on from"),
    ],
)
def test_a_wrong_setting_ends_in_one_line_and_exit_code_2(row, overrides, text, capsys):
    code, _, err = run(capsys, "train", row, *overrides)
    assert code == 2
    assert text in err
    assert err.startswith("mtrl: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["resume", "nowhere"], "nowhere is not a run directory"),
        (["evaluate", "nowhere"], "nowhere is not a run directory"),
        (["report", "nowhere"], "nowhere"),
        (["list", "planets"], "planets is not one of benchmarks, tasks, algorithms, configs"),
        (["bench", "planets"], "planets is not one of update, envs, tasks, loop, training, workers, "),
        (["train"], "CONFIG"),
        (["train", TOY, "--sedes", "1"], "--sedes"),
        (["train", TOY, "--seeds", "one"], "'one' is neither a range as 1-5 nor a list as 1,3,7"),
        (["fly"], "fly"),
    ],
)
def test_a_wrong_call_ends_in_one_line_and_exit_code_2(words, text, capsys):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert text in err
    assert err.count("\n") == 1


def test_no_traceback_reaches_the_terminal():
    found = subprocess.run(
        [sys.executable, "-m", "mtrl", "train", TOY, "env.benchmark=MT11"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(("text", "seeds"), [("1-3", [1, 2, 3]), ("4", [4]), ("1,5,2", [1, 5, 2])])
def test_seeds(text, seeds):
    assert cli.parse_seeds(text) == seeds


def test_an_empty_range_of_seeds_is_refused():
    with pytest.raises(ConfigError, match="give the lower seed first"):
        cli.parse_seeds("3-1")


def test_every_setting_of_a_run_survives_its_file(tmp_path):
    from mtrl.config_io import load_config

    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config()))
    assert load_config(path) == tiny_config()


def test_a_signal_ends_the_command_and_not_only_the_seed(row, tmp_path, capsys, monkeypatch):
    from mtrl import train as training

    real = training.Ended

    def stopped(run, stopped_by):
        return real(run, signal.SIGTERM)

    monkeypatch.setattr(training, "Ended", stopped)
    code, _, _ = run(capsys, "train", row, "--seeds", "1-3")
    assert code == 128 + signal.SIGTERM
    assert len(list((tmp_path / "runs").iterdir())) == 1

"""Joining a Ray that wants a token: with it a run trains there, and without it one line says what is missing."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROW = Path(__file__).parents[1] / "configs" / "toy" / "pcgrad.yaml"
START_TIMEOUT_S = 60
REFUSAL_TIMEOUT_S = 30
"""Of which most is Python importing Ray; Ray itself would try for 20 to 60 seconds more, and write a line for each."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def home():
    pytest.importorskip("ray", reason="ray is not installed")
    # not pytest's folder: Ray's sockets lie in it, whose paths must be short
    folder = Path(tempfile.mkdtemp(prefix="mtrl-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def environment(home):
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return here | {"HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def token(home):
    path = home / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@pytest.fixture(scope="module")
def head(home, environment, token):
    """Starts a head as docker/compose.yaml does, on this machine and beside other Rays; gives its address."""
    port = free_port()
    words = ["--head", "--block", f"--port={port}", "--num-cpus=1", "--object-store-memory=80000000"]
    words += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={free_port()}", f"--temp-dir={home}/ray"]
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    with (home / "head.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
            env=environment | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while "Ray runtime started" not in (written := (home / "head.log").read_text()):
                assert process.poll() is None, written
                assert time.monotonic() < deadline, written
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)


def train(address, environment, work):
    words = [ROW, "engine=rllib", f"rllib.address={address}", "rllib.num_env_runners=1", "total_env_steps=400"]
    words += ["eval.every_env_steps=400", "eval.goals=1", "eval.final_goals=1"]
    return subprocess.run(
        [sys.executable, "-m", "mtrl", "train", *words],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(address, environment, prelude=""):
    """Joins in a process of its own, as each reads its token once; returns the error, which is all that is written."""
    script = (
        "from mtrl.config import ConfigError, RllibConfig\n"
        "from mtrl.engine.rllib import cluster\n"
        f"{prelude}\n"
        "try:\n"
        f"    cluster.ray_cluster(RllibConfig(address={address!r})).__enter__()\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=REFUSAL_TIMEOUT_S,
        check=True,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return line


def test_run_with_the_token_trains_on_the_cluster(head, environment, token, tmp_path):
    done = train(head, environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}, tmp_path)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoints/*")
    assert checkpoint.name == f"{400:012d}"


def test_run_with_another_token_ends_with_one_line(head, environment, tmp_path):
    done = train(head, environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mtrl: rllib.address: the Ray at '{head}' wants its token (")
    assert "RAY_AUTH_MODE=token" in line
    assert "RAY_AUTH_TOKEN" in line


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "Authentication token is missing or incorrect"),
        ({"RAY_AUTH_MODE": "token"}, "no authentication token was found"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent"},
            "cannot be opened or is empty: /nonexistent",
        ),
    ],
    ids=["mode", "token", "file"],
)
def test_missing_token_is_named(head, environment, settings, reason):
    line = refusal(head, environment | settings)
    assert line.startswith(f"rllib.address: the Ray at '{head}' wants its token (")
    assert f"{reason}); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in line


def test_port_without_a_ray_is_refused(environment):
    address = f"127.0.0.1:{free_port()}"
    assert refusal(address, environment).startswith(f"rllib.address: no Ray takes us in at '{address}' (")


def test_machine_that_is_no_node_is_told_how_to_become_one(head, environment, token):
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # this machine is a node, so that Ray must be kept from finding it
    line = refusal(head, environment | settings, prelude="cluster.services.find_node_ids = set")
    assert line.startswith(f"rllib.address: no Ray takes us in at '{head}' (this machine is none of its nodes; ")
    port = head.rpartition(":")[2]  # Ray puts the machine's own address for 127.0.0.1
    assert re.search(rf"ray start --address=\S+:{port} --num-cpus=0\)", line)

"""The files beside the Dockerfile are well-formed, and a cluster started from them is closed to strangers."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker" / "compose.yaml"
CLUSTER = ROOT / "docker" / "cluster.yaml"


@pytest.fixture
def compose():
    return yaml.safe_load(COMPOSE.read_text())


@pytest.fixture
def cluster():
    return yaml.safe_load(CLUSTER.read_text())


def run_tool(*words):
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def start_command(text):
    """Returns the settings of the environment and the options of the one `ray start` in a shell's or list's words."""
    words = shlex.split(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text))
    (start,) = (
        number for number, word in enumerate(words) if word == "start" and Path(words[number - 1]).name == "ray"
    )
    settings = dict(word.split("=", 1) for word in words[: start - 1] if re.match(r"\w+=", word))
    options = words[start + 1 :]
    ends = (number for number, word in enumerate(options) if not word.startswith("--"))
    return settings, options[: next(ends, None)]


def start_commands(compose, cluster):
    """Returns the same of every `ray start` in both files, of a container with its environment."""
    for service in compose["services"].values():
        settings, options = start_command(" ".join(service["entrypoint"]))
        yield service["environment"] | settings, options
    for role in ("head", "worker"):
        (start,) = (command for command in cluster[f"{role}_start_ray_commands"] if "ray start" in command)
        yield start_command(start)


def test_compose_file_follows_the_compose_specification():
    run_tool("check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_cluster_file_follows_rays_schema(cluster):
    util = pytest.importorskip("ray.autoscaler._private.util", reason="ray is not installed")
    prepared = util.prepare_config(cluster)
    util.validate_config(prepared)
    (machines,) = prepared["available_node_types"].values()
    assert machines["min_workers"] == 2


def test_yaml_files_are_tidy():
    run_tool("yamllint", "--strict", "configs", "docker")


def test_ray_knows_every_option(compose, cluster):
    scripts = pytest.importorskip("ray.scripts.scripts", reason="ray is not installed")
    for _, options in start_commands(compose, cluster):
        scripts.start.make_context("ray start", list(options))


def test_every_node_wants_the_token(compose, cluster):
    modes = [settings["RAY_AUTH_MODE"] for settings, _ in start_commands(compose, cluster)]
    assert modes == ["token"] * 5
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/auth_token"
        assert service["secrets"] == ["auth_token"]
    assert compose["secrets"] == {"auth_token": {"file": "auth_token"}}
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "docker/auth_token"


def test_token_is_in_no_file_of_the_repository_nor_in_the_image():
    assert "docker/auth_token" in (ROOT / ".gitignore").read_text().splitlines()
    taken = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert taken[0] == "*"
    assert not [line for line in taken if line.startswith("!docker")]
    for path in (COMPOSE, CLUSTER):
        assert "RAY_AUTH_TOKEN:" not in path.read_text()
        assert "RAY_AUTH_TOKEN=" not in path.read_text()


def test_containers_are_reached_by_each_other_alone(compose):
    for service in compose["services"].values():
        assert not {"ports", "network_mode", "networks"} & service.keys()
    assert compose["networks"] == {"default": {"internal": True}}


def test_dashboard_listens_to_its_own_machine_alone(compose, cluster):
    heads = [options for _, options in start_commands(compose, cluster) if "--head" in options]
    assert len(heads) == 2
    for options in heads:
        assert [word for word in options if word.startswith("--dashboard-host")] == ["--dashboard-host=127.0.0.1"]
    for path in (COMPOSE, CLUSTER):
        assert "0.0.0.0" not in path.read_text()


def test_no_node_sends_usage_statistics(compose, cluster):
    assert [settings["RAY_USAGE_STATS_ENABLED"] for settings, _ in start_commands(compose, cluster)] == ["0"] * 5


def test_two_workers_join_one_head_that_collects_nothing(compose, cluster):
    assert compose["services"]["worker"]["deploy"]["replicas"] == 2
    assert len(cluster["provider"]["worker_ips"]) == 2
    (head,) = (command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert start_command(head)[0]["RAY_enable_autoscaler_v2"] == "0"
    starts = [options for _, options in start_commands(compose, cluster)]
    addresses = [word for options in starts for word in options if word.startswith(("--head", "--port", "--address"))]
    assert sorted(set(addresses)) == ["--address=$RAY_HEAD_IP:6379", "--address=head:6379", "--head", "--port=6379"]
    assert all("--num-cpus=0" in options for options in starts if "--head" in options)


def test_all_containers_are_of_the_image_that_is_built_here(compose):
    services = compose["services"].values()
    assert {service["image"] for service in services} == {"mtrl"}
    assert {service["pull_policy"] for service in services} == {"never"}
    (build,) = (service["build"] for service in services if "build" in service)
    context = COMPOSE.parent / build["context"]
    assert (context / build["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")


def test_object_store_has_room_in_shared_memory(compose):
    for service in compose["services"].values():
        _, options = start_command(" ".join(service["entrypoint"]))
        (store,) = (int(word.partition("=")[2]) for word in options if word.startswith("--object-store-memory"))
        assert service["shm_size"] == "1gb"
        assert 80_000_000 <= store < 2**30


def test_machines_get_files_that_exist(cluster):
    for path in cluster["file_mounts"].values():
        assert path == "docker/auth_token" or (ROOT / path).exists()

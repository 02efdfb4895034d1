"""Starting or joining Ray, quietly and within what a run may use and write."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private.authentication import authentication_token_setup as token_setup
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray's stub leaves it out
from ray.exceptions import AuthenticationError, RpcError
from ray.tune.trainable import trainable

from mtrl.config import ConfigError, RllibConfig, RunConfig

WAIT_FOR_CORES_S = 20.0
"""How long cores may take to become free before a run is refused."""

CONNECT_TIMEOUT_S = 5.0
"""How long the head of a Ray may take to accept a connection, and to answer."""


@contextmanager
def ray_cluster(config: RllibConfig) -> Iterator[None]:
    """Gives a Ray to build on: the process's own if it has one, the one at `rllib.address`, or one started for the run.

    Raises:
        ConfigError: If there is no Ray at the address, it wants another token, or this machine is not of it.
    """
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    # what it says of a dead worker is no help, and `calls.py` says it better
    logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address is None:
        _start(config)
    else:
        _join(config.address)
    try:
        yield
    finally:
        ray.shutdown()


def require_cores(run: RunConfig) -> None:
    """Waits until the cores of all workers are free.

    Raises:
        ConfigError: If there are too few, which Ray itself would wait for without end.
    """
    config = run.rllib
    num_workers = config.num_env_runners + (config.num_evaluators if run.eval.parallel else 0)
    needed = num_workers * config.num_cpus_per_env_runner
    there = _cores(ray.cluster_resources)
    workers = f"{num_workers} workers with {config.num_cpus_per_env_runner:g} cores each need {needed:g} cores"
    remedy = "lower rllib.num_env_runners or rllib.num_cpus_per_env_runner"
    if needed > there:
        raise ConfigError("rllib.num_env_runners", f"{workers}, this Ray has {there:g}; {remedy}")
    deadline = time.monotonic() + WAIT_FOR_CORES_S
    while needed > (free := _cores(ray.available_resources)):
        if time.monotonic() > deadline:
            raise ConfigError(
                "rllib.num_env_runners",
                f"{workers}, {free:g} of {there:g} are free; wait for other programs, or {remedy}",
            )
        time.sleep(0.1)


@contextmanager
def results_in_temporary_folder() -> Iterator[None]:
    """Removes the folder that each Algorithm built in the block insists on making.

    There is no setting for it: without Tune, every Trainable makes a folder in ~/ray_results, which stays empty here.
    """
    names, name = vars(trainable), "DEFAULT_STORAGE_PATH"
    usual = names[name]
    with tempfile.TemporaryDirectory(prefix="mtrl-ray-results-") as folder:
        names[name] = folder
        try:
            yield
        finally:
            names[name] = usual


@contextmanager
def without_warning_of_restarts() -> Iterator[None]:
    """Drops a warning that Ray's C++ side writes for each worker that may be started again, made in the block.

    It is about arguments in the object store, which live as long as we do; there is no setting for it.
    """
    with _stderr_without(b"max_restarts > 0"):
        yield


@contextmanager
def _stderr_without(words: bytes) -> Iterator[None]:
    """Holds back what the block writes to stderr, from C++ too, and drops the lines that contain `words`."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if words not in line:
                    os.write(2, line)


def _cores(resources: Callable[[], Any]) -> float:
    return float(resources().get("CPU", 0.0))


def _start(config: RllibConfig) -> None:
    _provide_token()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=config.object_store_bytes,
    )


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        reason, _, _ = str(error).partition(". ")  # Ray goes on with advice for its own command line
        raise ConfigError(
            "rllib.address",
            f"the Ray at {address!r} wants its token ({reason}); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
            "token that its head was started with, or RAY_AUTH_TOKEN_PATH to a file that holds it",
        ) from error
    except (OSError, ValueError, RpcError) as error:
        raise ConfigError(
            "rllib.address",
            f"no Ray takes us in at {address!r} ({error}); give host:port of a head node, auto for a Ray on this "
            "machine, or leave it empty to start one",
        ) from error


def _knock(address: str) -> None:
    """Asks a head once for what `ray.init` would ask it for a minute, with many warnings.

    Raises:
        AuthenticationError: If our token is not its own, or we have none.
        OSError: If nothing listens, or no node of its Ray is on this machine, without which no program can join.
        RpcError: If it is no head.
        ValueError: If it is no address.
    """
    if address == "auto":
        token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # `ray.init` does, for it alone
    token_setup.ensure_token_if_auth_enabled(create_token_if_missing=False)  # for want of one Ray would end the process
    head = str(services.canonicalize_bootstrap_address(address))
    host, _, port = head.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
        pass
    with _stderr_without(b"gcs_client.cc"):
        client = GcsClient(address=head)
    nodes = {node.hex() for node in client.get_all_node_info(timeout=CONNECT_TIMEOUT_S)}
    if nodes.isdisjoint(services.find_node_ids()):  # type: ignore[no-untyped-call]  # not annotated in Ray
        raise ConnectionError(
            f"this machine is none of its nodes; make it one: ray start --address={head} --num-cpus=0"
        )


def _provide_token() -> None:
    """Gives a Ray that is started here a token of its own, for the life of this process.

    Ray wants a token by default and would otherwise write one to the home folder, readable by everybody; one that lies
    there already is used, and closed to others.
    """
    saved = Path.home() / ".ray" / "auth_token"
    if saved.exists():
        saved.chmod(0o600)
    elif not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

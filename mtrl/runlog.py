"""The run directory and what is logged in it: configuration, versions, metrics as JSON lines and TensorBoard.

RUN/config.yaml        the resolved configuration
RUN/versions.json      versions, machine, git commit
RUN/metrics.jsonl      one record per line: kind, env_steps, gradient_steps, wall_s, values
RUN/tensorboard/       the same values
RUN/surgery.jsonl      gradient statistics per pair of tasks, [task, task]
RUN/evaluations/       one JSON file per evaluation
RUN/checkpoints/, RUN/replay/   see checkpoint.py
RUN/profile/           see profiling.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from envs.benchmarks import get_benchmark
from envs.making import choose_backend
from mtrl.config import ConfigError, RunConfig
from mtrl.config_io import flatten, to_yaml

_SUCCESS, _TIME_TO_90 = "hparam/success_mean", "hparam/time_to_90"  # the latter in environment steps
_GROWING = ("metrics.jsonl", "surgery.jsonl")
_LIBRARIES = ("metaworld", "mujoco", "gymnasium", "numpy", "torch", "ray", "safetensors")


class RunLog:
    """Writes the records of one run; a resumed run goes on in the same files."""

    def __init__(self, run: Path, config: RunConfig, void_from: int | None = None) -> None:
        """Opens the log; TensorBoard events beyond `void_from` environment steps count no more."""
        self.run = run
        _drop_half_written_line(run / "metrics.jsonl")
        self._file = (run / "metrics.jsonl").open("a")
        begun_before = (run / "tensorboard").exists()
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=None if void_from is None else void_from + 1)
        if not begun_before:
            self._write_settings(config)
        self._began = time.monotonic()
        self._earlier_s = _last_wall_s(run)

    def position(self) -> dict[str, int]:
        """Returns the sizes of the files that records are added to, bytes, for `rewind`."""
        return {name: (self.run / name).stat().st_size for name in _GROWING if (self.run / name).exists()}

    def wall_s(self) -> float:
        """Returns the seconds that the run has taken, earlier parts of a resumed run included."""
        return self._earlier_s + time.monotonic() - self._began

    def write(self, kind: str, env_steps: int, gradient_steps: int, values: Mapping[str, float]) -> None:
        """Writes one record; `kind` is train or eval."""
        record = {
            "kind": kind,
            "env_steps": env_steps,
            "gradient_steps": gradient_steps,
            "wall_s": round(self.wall_s(), 3),
            "values": dict(values),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for tag, value in {**values, "perf/wall_s": record["wall_s"]}.items():
            self._writer.add_scalar(tag, value, env_steps)

    def write_outcome(self, env_steps: int, success: float) -> None:
        """Writes what TensorBoard's HParams page compares runs by, beside the settings that `RunLog` wrote there.

        Args:
            env_steps: Environment steps at the end.
            success: Mean success of the evaluation there.
        """
        self._writer.add_scalar(_SUCCESS, success, env_steps)
        reached: list[int] = []
        for record in map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines()):
            reached = [steps for steps in reached if steps < record["env_steps"]]  # a resume begins before the end
            if record["kind"] == "eval" and record["values"]["eval/success/mean"] >= 0.9:
                reached.append(record["env_steps"])
        if reached:
            self._writer.add_scalar(_TIME_TO_90, min(reached), env_steps)

    def write_surgery(self, env_steps: int, gradient_steps: int, matrices: Mapping[str, torch.Tensor]) -> None:
        """Writes the matrices [task, task] of gradient statistics, the cosines also as a picture."""
        record = {"env_steps": env_steps, "gradient_steps": gradient_steps}
        pairs = {name: matrix.tolist() for name, matrix in matrices.items()}
        with (self.run / "surgery.jsonl").open("a") as file:
            file.write(json.dumps({**record, "pairs": pairs}) + "\n")
        for name, matrix in matrices.items():
            network, quantity = name.split("/")
            if quantity == "cosine":
                self._writer.add_image(f"pcgrad/{network}/cos", _picture(matrix), env_steps)

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Writes the file of one evaluation; of the names env_steps-goals, sorted, the last is the one that counts."""
        path = self.run / "evaluations" / f"{result['env_steps']:012d}-{result['goals']:04d}.json"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        partial.replace(path)

    def close(self) -> None:
        """Flushes and closes all files."""
        self._file.close()
        self._writer.close()

    def _write_settings(self, config: RunConfig) -> None:
        # SummaryWriter.add_hparams would open a run of its own within the run
        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(config).items()
        }
        outcomes = dict.fromkeys((_SUCCESS, _TIME_TO_90), 0.0)  # named now, so that their curves are found
        writer: Any = self._writer.file_writer  # torch's annotations say None
        for summary in hparams(settings, outcomes):  # type: ignore[no-untyped-call]  # not annotated in torch
            writer.add_summary(summary)


def rewind(run: Path, position: Mapping[str, int], env_steps: int) -> None:
    """Removes from the log of a run what it wrote after a checkpoint.

    Args:
        run: Run directory.
        position: Of the log when the checkpoint was saved, from `RunLog.position`.
        env_steps: Of the checkpoint.
    """
    for name in _GROWING:
        if (run / name).exists():
            os.truncate(run / name, min(position.get(name, 0), (run / name).stat().st_size))
    for file in (run / "evaluations").glob("*.json"):
        if int(file.name.split("-")[0]) > env_steps:
            file.unlink()


def create_run_directory(config: RunConfig) -> Path:
    """Makes a new folder for a run, named after row, seed and time, and writes configuration and versions into it.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    name = f"{config.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    parent = Path(config.runs_dir)
    run = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 2
        while run.exists():
            run = parent / f"{name}-{number}"
            number += 1
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(config))
        (run / "versions.json").write_text(json.dumps(versions(config), indent=1))
    except OSError as error:
        raise ConfigError(
            "runs_dir", f"{parent} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return run


def record_resume(run: Path, config: RunConfig, env_steps: int) -> None:
    """Writes down with which settings and on which machine a run goes on; what was there before stays in versions.json.

    Args:
        run: Run directory.
        config: Settings from now on.
        env_steps: Where the run goes on.
    """
    recorded = json.loads((run / "versions.json").read_text())
    recorded.setdefault("resumed", []).append({"env_steps": env_steps, **versions(config)})
    for path, text in ((run / "versions.json", json.dumps(recorded, indent=1)), (run / "config.yaml", to_yaml(config))):
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)


def versions(config: RunConfig) -> dict[str, Any]:
    """Returns what a number must be quoted with: versions, machine, threads, commit."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    found["mtrl"] = importlib.metadata.version("mtrl")
    found["git_commit"] = _git_commit()
    found["platform"] = platform.platform()
    found["cpu"] = _cpu_model()
    found["num_cpus"] = os.cpu_count()
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["torch_threads"] = torch.get_num_threads()
    found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    found["engine"] = config.engine
    tasks = get_benchmark(config.env.benchmark, config.env.tasks).train_tasks
    found["env_backend"] = choose_backend(tasks, config.env.reward_version, config.env.backend)
    return found


def _picture(matrix: torch.Tensor) -> torch.Tensor:
    """Returns [3, height, width] of a matrix with values in [-1, 1]: red is positive, blue negative, white zero."""
    positive, negative = matrix.clamp(0, 1), (-matrix).clamp(0, 1)
    picture = torch.stack([1 - negative, 1 - positive - negative, 1 - positive])
    return picture.repeat_interleave(16, 1).repeat_interleave(16, 2)


def _git_commit() -> str | None:
    source = Path(__file__).parent
    # installed within somebody else's repository, this file is none of it
    if shutil.which("git") is None or not _git(source, "ls-files", Path(__file__).name):
        return None
    return _git(source, "describe", "--always", "--dirty", "--abbrev=40") or None


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _drop_half_written_line(path: Path) -> None:
    """Cuts off what a killed run left after its last whole line."""
    if path.exists():
        text = path.read_text()
        path.write_text(text[: text.rfind("\n") + 1])


def _last_wall_s(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return float(json.loads(lines[-1])["wall_s"]) if lines else 0.0

"""From progress to the values that are logged: tags, per task and in the mean."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtrl.data import Episodes
from mtrl.engine.progress import Progress
from mtrl.learners.mtsac import NonFiniteError
from mtrl.learners.protocol import Learner
from mtrl.report.scores import interquartile_mean

_MOST_TASKS_WITH_A_TAG_PER_PAIR = 10


def training_values(progress: Progress, learner: Learner, task_names: tuple[str, ...]) -> dict[str, float]:
    """Returns tag → value for a stretch of training.

    Raises:
        NonFiniteError: If a loss is NaN or infinite.
    """
    means = progress.mean_values()
    refuse_non_finite(means, task_names, learner.gradient_steps)
    values: dict[str, float] = {}
    for tag, value in {**means, **learner.diagnostics()}.items():
        if value.dim() == 0:
            values[tag] = float(value)
        else:
            values[f"{tag}/mean"] = float(value.double().mean())
            values |= {f"{tag}/{task}": float(number) for task, number in zip(task_names, value, strict=True)}
    values |= surgery_values(progress.mean_matrices())
    values |= _episode_values(Episodes.concatenate(progress.episodes), task_names)
    seconds = sum(progress.seconds.values())
    values["perf/env_sps"] = progress.env_steps / seconds
    values["perf/updates_s"] = progress.num_updates() / seconds
    values["perf/spi"] = progress.num_samples() / progress.env_steps
    values["perf/policy_lag"] = float(progress.largest_lag)
    values["perf/unstable_episodes"] = float(progress.num_unstable)
    values["perf/worker_restarts"] = float(progress.num_restarts)
    values["perf/peak_memory_gib"] = _peak_memory_gib()
    values |= {f"perf/{part}_share": spent / seconds for part, spent in progress.seconds.items()}
    return values


def refuse_non_finite(means: dict[str, torch.Tensor], task_names: tuple[str, ...], gradient_steps: int) -> None:
    """Checks that all metrics are finite.

    Raises:
        NonFiniteError: If one is not; names metric, task and update.
    """
    for name, value in means.items():
        bad = ~torch.isfinite(value)
        if bad.any():
            where = f" of {task_names[int(bad.nonzero()[0])]}" if value.dim() == 1 else ""
            raise NonFiniteError(
                f"{name}{where} is not finite at or before update {gradient_steps:,}; nothing was saved since the last "
                "checkpoint. Lower the learning rates, or scale the rewards down with sac.reward_scaling=constant"
            )


def surgery_values(matrices: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns tag → value over all pairs of two tasks, from means over updates of the matrices that `Descent` measures.

    `xi_frac` is the share of xi ≤ 1 among conflicting pairs and left out where nothing conflicted. The cosine of each
    pair has a tag where there are at most 10 tasks; the matrices are logged for any number.
    """
    values: dict[str, float] = {}
    for network in sorted({name.split("/")[0] for name in matrices}):
        cosines = matrices[f"{network}/cosine"]
        num_tasks = len(cosines)
        pairs = {
            quantity: matrices[f"{network}/{quantity}"][~torch.eye(num_tasks, dtype=torch.bool)]
            for quantity in ("cosine", "magnitude_similarity", "conflicts", "condition_a", "xi_at_most_1")
        }
        values[f"pcgrad/{network}/cos_mean"] = float(pairs["cosine"].mean())
        values[f"pcgrad/{network}/magnitude_similarity_mean"] = float(pairs["magnitude_similarity"].mean())
        values[f"pcgrad/{network}/conflict_frac"] = float(pairs["conflicts"].mean())
        values[f"pcgrad/{network}/condition_a_frac"] = float(pairs["condition_a"].mean())
        if pairs["conflicts"].any():
            values[f"pcgrad/{network}/xi_frac"] = float(pairs["xi_at_most_1"].sum() / pairs["conflicts"].sum())
        if num_tasks <= _MOST_TASKS_WITH_A_TAG_PER_PAIR:
            for i, j in itertools.combinations(range(num_tasks), 2):
                values[f"pcgrad/{network}/cos/{i}_{j}"] = float(cosines[i, j])
    return values


def evaluation_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns tag → value for what an evaluation says, in the form of `evaluators.result_of`."""
    estimates = result["estimators"]
    own = estimates["mtrl"]
    success = np.array(list(own["success"].values()))
    values = {
        "eval/success/mean": float(success.mean()),
        "eval/success/iqm": float(interquartile_mean(success[np.newaxis])),
        "eval/return/mean": _mean(own["return"]),
    }
    values["eval/metaworld_success/mean"] = _mean(estimates["metaworld"]["success"])
    values["eval/last_step_success/mean"] = _mean(own["last_step_success"])
    for quantity in ("success", "return", "length"):
        values |= {f"eval/{quantity}/{task}": number for task, number in own[quantity].items()}
    if "train_tasks" in result:
        values["eval/success_on_training_tasks/mean"] = _mean(result["train_tasks"]["mtrl"]["success"])
        values["eval/metaworld_bias/mean"] = values["eval/metaworld_success/mean"] - values["eval/success/mean"]
    for split, points in result.get("curve", {}).items():
        values |= {f"eval/success_after_episodes/{split}/{point}": number for point, number in points.items()}
    return values


def _episode_values(episodes: Episodes, task_names: tuple[str, ...]) -> dict[str, float]:
    values: dict[str, float] = {}
    for task, name in enumerate(task_names):
        mine = episodes.task_id == task
        if mine.any():
            values[f"train/episode_success/{name}"] = float(episodes.success[mine].mean())
            values[f"train/episode_return/{name}"] = float(episodes.returns[mine].mean())
    if len(episodes):
        values["train/episode_success/mean"] = _mean(
            {key: number for key, number in values.items() if key.startswith("train/episode_success/")}
        )
    return values


def _peak_memory_gib() -> float:
    """Returns the most memory that this process has held so far, GiB; workers on Ray are processes of their own."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**30 if sys.platform == "darwin" else 2**20)


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values())))

"""From progress to the values that are logged: tags, per task and in the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mtrl.config import RunConfig
from mtrl.data import Episodes
from mtrl.engine.progress import Progress
from mtrl.learners.mtsac import NonFiniteError

_PER_TASK = {
    "critic_loss": "train/critic_loss",
    "actor_loss": "train/actor_loss",
    "alpha_loss": "train/alpha_loss",
    "alpha": "train/alpha",
    "entropy": "train/entropy",
    "q": "train/q",
}
_WHOLE = {
    "critic_grad_norm": "train/critic_grad_norm",
    "actor_grad_norm": "train/actor_grad_norm",
    "critic_curvature": "surgery/critic/curvature",
    "actor_curvature": "surgery/actor/curvature",
}


def training_values(
    progress: Progress, learner: Any, config: RunConfig, task_names: tuple[str, ...], env_steps: int
) -> dict[str, float]:
    """Returns tag → value for a stretch of training of `env_steps` environment steps.

    Raises:
        NonFiniteError: If a loss is NaN or infinite.
    """
    means = progress.mean_values()
    refuse_non_finite(means, task_names, learner.gradient_steps)
    values: dict[str, float] = {}
    for name, value in means.items():
        if name in _PER_TASK:
            tag = _PER_TASK[name]
            values[f"{tag}/mean"] = float(value.mean())
            values |= {f"{tag}/{task}": float(number) for task, number in zip(task_names, value, strict=True)}
        else:
            values[_WHOLE[name]] = float(value)
    values |= surgery_values(progress.mean_matrices())
    values |= _episode_values(Episodes.concatenate(progress.episodes), task_names)
    factors = learner.reward_scaling.factors()
    if config.sac.reward_scaling == "per_task_return":
        values |= {f"norm/reward_scale/{task}": float(factor) for task, factor in zip(task_names, factors, strict=True)}
    num_updates = len(progress.metrics)
    seconds = sum(progress.seconds.values())
    values["perf/env_sps"] = env_steps / seconds
    values["perf/updates_s"] = num_updates / seconds
    values["perf/spi"] = num_updates * config.sac.batch_size * len(task_names) / env_steps
    values["perf/policy_lag"] = float(progress.largest_lag)
    values["perf/unstable_episodes"] = float(progress.num_unstable)
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

    `xi_share` is the share of xi ≤ 1 among conflicting pairs and left out where nothing conflicted.
    """
    values: dict[str, float] = {}
    for network in sorted({name.split("/")[0] for name in matrices}):
        pairs = {
            quantity: matrices[f"{network}/{quantity}"][
                ~torch.eye(len(matrices[f"{network}/cosine"]), dtype=torch.bool)
            ]
            for quantity in ("cosine", "magnitude_similarity", "conflicts", "condition_a", "xi_at_most_1")
        }
        values[f"surgery/{network}/cosine_mean"] = float(pairs["cosine"].mean())
        values[f"surgery/{network}/magnitude_similarity_mean"] = float(pairs["magnitude_similarity"].mean())
        values[f"surgery/{network}/conflict_share"] = float(pairs["conflicts"].mean())
        values[f"surgery/{network}/condition_a_share"] = float(pairs["condition_a"].mean())
        if pairs["conflicts"].any():
            values[f"surgery/{network}/xi_share"] = float(pairs["xi_at_most_1"].sum() / pairs["conflicts"].sum())
    return values


def evaluation_values(estimates: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Returns tag → value for an evaluation."""
    own = estimates["mtrl"]
    success = np.array(list(own["success"].values()))
    values = {"eval/success/mean": float(success.mean()), "eval/return/mean": _mean(own["return"])}
    values["eval/metaworld_success/mean"] = _mean(estimates["metaworld"]["success"])
    values["eval/last_step_success/mean"] = _mean(own["last_step_success"])
    for quantity in ("success", "return", "length"):
        values |= {f"eval/{quantity}/{task}": number for task, number in own[quantity].items()}
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


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values())))

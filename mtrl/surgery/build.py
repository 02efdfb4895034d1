"""From settings to the function that weighs the tasks' gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtrl.config import ConfigError, SurgeryConfig
from mtrl.surgery import methods

Surgery = Callable[[Tensor, torch.Generator], Tensor]
"""(gram [net, task, task], generator on its device) → weights of the tasks' gradients, float64 [net, task]."""

METHODS: dict[str, Surgery] = {
    "mean": methods.mean,
    "pcgrad": methods.pcgrad,
    "direction_only": methods.direction_only,
    "magnitude_only": methods.magnitude_only,
}


def build_surgery(config: SurgeryConfig, num_tasks: int) -> Surgery:
    """Returns the surgery that `config` asks for, its reduction included.

    Raises:
        ConfigError: Surgery for a single task.
    """
    if num_tasks < 2 and config.method != "mean":
        raise ConfigError(
            "surgery.method",
            f"{config.method} needs at least 2 tasks, the run has {num_tasks}; set surgery.method=mean",
        )
    method = METHODS[config.method]
    scale = private_scale(config, num_tasks)

    def surgery(gram: Tensor, generator: torch.Generator) -> Tensor:
        return scale * method(gram, generator)

    return surgery


def private_scale(config: SurgeryConfig, num_tasks: int) -> float:
    """Returns the factor on the gradient of a parameter that belongs to one task: 1 / num_tasks for mean, 1 for sum."""
    return {"mean": 1.0 / num_tasks, "sum": 1.0}[config.reduction]

"""Optimizer state as plain nested dictionaries of tensors, without torch's integer keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors that the optimizer keeps, by position of the parameter; empty before its first step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{position:03d}": dict(optimizer.state[parameter])
        for position, parameter in enumerate(parameters)
        if optimizer.state[parameter]
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Takes over a state made by `optimizer_state` of an optimizer over the same parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for position, tensors in state.items():
        parameter = parameters[int(position)]
        optimizer.state[parameter] = {name: value.clone().to(parameter.device) for name, value in tensors.items()}

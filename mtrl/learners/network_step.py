"""One optimizer step of one network whose gradient is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.learners.state import load_optimizer_state, optimizer_state


class NetworkStep:
    """Adam over the parameters of one network, with the norm of its gradient clipped if a limit is given."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float, max_grad_norm: float | None) -> None:
        self.parameters = list(parameters)
        self._optimizer = torch.optim.Adam(self.parameters, lr, eps=eps, fused=True)
        self._max_grad_norm = max_grad_norm

    def __call__(self, loss: Tensor) -> Tensor:
        """Descends a loss [] whose graph nobody else needs, and returns the norm of its gradient, []."""
        return self.apply(torch.autograd.grad(loss, self.parameters))

    def apply(self, gradients: Iterable[Tensor]) -> Tensor:
        """Steps along a gradient, one tensor per parameter, and returns its norm before clipping, []."""
        # torch's fused Adam on the CPU reads a gradient as if its memory lay like the parameter's
        gradients = [gradient.contiguous() for gradient in gradients]
        norm = nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self._max_grad_norm, norm)
        self._optimizer.step()
        return norm

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the steps that follow; it is no part of the state."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""
        return optimizer_state(self._optimizer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        load_optimizer_state(self._optimizer, state)

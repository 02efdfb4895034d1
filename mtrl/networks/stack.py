"""A stack of equal multi-layer perceptrons for many tasks: one output layer for all of them, or one for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks.linear import head_linear, stacked_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # in place: a layer's output is not needed by its own backward, and memory is what small machines lack
    "relu": F.relu_,
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class StackShape:
    """Sizes of a `NetworkStack`."""

    num_networks: int
    num_tasks: int
    """0: the stack is not told the task."""
    in_features: int
    """Without the one-hot task id, which every stack that knows tasks appends to its input."""
    out_features: int
    widths: tuple[int, ...]
    activation: str
    layer_norm: bool
    multi_head: bool
    head_range: float
    """Output layers start uniform in [-head_range, head_range]."""


class NetworkStack(nn.Module):
    """`num_networks` perceptrons of equal shape, computed together.

    The input is followed by the one-hot task id in both architectures, if there are tasks at all. Hidden layers start
    He-uniform with zero bias as in the published Meta-World baselines. `shared` holds the parameters that all tasks
    share, `private` those of single tasks, which have a task axis.
    """

    def __init__(self, shape: StackShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        nets, tasks = shape.num_networks, shape.num_tasks
        self.shared = nn.ParameterList()
        self.private = nn.ParameterList()
        fan_in = shape.in_features + tasks
        for width in shape.widths:
            bound = math.sqrt(6.0 / fan_in)
            self.shared.append(_uniform((nets, width, fan_in), bound, generator))
            self.shared.append(nn.Parameter(torch.zeros(nets, width)))
            fan_in = width
        lead = (nets, tasks) if shape.multi_head else (nets,)
        head = self.private if shape.multi_head else self.shared
        head.append(_uniform((*lead, shape.out_features, fan_in), shape.head_range, generator))
        head.append(_uniform((*lead, shape.out_features), shape.head_range, generator))
        # to ask a ParameterList takes longer than a small product
        self._shared, self._private = tuple(self.shared), tuple(self.private)
        self.register_buffer("one_hot", torch.eye(tasks), persistent=False)

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return self.shape.num_tasks

    def forward(
        self,
        x: Tensor,
        task_id: Tensor | None,
        shared: Sequence[Tensor] | None = None,
        private: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Computes all networks of the stack.

        Args:
            x: [task, batch, in_features].
            task_id: int64 [task], which task each row of `x` belongs to; None if the stack is not told.
            shared: Numbers to use in place of `self.shared`, also expanded to [net, task, ...] for gradients per task.
            private: Numbers to use in place of `self.private`.

        Returns:
            [net, task, batch, out_features].
        """
        shared = self._shared if shared is None else shared
        private = self._private if private is None else private
        tasks, batch, _ = x.shape
        for layer in self.hidden(x, task_id, shared):
            hidden = layer
        if self.shape.multi_head:
            assert task_id is not None
            weight, bias = private[0][:, task_id], private[1][:, task_id]  # [net, task, out, in], [net, task, out]
            return head_linear(hidden.view(-1, tasks, batch, hidden.shape[2]), weight, bias)
        out = stacked_linear(hidden, *shared[-2:])
        return out.view(-1, tasks, batch, out.shape[2])

    def hidden(self, x: Tensor, task_id: Tensor | None, shared: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """Yields the output of each hidden layer, [net, task * batch, width]; arguments as `forward`."""
        shared = self._shared if shared is None else shared
        tasks, batch, _ = x.shape
        if task_id is not None:
            one_hot: Tensor = self.one_hot[task_id]  # type: ignore[index]  # a registered buffer
            x = torch.cat([x, one_hot.unsqueeze(1).expand(tasks, batch, -1)], dim=2)
        rows = x.flatten(0, 1)
        hidden = rows.expand(self.shape.num_networks, -1, -1)  # [net, task * batch, in]
        for layer in range(len(self.shape.widths)):
            hidden = stacked_linear(hidden, shared[2 * layer], shared[2 * layer + 1])
            if self.shape.layer_norm:
                hidden = F.layer_norm(hidden, hidden.shape[-1:])  # arXiv 1607.06450, without gain and bias
            hidden = ACTIVATIONS[self.shape.activation](hidden)
            yield hidden


def _uniform(size: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(size).uniform_(-bound, bound, generator=generator))

"""A Gaussian policy with memory: perceptron → gated recurrent unit → mean and standard deviation of actions.

What goes into it is for the learner to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks.gru import gru_sequence
from mtrl.networks.stack import ACTIVATIONS


@dataclass(frozen=True)
class RecurrentShape:
    """Sizes of a `RecurrentGaussian`."""

    in_features: int
    action_dim: int
    widths: tuple[int, ...]
    activation: str
    hidden_size: int
    initial_std: float
    min_std: float
    max_std: float


class RecurrentGaussian(nn.Module):
    """Sequence of inputs → means and log standard deviations of diagonal Gaussians.

    Both come from one linear layer through tanh: means lie in (-1, 1), as actions do, and log standard deviations
    between the logarithms of `min_std` and `max_std`, whose gradient does not die at the limits as that of a cut does.
    The deviation may depend on the history, so that a policy can stop to explore when it knows the task.

    Weights start Glorot-uniform, those from the hidden state to itself orthogonal, biases at zero; the output layer is
    a hundred times smaller, so that the first actions are noise around zero of `initial_std`.
    """

    def __init__(self, shape: RecurrentShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = nn.ParameterList()
        fan_in = shape.in_features
        for width in shape.widths:
            self.encoder.extend([_glorot(width, fan_in, generator), nn.Parameter(torch.zeros(width))])
            fan_in = width
        self.gru = nn.GRU(fan_in, shape.hidden_size, batch_first=True)
        from_input, from_hidden, *biases = self.gru.all_weights[0]
        with torch.no_grad():
            for gate in range(3):
                rows = slice(gate * shape.hidden_size, (gate + 1) * shape.hidden_size)
                from_input[rows] = _glorot(shape.hidden_size, fan_in, generator)
                nn.init.orthogonal_(from_hidden[rows], generator=generator)
            for bias in biases:
                bias.zero_()
        # to ask a ParameterList or a GRU for its weights takes longer than a small product
        self._layers = tuple(zip(self.encoder[::2], self.encoder[1::2], strict=True))
        self._recurrence = tuple(self.gru.all_weights[0])
        self.head_weight = _glorot(2 * shape.action_dim, shape.hidden_size, generator, scale=0.01)
        self.head_bias = nn.Parameter(torch.zeros(2 * shape.action_dim))
        low, high = math.log(shape.min_std), math.log(shape.max_std)
        self._middle, self._half = (low + high) / 2.0, (high - low) / 2.0
        self.compiled = True
        """Whether sequences with a gradient go through `gru_sequence` on the CPU, which is faster, or through torch."""
        self._offset = math.atanh((math.log(shape.initial_std) - self._middle) / self._half)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean and log standard deviation, [row, step, action_dim] each, and the hidden state after each step.

        Args:
            inputs: [row, step, in_features].
            hidden: [row, hidden_size], before the first step.
        """
        hiddens = self.hiddens(inputs, hidden)  # [row, step, hidden_size]
        return *self.gaussian(F.linear(hiddens, self.head_weight, self.head_bias)), hiddens

    def hiddens(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Returns the hidden state after each step, [row, step, hidden_size]; arguments as `forward`."""
        encoded = self._encoded(inputs)
        from_input, from_hidden, *biases = self._recurrence
        if self.compiled and encoded.requires_grad and encoded.device.type == "cpu":
            return gru_sequence(F.linear(encoded, from_input, biases[0]), hidden, from_hidden, biases[1])
        found: Tensor = self.gru(encoded, hidden.unsqueeze(0))[0]
        return found

    def _encoded(self, inputs: Tensor) -> Tensor:
        """Returns what the recurrence sees of inputs [..., in_features]."""
        activation = ACTIVATIONS[self.shape.activation]
        for weight, bias in self._layers:
            inputs = activation(F.linear(inputs, weight, bias))
        return inputs

    def gaussian(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation, [..., action_dim] each, of what the last layer gives.

        Args:
            out: [..., 2 * action_dim].
        """
        mean, log_std = out.chunk(2, dim=-1)
        return torch.tanh(mean), self._middle + self._half * torch.tanh(log_std + self._offset)

    @property
    def log_std_curve(self) -> tuple[float, float, float]:
        """a, b, c of log standard deviation = a + b tanh(x + c), x being what the last layer gives."""
        return self._middle, self._half, self._offset

    def no_memory(self, num_rows: int) -> Tensor:
        """Returns the hidden state at the start of a trial: zeros [row, hidden_size]."""
        return self.head_bias.new_zeros(num_rows, self.shape.hidden_size)


def _glorot(fan_out: int, fan_in: int, generator: torch.Generator, scale: float = 1.0) -> nn.Parameter:
    bound = scale * math.sqrt(6.0 / (fan_in + fan_out))
    return nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator))

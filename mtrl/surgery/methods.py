"""The ways to make one gradient of the tasks' gradients: each gives the weights of a sum over tasks.

A method is a pure function of the Gram matrix [net, task, task] and a generator on its device; it returns float64
[net, task]. `combine` in `gram.py` applies the weights; `build.py` chooses the method and the reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.surgery.gram import squared_norm
from mtrl.surgery.pcgrad import pcgrad_weights, random_orders


def mean(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Returns 1 for every task: plain training. Draws nothing."""
    return torch.ones(gram.shape[:2], dtype=torch.float64, device=gram.device)


def pcgrad(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the weights of PCGrad with fresh random orders."""
    nets, tasks, _ = gram.shape
    return pcgrad_weights(gram, random_orders(nets, tasks, generator))


def direction_only(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Returns weights that give PCGrad's direction the norm of the plain sum.

    Ablation in Fig. 3 of arXiv 2001.06782. Where PCGrad's gradients cancel, there is no direction: the weights are 0.
    """
    weights = pcgrad(gram, generator)
    plain = mean(gram, generator)
    return weights * _norm_ratio(squared_norm(gram, plain), squared_norm(gram, weights))


def magnitude_only(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Returns weights that give the plain sum's direction the norm of PCGrad.

    Ablation in Fig. 3 of arXiv 2001.06782. Where the plain gradients cancel, there is no direction: the weights are 0.
    """
    weights = pcgrad(gram, generator)
    plain = mean(gram, generator)
    return plain * _norm_ratio(squared_norm(gram, weights), squared_norm(gram, plain))


def _norm_ratio(wanted: Tensor, given: Tensor) -> Tensor:
    """Returns the factor [net, 1] from a given to a wanted squared norm [net]; 0 where the given one is 0."""
    ratio = torch.where(given == 0.0, 0.0, (wanted / given).sqrt())
    return ratio.unsqueeze(1)

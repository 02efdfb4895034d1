"""Gradients per task from one backward pass against as many passes as there are tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtrl.networks.linear import stacked_linear
from mtrl.surgery.per_task import expand_for_tasks, per_task_gradients, per_task_gradients_generic

NETS, TASKS, BATCH = 2, 3, 5


class TinyNetworks:
    """Two networks of one shared hidden layer and a head per task, with a plain product per task."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype, generator=generator)

        self.obs = random(TASKS, BATCH, 4)
        self.target = random(TASKS, BATCH)
        self.shared = [random(NETS, 6, 4).requires_grad_(), random(NETS, 6).requires_grad_()]
        self.private = [random(NETS, TASKS, 6).requires_grad_()]

    def losses(self, leaves: Sequence[Tensor] | None = None) -> Tensor:
        """Returns [task], with the shared parameters or with leaves [net, task, ...] in their place."""
        weight, bias = leaves or [
            parameter.unsqueeze(1).expand(-1, TASKS, *parameter.shape[1:]) for parameter in self.shared
        ]
        hidden = torch.tanh(torch.einsum("tbi,ntoi->ntbo", self.obs, weight) + bias.unsqueeze(2))
        q = torch.einsum("ntbo,nto->ntb", hidden, self.private[0])
        return (q - self.target).square().mean(dim=(0, 2))


def _separate(networks: TinyNetworks) -> list[list[Tensor]]:
    """Returns the gradient of each loss by each shared parameter from a graph of its own, [task][parameter]."""
    return [list(torch.autograd.grad(networks.losses()[task], networks.shared)) for task in range(TASKS)]


def test_one_backward_gives_the_gradient_of_every_task() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    found = per_task_gradients(networks.losses(leaves), leaves).shared
    separate = _separate(networks)
    for position, parameter in enumerate(networks.shared):
        assert found[position].shape == (NETS, TASKS, parameter[0].numel())
        for task in range(TASKS):
            expected = separate[task][position].flatten(1)
            torch.testing.assert_close(found[position][:, task], expected, rtol=1e-12, atol=1e-12)


def test_the_generic_way_gives_the_same_as_one_backward() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    fast = per_task_gradients(networks.losses(leaves), leaves, networks.private)
    generic = per_task_gradients_generic(networks.losses(), networks.shared, networks.private)
    for block, parameter_block in zip(fast.shared, generic.shared, strict=True):
        assert parameter_block.shape[:2] == (1, TASKS)
        flat = block.transpose(0, 1).reshape(1, TASKS, -1)  # the generic way takes both networks as one
        torch.testing.assert_close(parameter_block, flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.private, generic.private, rtol=1e-12, atol=1e-12)


def test_the_mean_of_the_gradients_is_the_gradient_of_the_mean_loss() -> None:
    networks = TinyNetworks(torch.float32)
    leaves = expand_for_tasks(networks.shared, TASKS)
    found = per_task_gradients(networks.losses(leaves), leaves).shared
    expected = torch.autograd.grad(networks.losses().mean(), networks.shared)
    for block, gradient in zip(found, expected, strict=True):
        # float32 sums in another order.
        assert (block.mean(dim=1) - gradient.flatten(1)).norm() <= 1e-6 * gradient.norm()


def test_private_parameters_get_the_gradient_of_their_own_task() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    (found,) = per_task_gradients(networks.losses(leaves), leaves, networks.private).private
    assert found.shape == networks.private[0].shape
    for task in range(TASKS):
        (expected,) = torch.autograd.grad(networks.losses()[task], networks.private)
        torch.testing.assert_close(found[:, task], expected[:, task], rtol=1e-12, atol=1e-12)


def test_leaves_show_parameters_that_were_changed_in_place() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    with torch.no_grad():
        networks.shared[0].add_(1.0)
    assert leaves[0].untyped_storage().data_ptr() == networks.shared[0].untyped_storage().data_ptr()
    torch.testing.assert_close(networks.losses(leaves), networks.losses())


def test_no_gradient_is_left_on_parameters() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    per_task_gradients(networks.losses(leaves), leaves, networks.private)
    assert all(tensor.grad is None for tensor in [*networks.shared, *networks.private])


def test_leaves_serve_every_update_from_the_same_memory() -> None:
    x = torch.randn(NETS, TASKS * BATCH, 4, generator=torch.Generator().manual_seed(1))
    shared = [torch.randn(NETS, 6, 4), torch.randn(NETS, 6)]
    leaves = expand_for_tasks(shared, TASKS)
    places = set()
    for _ in range(3):
        losses = stacked_linear(x, *leaves).square().unflatten(1, (TASKS, BATCH)).mean(dim=(0, 2, 3))
        found = per_task_gradients(losses, leaves).shared
        fresh = expand_for_tasks(shared, TASKS)
        again = stacked_linear(x, *fresh).square().unflatten(1, (TASKS, BATCH)).mean(dim=(0, 2, 3))
        for block, expected in zip(found, torch.autograd.grad(again.sum(), fresh), strict=True):
            torch.testing.assert_close(block, expected.flatten(2))
        places.add(found[0].data_ptr())
        shared[0].mul_(-0.5)
    assert len(places) == 1


def test_a_recurrent_network_gets_its_gradients_the_generic_way() -> None:
    torch.manual_seed(0)  # nn.GRU takes no generator
    gru = nn.GRU(3, 4)
    x = torch.randn(6, TASKS, 3, generator=torch.Generator().manual_seed(0))

    def losses() -> Tensor:
        output, _ = gru(x)
        return output.square().mean(dim=(0, 2))

    found = per_task_gradients_generic(losses(), list(gru.parameters())).shared
    for task in range(TASKS):
        expected = torch.autograd.grad(losses()[task], list(gru.parameters()))
        for block, gradient in zip(found, expected, strict=True):
            torch.testing.assert_close(block[0, task], gradient.flatten())


def test_a_parameter_that_a_task_does_not_use_has_a_gradient_of_zero_there() -> None:
    first, second = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    found = per_task_gradients_generic(torch.stack([first**2, first * second]), [first, second]).shared
    torch.testing.assert_close(found, (torch.tensor([[[4.0], [3.0]]]), torch.tensor([[[0.0], [2.0]]])))


def test_a_parameter_that_no_task_uses_is_refused() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(7, requires_grad=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        per_task_gradients_generic(used * 2.0, [used, unused])


def test_losses_without_a_task_axis_are_refused() -> None:
    networks = TinyNetworks()
    leaves = expand_for_tasks(networks.shared, TASKS)
    with pytest.raises(ValueError, match="one loss per task"):
        per_task_gradients(networks.losses(leaves).mean(), leaves)
    with pytest.raises(ValueError, match="one loss per task"):
        per_task_gradients_generic(networks.losses().mean(), networks.shared)


def test_leaves_without_a_task_axis_are_refused() -> None:
    networks = TinyNetworks()
    with pytest.raises(ValueError, match="expand_for_tasks"):
        per_task_gradients(networks.losses(), networks.shared)

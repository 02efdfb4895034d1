"""The methods that `surgery.method` names: their norms, directions and reductions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtrl.config import SURGERY_METHODS, ConfigError, SurgeryConfig
from mtrl.surgery.build import METHODS, build_surgery, private_scale
from mtrl.surgery.gram import combine, gram

TASKS = 5


def _gradients() -> Tensor:
    """[net, task, param] with many conflicts, float64."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(2, TASKS, 3, dtype=torch.float64, generator=generator)
    return plane @ torch.randn(2, 3, 20, dtype=torch.float64, generator=generator)


def _update(method: str, gradients: Tensor, reduction: str = "sum") -> Tensor:
    surgery = build_surgery(SurgeryConfig(method=method, reduction=reduction), gradients.shape[1])
    return combine(gradients, surgery(gram([gradients]), torch.Generator().manual_seed(1)))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_every_method_of_the_settings_can_be_built() -> None:
    assert set(METHODS) == set(SURGERY_METHODS)


def test_mean_and_sum_are_those_of_the_gradients() -> None:
    gradients = _gradients()
    torch.testing.assert_close(_update("mean", gradients, "mean"), gradients.mean(dim=1))
    torch.testing.assert_close(_update("mean", gradients, "sum"), gradients.sum(dim=1))


@pytest.mark.parametrize("method", SURGERY_METHODS)
def test_sum_is_the_number_of_tasks_times_mean(method: str) -> None:
    gradients = _gradients()
    torch.testing.assert_close(_update(method, gradients, "sum"), TASKS * _update(method, gradients, "mean"))


@pytest.mark.parametrize("method", SURGERY_METHODS)
def test_without_conflict_every_method_is_plain_training(method: str) -> None:
    gradients = _gradients().abs()
    torch.testing.assert_close(_update(method, gradients, "mean"), gradients.mean(dim=1))


def test_pcgrad_differs_from_plain_training_in_direction_and_norm() -> None:
    plain, pcgrad = _update("mean", _gradients()), _update("pcgrad", _gradients())
    assert (_unit(plain) * _unit(pcgrad)).sum(dim=1).max() < 0.99
    assert (plain.norm(dim=1) / pcgrad.norm(dim=1) - 1).abs().min() > 0.01


def test_direction_only_has_the_direction_of_pcgrad_and_the_norm_of_plain_training() -> None:
    update = _update("direction_only", _gradients())
    torch.testing.assert_close(_unit(update), _unit(_update("pcgrad", _gradients())))
    torch.testing.assert_close(update.norm(dim=1), _update("mean", _gradients()).norm(dim=1))


def test_magnitude_only_has_the_direction_of_plain_training_and_the_norm_of_pcgrad() -> None:
    update = _update("magnitude_only", _gradients())
    torch.testing.assert_close(_unit(update), _unit(_update("mean", _gradients())))
    torch.testing.assert_close(update.norm(dim=1), _update("pcgrad", _gradients()).norm(dim=1))


@pytest.mark.parametrize("method", SURGERY_METHODS)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients_that_cancel_or_vanish_give_no_update(method: str, scale: float) -> None:
    gradient = torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0))
    gradients = scale * torch.cat([gradient, 3 * gradient, -4 * gradient], dim=1)
    update = _update(method, gradients)
    # Products of float32 gradients are right to 1e-7 of their norms.
    assert update.norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("method", SURGERY_METHODS)
def test_nan_in_a_gradient_reaches_every_update(method: str) -> None:
    gradients = _gradients()
    gradients[:, 0, 0] = float("nan")
    assert _update(method, gradients)[:, 0].isnan().all()


@pytest.mark.parametrize("method", [method for method in SURGERY_METHODS if method != "mean"])
def test_surgery_for_a_single_task_is_refused_with_the_fix(method: str) -> None:
    with pytest.raises(ConfigError, match=r"set surgery\.method=mean") as error:
        build_surgery(SurgeryConfig(method=method), num_tasks=1)
    assert error.value.key == "surgery.method"
    assert method in error.value.problem


def test_a_single_task_trains_without_surgery() -> None:
    gradients = _gradients()[:, :1]
    torch.testing.assert_close(_update("mean", gradients, "mean"), gradients[:, 0])


def test_private_gradients_are_reduced_like_shared_ones() -> None:
    config = SurgeryConfig(reduction="mean")
    assert private_scale(config, 4) == 0.25
    assert private_scale(replace(config, reduction="sum"), 4) == 1.0

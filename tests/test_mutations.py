"""Broken on purpose, the code must fail a law; a mutation that passes means that the law tests nothing."""

import dataclasses

import laws
import pytest
import torch

from mtrl.learners.mtsac import MultiTaskSac
from mtrl.networks.stack import NetworkStack
from mtrl.rollout import collector
from mtrl.surgery import methods

REAL_TARGET = MultiTaskSac.critic_target
REAL_FORWARD = NetworkStack.forward
REAL_BLOCK = collector.Block


def next_action_from_obs(monkeypatch):
    def broken(self, batch):
        return REAL_TARGET(self, dataclasses.replace(batch, next_obs=batch.obs))

    monkeypatch.setattr(MultiTaskSac, "critic_target", broken)


def truncation_treated_as_termination(monkeypatch):
    def broken(**columns):
        return REAL_BLOCK(**{**columns, "terminated": columns["terminated"] | columns["truncated"]})

    monkeypatch.setattr(collector, "Block", broken)


def projected_against_projected_gradients(monkeypatch):
    """Projects against what the projections have made of the other gradients, not against the original ones."""

    def broken(gram, generator):
        others = methods.random_orders(*gram.shape[:2], generator)[0].tolist()
        return _project(gram[0], others, originals=False)

    monkeypatch.setattr(methods, "pcgrad", broken)


def own_gradient_projected(monkeypatch):
    """Projects against the task's own gradient too, after the others."""

    def broken(gram, generator):
        others = methods.random_orders(*gram.shape[:2], generator)[0].tolist()
        return _project(gram[0], [[*order, task] for task, order in enumerate(others)], originals=True)

    monkeypatch.setattr(methods, "pcgrad", broken)


def _project(gram, orders, *, originals):
    coefficients = torch.eye(len(gram), dtype=torch.float64)
    for i, order in enumerate(orders):
        for j in order:
            other = torch.eye(len(gram), dtype=torch.float64)[j] if originals else coefficients[j]
            inner = coefficients[i] @ gram @ other
            if inner < 0:
                coefficients[i] = coefficients[i] - inner / (other @ gram @ other) * other
    return coefficients.sum(dim=0, keepdim=True)


def heads_mixed_up(monkeypatch):
    def broken(self, x, task_id, shared=None, private=None):
        return REAL_FORWARD(self, x, torch.roll(task_id, 1), shared, private)

    monkeypatch.setattr(NetworkStack, "forward", broken)


def target_not_updated(monkeypatch):
    monkeypatch.setattr(MultiTaskSac, "_update_targets", lambda self: None)


MUTATIONS = {
    next_action_from_obs: laws.next_action_is_drawn_at_next_obs,
    truncation_treated_as_termination: laws.time_limit_does_not_end_the_bootstrap,
    projected_against_projected_gradients: laws.pcgrad_is_algorithm_1,
    own_gradient_projected: laws.pcgrad_is_algorithm_1,
    heads_mixed_up: laws.head_belongs_to_its_task,
    target_not_updated: laws.target_critics_follow_the_critics,
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_broken_code_fails_a_law(mutation, monkeypatch):
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        MUTATIONS[mutation]()

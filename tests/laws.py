"""Laws that learning must keep, as functions: `test_laws.py` holds the code to them, `test_mutations.py` breaks it.

Each raises AssertionError where its law is broken.
"""

from __future__ import annotations

import copy

import builders
import numpy as np
import torch

from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.networks.actor import squashed_sample
from mtrl.rollout.collector import Collector
from mtrl.surgery import methods
from mtrl.surgery.gram import gram


def next_action_is_drawn_at_next_obs() -> None:
    """The target equals one computed here from next_obs with the same noise."""
    learner = builders.filled_learner()
    batch = learner.sample()
    noise_state = learner.state_dict()["streams"]["noise"]
    target = learner.critic_target(batch)
    noise = torch.randn(batch.action.shape, generator=_generator(noise_state))
    with torch.no_grad():
        mean, log_std = learner.actor(batch.next_obs, batch.task_id)
        action, log_prob = squashed_sample(mean, log_std, noise)
        q = learner.target_critics(batch.next_obs, action, batch.task_id)
        value = torch.minimum(q[0], q[1]) - learner.log_alpha.exp()[:, None] * log_prob
        expected = batch.reward + 0.99 * (1 - batch.terminated) * value
    torch.testing.assert_close(target, expected)


def time_limit_does_not_end_the_bootstrap() -> None:
    """Where every reward is 1 and only a time limit ends episodes, a critic that answers 1 / (1 - gamma) is right."""
    learner = builders.filled_learner(num_tasks=2)
    learner.replay.clear(0)
    learner.replay.clear(1)
    envs = builders.CountingEnvs(num_envs=2, horizon=3)
    block = _collect(envs, steps=30)
    assert block.truncated.any()
    for env in range(2):
        learner.replay.add(
            env,
            np.zeros((30, 5)),
            block.action[:, env],
            block.reward[:, env],
            np.zeros((30, 5)),
            block.terminated[:, env],
        )
    with torch.no_grad():
        for parameter in learner.target_critics.parameters():
            parameter.zero_()
        learner.target_critics.stack.private[1].fill_(1 / (1 - 0.99))
        learner.log_alpha.fill_(-100.0)
    torch.testing.assert_close(learner.critic_target(learner.sample()), torch.full((2, 8), 100.0), rtol=1e-4, atol=0)


def pcgrad_is_algorithm_1() -> None:
    """The weighted sum equals the double loop over tasks that the paper prints, for the same random orders."""
    generator = torch.Generator().manual_seed(3)
    for trial in range(20):
        gradients = torch.randn(1, 5, 4, generator=generator)
        state = generator.get_state()
        weights = methods.pcgrad(gram([gradients]), generator)
        generator.set_state(state)
        orders = methods.random_orders(1, 5, generator)[0].tolist()
        expected = _algorithm_1(gradients[0].double().numpy(), orders)
        found = (weights[0] @ gradients[0].double()).numpy()
        scale = float(gradients.norm(dim=2).max())
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, err_msg=f"trial {trial}")


def head_belongs_to_its_task() -> None:
    """Changing the head of one task changes the output of that task and of no other, in whatever order tasks come."""
    learner = builders.filled_learner()
    obs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 1])
    before, _ = learner.actor(obs, order)
    with torch.no_grad():
        learner.actor.stack.private[1][:, 1] += 1.0
    after, _ = learner.actor(obs, order)
    changed = (after != before).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True]


def target_critics_follow_the_critics() -> None:
    """After an update the target critics have moved by tau of the way to the new critics."""
    learner = builders.filled_learner(tau=0.1)
    before = copy.deepcopy(learner.target_critics)
    learner.update()
    for old, new, source in zip(
        before.parameters(), learner.target_critics.parameters(), learner.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source.detach())
        assert not torch.equal(new, old)


LAWS = (
    next_action_is_drawn_at_next_obs,
    time_limit_does_not_end_the_bootstrap,
    pcgrad_is_algorithm_1,
    head_belongs_to_its_task,
    target_critics_follow_the_critics,
)


def _algorithm_1(gradients: np.ndarray, orders: list[list[int]]) -> np.ndarray:
    total = np.zeros(gradients.shape[1])
    for i, order in enumerate(orders):
        projected = gradients[i].copy()
        for j in order:
            inner = projected @ gradients[j]
            if inner < 0:
                projected -= inner / (gradients[j] @ gradients[j]) * gradients[j]
        total += projected
    return total


def _collect(envs: builders.CountingEnvs, steps: int):
    collector = Collector(envs, builders.StandingStill(), torch.Generator(), seeds=[0] * envs.num_envs)
    return collector.collect(CollectRequest({}, 0, Unit.STEPS, steps, Mode.RANDOM))


def _generator(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator

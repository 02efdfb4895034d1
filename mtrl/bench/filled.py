"""A learner with a replay full of random transitions, that may update for ever."""

from __future__ import annotations

import dataclasses

import numpy as np

from mtrl.config import RunConfig
from mtrl.learners.device import choose_device
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.networks.build import Suite

OBS_DIM, ACTION_DIM = 39, 4
"""Of Meta-World."""


def filled_learner(config: RunConfig, num_tasks: int) -> MultiTaskSac:
    """Returns a learner of so many tasks of Meta-World's sizes, with 10,000 transitions of each."""
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, capacity_per_task=10_000))
    suite = Suite(tuple(f"task-{task}" for task in range(num_tasks)), OBS_DIM, ACTION_DIM)
    learner = MultiTaskSac(config, suite, choose_device(config.device))
    draws = np.random.default_rng(0)
    for task in range(num_tasks):
        n = config.replay.capacity_per_task
        obs = draws.normal(size=(n, OBS_DIM))
        learner.replay.add(task, obs, draws.uniform(-1, 1, (n, ACTION_DIM)), draws.uniform(0, 10, n), obs, np.zeros(n))
    learner.env_steps = 10**12
    return learner

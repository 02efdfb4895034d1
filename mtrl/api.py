"""The small Python API: train a configuration, load a trained policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mtrl import train as training
from mtrl.checkpoint import load_state, newest_checkpoint
from mtrl.config_io import load_config
from mtrl.data import Array
from mtrl.learners.build import build_policy
from mtrl.learners.protocol import Mode, Previous
from mtrl.rollout.build import build_suite


class LoadedPolicy:
    """A trained policy: observation → deterministic action."""

    def __init__(self, run: Path) -> None:
        """Reads the newest good checkpoint of a run.

        Raises:
            ConfigError: If the folder is no run.
            CheckpointError: If it holds no good checkpoint.
            ValueError: If the policy has a memory.
        """
        config = training.resumed_config(run, ())
        suite = build_suite(config)
        folder, _ = newest_checkpoint(run)
        weights = load_state(folder)["policy"]
        self.task_names = suite.task_names
        self._obs_dim = suite.obs_dim
        self._policy = build_policy(config, suite)
        if self._policy.initial_state(1) is not None:
            raise ValueError(
                f"{config.algorithm} remembers what it did, which an observation alone does not tell; "
                "run its episodes with mtrl evaluate, or with a Collector and build_policy"
            )
        self._policy.load({name: value.numpy() for name, value in weights.items()})

    def __call__(self, obs: Array, task: str | None = None) -> Array:
        """Returns actions in [-1, 1].

        Args:
            obs: [obs_dim] or [n, obs_dim], without a one-hot task id.
            task: Name of the task; may be left out if the policy knows only one.

        Returns:
            float32 [action_dim] or [n, action_dim].

        Raises:
            ValueError: If the task is not one the policy was trained on, or the observation has the wrong size.
        """
        if task is None and len(self.task_names) > 1:
            raise ValueError(f"the policy knows {len(self.task_names)} tasks; name one: {', '.join(self.task_names)}")
        if task is not None and task not in self.task_names:
            raise ValueError(f"{task} is not a task of this policy; known: {', '.join(self.task_names)}")
        rows = np.atleast_2d(np.asarray(obs, np.float32))
        if rows.shape[1] != self._obs_dim:
            raise ValueError(f"observations have {rows.shape[1]} numbers; the policy takes {self._obs_dim}")
        slot = torch.full((len(rows),), 0 if task is None else self.task_names.index(task))
        blank = Previous(torch.zeros(len(rows), 0), torch.zeros(len(rows)), torch.zeros(len(rows)))
        state = self._policy.initial_state(len(rows))
        step = self._policy.act(torch.from_numpy(rows), blank, state, slot, Mode.DETERMINISTIC, torch.Generator())
        action: Array = step.action.numpy()
        return action[0] if np.ndim(obs) == 1 else action


def load_policy(run: str | Path) -> LoadedPolicy:
    """Returns the policy of a run directory's newest good checkpoint."""
    return LoadedPolicy(Path(run))


def train(config: str | Path, overrides: Sequence[str] = (), *, init_from: str | Path | None = None) -> Path:
    """Trains a configuration file and returns the run directory.

    Args:
        config: YAML file.
        overrides: `key=value` settings, as on the command line.
        init_from: Run directory whose network weights to start from.
    """
    start = [f"init_from={init_from}"] if init_from is not None else []
    return training.train(load_config(Path(config), [*overrides, *start]), _Silent()).run


class _Silent:
    """A display that shows nothing."""

    def say(self, text: str) -> None:
        """Does nothing."""

    def update(self, env_steps: int, gradient_steps: int, success: float | None) -> None:
        """Does nothing."""

"""PPO with task embeddings: skills in a space that tasks share, and a network that recognises them by what they do.

Hausman et al. 2018, Learning an Embedding Space for Transferable Robot Skills (ICLR), with PPO as in garage's TE-PPO.
An episode draws a point z from its task's Gaussian; the policy sees the observation and z. Rewards are raised where z
can be inferred from the newest observations and the action, and embeddings are kept from collapsing by their entropy.
The loop around it is `on_policy.py`; differences from the paper and from garage are in docs/algorithms/te_ppo.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Metrics, Trajectories
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.on_policy import MultiTaskOnPolicy
from mtrl.learners.ppo import Ppo, shares
from mtrl.learners.state import load_optimizer_state, optimizer_state
from mtrl.losses.policy_gradient import masked_mean
from mtrl.networks.build import Suite, build_inference, build_task_embedding
from mtrl.networks.gaussian import entropy, log_prob
from mtrl.networks.task_embedding import TaskEmbeddingGaussian
from mtrl.seeding import torch_generator

_LARGEST_LOG_DENSITY = 3.0
_LOG_STD_RANGE = (-5.0, 2.0)  # of inferred embeddings


def task_embedding_ppo(config: RunConfig, suite: Suite, device: torch.device) -> MultiTaskOnPolicy:
    """Returns a learner with task embeddings; all random numbers come from the run's seed.

    Raises:
        ConfigError: If the surgery needs more tasks than there are.
    """
    weights = torch_generator(config.seed, "networks")
    network = build_task_embedding(config.network, config.on_policy, config.te_ppo, suite, weights).to(device)
    return MultiTaskOnPolicy(config, suite, network, TaskEmbeddingPpo(config, suite, network, device))


class TaskEmbeddingPpo:
    """PPO on rewards that hold how well the embedding is inferred, beside learning to infer it.

    In its batches each observation is followed by the noise of its episode, as the network takes it.
    """

    def __init__(self, config: RunConfig, suite: Suite, network: TaskEmbeddingGaussian, device: torch.device) -> None:
        self._config, self._te, self._network, self._device = config, config.te_ppo, network, device
        self._ppo = Ppo(config, network, device, self._encoder_loss)
        self.inference = build_inference(config.te_ppo, suite, torch_generator(config.seed, "inference")).to(device)
        self._optimizer = torch.optim.Adam(self.inference.parameters(), config.te_ppo.inference_lr, fused=True)
        self._draws = torch_generator(config.seed, "inference minibatches")
        self._task_id = torch.arange(network.num_tasks, device=device)

    def batch(self, trajectories: Trajectories) -> PolicyBatch:
        """Returns the episodes with the advantages of raised rewards; the baseline knows the noise too."""
        obs = np.concatenate([trajectories.obs, trajectories.extras["noise"]], axis=3)
        bonus = self._bonus(torch.from_numpy(obs), torch.from_numpy(trajectories.extras["sample"]))
        raised = dataclasses.replace(trajectories, obs=obs, reward=trajectories.reward + bonus.cpu().numpy())
        return policy_batch(raised, self._config.on_policy, self._device)

    def improve(self, batch: PolicyBatch, gradient_steps: int, env_steps: int) -> tuple[Metrics, int]:
        """Learns to infer the embeddings that acted, then makes the steps of PPO, which changes embeddings."""
        losses = []
        for _ in range(self._config.ppo.epochs):
            for index, valid in shares(batch.mask, self._config.ppo.minibatches, self._draws):
                loss = -masked_mean(self.log_density(batch.obs, batch.sample, index), valid)
                self._optimizer.zero_grad()
                loss.mean().backward()  # type: ignore[no-untyped-call]  # not annotated in torch
                self._optimizer.step()
                losses.append(loss.detach())
        metrics, made = self._ppo.improve(batch, gradient_steps, env_steps)
        values = {
            **metrics.values,
            "train/loss/inference": torch.stack(losses).mean(dim=0),
            "train/embedding_std": self._network.embedding()[1].detach().mean(dim=1),
        }
        return Metrics(values, metrics.matrices, metrics.num_samples), made + len(losses)

    def log_density(self, obs: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        """Returns log q(z | newest observations, action) of steps, [task, chosen]; z is a constant.

        Args:
            obs: [task, step, obs_dim + latent_dim], all episodes of a task one after the other.
            sample: [task, step, action_dim], before it was cut off at the limits of actions.
            index: int64 [task, chosen], which steps.
        """
        tasks = torch.arange(len(index), device=index.device).unsqueeze(1)
        length = obs.shape[1] // (self._config.on_policy.episodes * self._config.env.copies)
        newest = window_index(index, length, self._te.window)  # [task, chosen, window]
        observed = obs[tasks.unsqueeze(2), newest][..., : -self._te.latent_dim].flatten(2)
        action = sample[tasks, index].clamp(-1.0, 1.0)
        rows = torch.cat([observed, action], dim=2).flatten(0, 1).unsqueeze(0)  # [1, task * chosen, in]
        mean, log_std = self.inference(rows, None).view(*index.shape, -1).chunk(2, dim=2)
        with torch.no_grad():
            z = self._network.embedded(obs[tasks, index][..., -self._te.latent_dim :], self._task_id)
        return log_prob(z, mean, log_std.clamp(*_LOG_STD_RANGE))

    def state_dict(self) -> dict[str, Any]:
        """Returns what infers, optimizers and streams."""
        return {
            "ppo": self._ppo.state_dict(),
            "inference": self.inference.state_dict(),
            "inference_optimizer": optimizer_state(self._optimizer),
            "inference_minibatches": self._draws.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self._ppo.load_state_dict(state["ppo"])
        self.inference.load_state_dict(state["inference"])
        load_optimizer_state(self._optimizer, state["inference_optimizer"])
        self._draws.set_state(state["inference_minibatches"])

    @torch.no_grad()
    def _bonus(self, obs: Tensor, sample: Tensor) -> Tensor:
        """Returns what is added to the rewards, [task, episode, step], of obs and sample [task, episode, step, ...]."""
        tasks, episodes, steps, _ = obs.shape
        obs, sample = (tensor.to(self._device).flatten(1, 2) for tensor in (obs, sample))
        index = torch.arange(episodes * steps, device=self._device).expand(tasks, -1)
        # an episode of each task at a time: windows of all states together may not fit into memory
        found = torch.cat([self.log_density(obs, sample, part) for part in torch.split(index, steps, dim=1)], dim=1)
        cut_off = found.clamp(-_LARGEST_LOG_DENSITY, _LARGEST_LOG_DENSITY)
        return self._te.inference_coefficient * cut_off.view(tasks, episodes, steps)

    def _encoder_loss(self) -> Tensor:
        """Returns minus the weighted entropy of the embeddings of each task, [task]."""
        _, std = self._network.embedding()
        return -self._te.encoder_entropy_coefficient * entropy(std.log())


def window_index(index: Tensor, length: int, window: int) -> Tensor:
    """Returns the newest steps up to each step, [..., window], newest first; before an episode's first step it again.

    Args:
        index: int64, steps counted through all episodes of a task.
        length: Steps of an episode, padding included.
        window: How many.
    """
    step = index.unsqueeze(-1) % length - torch.arange(window, device=index.device)
    return index.unsqueeze(-1) // length * length + step.clamp(min=0)

"""RL² with PPO (arXiv 1611.02779, 1611.05763): a policy with memory learns to explore and to use what it found.

Each iteration collects one trial of every sampled task, several episodes that the memory lasts through, and improves
the policy by PPO (arXiv 1707.06347) on the return of whole trials. What adapts at meta-test is the memory alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envs.episodes import Assignment
from mtrl.config import RunConfig
from mtrl.data import Array, Block, Metrics
from mtrl.learners.annealing import ppo_lr
from mtrl.learners.meta_tasks import TaskSampler
from mtrl.learners.network_step import NetworkStep
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.learners.trials import TrialBatch, trial_batch
from mtrl.losses.policy_gradient import clipped_ratio_loss, masked_mean
from mtrl.networks.build import Suite, build_recurrent
from mtrl.networks.gaussian import entropy, log_prob
from mtrl.networks.recurrent import RecurrentGaussian
from mtrl.seeding import torch_generator

ADAM_EPS = 1e-5
"""Of the published baselines; Adam's own default is 1e-8."""


class Rl2:
    """Learns a recurrent policy. Its slots are the sampled tasks of an iteration."""

    on_policy = True
    replay = None

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device) -> None:
        """Builds the network and its optimizer; all random numbers come from streams of the seed.

        Raises:
            ConfigError: If the batch of tasks does not divide by the number of task classes.
        """
        self._config, self._suite, self._device = config, suite, device
        self._sampler = TaskSampler(config, suite)
        weights = torch_generator(config.seed, "networks")
        self.network = build_recurrent(config.network, config.on_policy, config.rl2, suite, weights).to(device)
        self._step = NetworkStep(self.network.parameters(), config.ppo.lr, ADAM_EPS, config.ppo.max_grad_norm)
        self._orders = torch_generator(config.seed, "minibatches")
        self._assignments: tuple[Assignment, ...] = ()
        self._trials: TrialBatch | None = None
        self._version = 0
        self._sent: dict[str, Array] | None = None
        self.env_steps = 0
        self.gradient_steps = 0

    @property
    def policy_network(self) -> RecurrentGaussian:
        """The network."""
        return self.network

    def request(self) -> CollectRequest:
        """Asks for a trial of each of newly sampled tasks."""
        if not self._assignments:
            self._assignments = self._sampler.sample()
        return CollectRequest(
            weights=self.policy_weights(),
            version=self._version,
            unit=Unit.TRIALS,
            amount=1,
            mode=Mode.EXPLORE,
            assignments=self._assignments,
            slots=tuple(range(len(self._assignments))),
            episodes_per_trial=self._config.meta.episodes,
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Takes in the trials.

        Raises:
            ValueError: If they are not one of each sampled task.
        """
        self._trials = trial_batch(blocks, self._config, self._suite.num_tasks, self._device)
        self.env_steps += sum(block.env_steps() for block in blocks)

    def behind(self) -> int:
        """Returns 1 when the trials of an iteration are there."""
        return int(self._trials is not None)

    def update(self) -> Metrics | None:
        """Makes all gradient steps of an iteration whose trials are there.

        What it finds are means over the steps of the last pass.
        """
        trials, ppo = self._trials, self._config.ppo
        if trials is None:
            return None
        self._step.set_lr(ppo_lr(self._config, self.env_steps - int(trials.mask.sum())))
        passes = 0
        for _ in range(ppo.epochs):
            passes += 1
            order = torch.randperm(len(trials.mask), generator=self._orders).to(self._device)
            found = [self._improve(trials.slots(share)) for share in order.tensor_split(ppo.minibatches)]
            values = {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}
            if ppo.target_kl is not None and values["train/kl"] > ppo.target_kl:
                break
        by_class = trials.episode_return.view(-1, self._suite.num_tasks, self._config.meta.episodes).mean(dim=0)
        values["train/return_first_episode"], values["train/return_last_episode"] = by_class[:, 0], by_class[:, -1]
        values["train/passes"] = torch.tensor(float(passes))
        self._version += 1
        self._sent, self._assignments, self._trials = None, (), None
        return Metrics(values, num_samples=passes * int(trials.mask.sum()))

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns nothing: what is worth a look is measured with every update."""
        return {}

    def policy_weights(self) -> dict[str, Array]:
        """Returns the network's weights; the same object until they change."""
        if self._sent is None:
            state = self.network.state_dict()
            self._sent = {name: number.detach().cpu().numpy().copy() for name, number in state.items()}
        return self._sent

    def state_dict(self) -> dict[str, Any]:
        """Returns network, optimizer, streams, counters and trials that have yet to be learned from."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._step.state_dict(),
            "sampler": self._sampler.state_dict(),
            "orders": self._orders.get_state(),
            "assignments": [[one.task_id, list(one.goals)] for one in self._assignments],
            "trials": {} if self._trials is None else self._trials.state_dict(),
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "version": self._version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict` of a learner of the same configuration."""
        self.load_weights(state)
        self._step.load_state_dict(state["optimizer"])
        self._sampler.load_state_dict(state["sampler"])
        self._orders.set_state(state["orders"])
        self._assignments = tuple(Assignment(task, tuple(goals)) for task, goals in state["assignments"])
        trials = {name: tensor.to(self._device) for name, tensor in state["trials"].items()}
        self._trials = TrialBatch(**trials) if trials else None
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self._version = int(state["version"])

    def forget_unfinished(self) -> None:
        """Does nothing: what is kept are whole trials."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over the network only."""
        self.network.load_state_dict(state["network"])
        self._version += 1
        self._sent = None

    def loss(self, trials: TrialBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of PPO on whole trials, [], and what it is made of; each trial counts as much as another."""
        mean, log_std = self._distributions(trials)
        found = log_prob(trials.sample, mean, log_std)
        found = torch.where(trials.mask, found, trials.log_prob)  # so that padding, whatever it is, has ratio 1
        surrogate = clipped_ratio_loss(
            found, trials.log_prob, trials.advantage, trials.mask, self._config.ppo.clip
        ).mean()
        spread = masked_mean(entropy(log_std), trials.mask).mean()
        log_ratio = (found - trials.log_prob).detach()
        far = ((log_ratio.exp() - 1.0).abs() > self._config.ppo.clip).to(log_ratio.dtype)
        values = {
            "train/loss/surrogate": surrogate.detach(),
            "train/entropy": spread.detach(),
            # an estimate that is never negative, of KL(policy that acted ‖ policy now)
            "train/kl": masked_mean(log_ratio.exp() - 1.0 - log_ratio, trials.mask).mean(),
            "train/clipped_share": masked_mean(far, trials.mask).mean(),
        }
        return surrogate - self._config.ppo.entropy_coefficient * spread, values

    def _improve(self, trials: TrialBatch) -> dict[str, Tensor]:
        """Makes one gradient step."""
        loss, values = self.loss(trials)
        self.gradient_steps += 1
        return {**values, "plasticity/grad_norm/policy": self._step(loss)}

    def _distributions(self, trials: TrialBatch) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation at every step of trials that begin without memory.

        With `rl2.bptt_steps` trials are cut into chunks whose hidden states at the start are constants, computed with
        the present weights.
        """
        slots, steps = trials.mask.shape
        nothing = self.network.no_memory(slots)
        chunk = self._config.rl2.bptt_steps
        if chunk is None or chunk >= steps:
            mean, log_std, _ = self.network(trials.inputs, nothing)
            return mean, log_std
        with torch.no_grad():
            hiddens = self.network.hiddens(trials.inputs, nothing)
            starts = torch.cat([nothing.unsqueeze(1), hiddens[:, chunk - 1 : -1 : chunk]], dim=1)  # [slot, chunk, ...]
        padded = torch.nn.functional.pad(trials.inputs, (0, 0, 0, -steps % chunk))
        mean, log_std, _ = self.network(padded.reshape(-1, chunk, padded.shape[2]), starts.flatten(0, 1))
        return tuple(out.reshape(slots, -1, out.shape[2])[:, :steps] for out in (mean, log_std))

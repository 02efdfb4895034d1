"""Multi-task soft actor-critic: MTSAC with a one-hot task id, MTMHSAC with a head per task, both with gradient surgery.

One update is critics → target critics → actor → temperatures, as in the published Meta-World baselines. Differences
from the papers are listed in docs/algorithms/mtsac.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Array, Batch, Block, Metrics
from mtrl.learners.descent import Descent
from mtrl.learners.device import choose_device
from mtrl.learners.graph import Capture, Update, build_graphs
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.learners.reward_scaling import RewardScaling
from mtrl.learners.state import load_optimizer_state, optimizer_state
from mtrl.losses import sac as losses
from mtrl.networks.actor import Actor, squashed_sample
from mtrl.networks.build import Suite, build_actor, build_critics
from mtrl.networks.plasticity import dormant_share, parameter_norm
from mtrl.profiling import named
from mtrl.replay.ring import Replay, on_device
from mtrl.seeding import torch_generator
from mtrl.surgery.build import build_surgery


class NonFiniteError(RuntimeError):
    """NaN or infinity where it would spoil training; the text names task, place and step."""


class MultiTaskSac:
    """Learns one policy for all tasks of a suite from replayed transitions."""

    on_policy = False

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device, capture: Capture | None = None) -> None:
        """Builds networks and optimizers; all random numbers come from the run's seed.

        Args:
            config: The run.
            suite: Its tasks.
            device: Of the networks.
            capture: Records updates with learner.compile=graph; None for CUDA's graphs.

        Raises:
            ConfigError: If the surgery needs more tasks than there are.
            ValueError: If the replay does not fit into memory.
        """
        self._sac, self._surgery_config, self._suite, self._device = config.sac, config.surgery, suite, device
        self._config = config
        surgery = build_surgery(config.surgery, suite.num_tasks)
        weights = torch_generator(config.seed, "networks")
        self.actor = build_actor(config.network, suite, weights).to(device)
        self.critics = build_critics(config.network, suite, weights).to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self._critic_numbers: list[Tensor] = list(self.critics.parameters())
        self._target_numbers: list[Tensor] = list(self.target_critics.parameters())
        self.log_alpha = torch.full(
            (suite.num_tasks,), float(np.log(config.sac.initial_alpha)), device=device, requires_grad=True
        )
        eps = config.sac.adam_eps
        adam: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"}
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), config.sac.actor_lr, eps=eps, **adam)
        self._critic_optimizer = torch.optim.Adam(self.critics.parameters(), config.sac.critic_lr, eps=eps, **adam)
        self._alpha_optimizer = torch.optim.Adam([self.log_alpha], config.sac.alpha_lr, **adam)
        self._noise = torch_generator(config.seed, "learner noise", device=device)
        self._draws = torch_generator(config.seed, "replay", device=self._replay_device())
        orders = torch_generator(config.seed, "surgery", device=device)
        descent = (config.surgery, surgery, orders, config.sac.max_grad_norm)
        on_gpu = device.type == "cuda"
        self._critic_descent = Descent(self.critics.stack, self._critic_optimizer, *descent, one_buffer=on_gpu)
        self._actor_descent = Descent(self.actor.stack, self._actor_optimizer, *descent, one_buffer=on_gpu)
        self._orders = orders
        self.replay = Replay(
            suite.num_tasks, config.replay.capacity_per_task, suite.obs_dim, suite.action_dim, self._replay_device()
        )
        self.reward_scaling = RewardScaling(config.sac, suite.num_tasks)
        self._slots = torch.arange(suite.num_tasks)  # on the CPU
        self._task_id = self._slots.to(device)
        # what updates read that is not theirs: it stays where it is, as graphs need it
        self._ranges = torch.zeros(3, suite.num_tasks, dtype=torch.int64, device=self._replay_device())
        self._reward_factors = torch.zeros(suite.num_tasks, device=device)
        self._target_entropy = (
            -float(suite.action_dim) if config.sac.target_entropy is None else config.sac.target_entropy
        )
        self._version = 0  # of the policy's weights: rises with every update and every load
        self._sent: tuple[int, dict[str, Array]] | None = None
        self._learned_from: Batch | None = None
        self.env_steps = 0
        self.gradient_steps = 0
        devices = (device, self.replay.device)
        self._graphs = build_graphs(config.learner, self._one_update, list(self._streams().values()), devices, capture)

    @property
    def policy_network(self) -> Actor:
        """The actor."""
        return self.actor

    def request(self) -> CollectRequest:
        """Asks for steps of every environment, with random actions until the warm-up is over."""
        warming_up = self.env_steps < self._warmup_steps
        return CollectRequest(
            weights=self.policy_weights(),
            version=self._version,
            unit=Unit.STEPS,
            amount=self._sac.collect_steps,
            mode=Mode.RANDOM if warming_up else Mode.EXPLORE,
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Puts the transitions of every block into the replay.

        Raises:
            NonFiniteError: If a block holds NaN or infinity.
        """
        for block in blocks:
            refuse_non_finite(block, self._suite, self.gradient_steps)
            self.reward_scaling.observe(block)
            self.replay.add_block(block)
            self.env_steps += block.env_steps()

    def update(self) -> Metrics | None:
        """Makes an update if the samples-per-insert ratio asks for one; as many as a graph has, if it asks for these.

        Losses are not looked at here, which would wait for the device: `records.py` refuses NaN when it reads them.
        """
        due = self.behind()
        if not due:
            return None
        self._tell_device()
        every = self._surgery_config.statistics_every
        until_measured = -self.gradient_steps % every if every else due
        if self._graphs is None or not until_measured:
            update = self._one_update(measure=bool(every) and not until_measured)
        else:
            update = self._graphs.run(min(due, until_measured))
        self.gradient_steps += update.metrics.num_updates
        self._version += update.metrics.num_updates
        self._learned_from = update.batch
        return update.metrics

    def _one_update(self, *, measure: bool = False) -> Update:
        """Makes an update from what the device was told; the host looks at nothing and waits for nothing."""
        with named("sample"):
            batch = self._drawn()
        with named("critics"):
            critic_metrics = self._update_critics(batch, measure)
            self._update_targets()
        with named("actor"):
            actor_metrics, log_prob = self._update_actor(batch, measure)
        with named("temperatures"):
            alpha_losses = self._update_alpha(log_prob)
        values = {**critic_metrics.values, **actor_metrics.values, "train/loss/alpha": alpha_losses}
        values["train/alpha"] = self.log_alpha.detach().exp()
        values["train/entropy"] = -log_prob.mean(dim=1)
        matrices = {**critic_metrics.matrices, **actor_metrics.matrices}
        return Update(Metrics(values, matrices, num_samples=batch.reward.numel()), batch)

    def behind(self) -> int:
        """Returns how many updates the samples-per-insert ratio asks for, none while a task has no transitions."""
        if not self.replay.sizes.all():
            return 0
        return max(0, self._updates_allowed() - self.gradient_steps)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns scales of rewards, norms of parameters and the share of dormant units on the last batch."""
        found: dict[str, Tensor] = {}
        if self._sac.reward_scaling == "per_task_return":
            found["norm/reward_scale"] = torch.from_numpy(self.reward_scaling.factors())
        for name, network in (("actor", self.actor), ("critic", self.critics)):
            found[f"plasticity/param_norm/{name}"] = parameter_norm(network)
        if self._learned_from is not None:
            batch = self._learned_from
            for name, stack, x in (
                ("actor", self.actor.stack, batch.obs),
                ("critic", self.critics.stack, torch.cat([batch.obs, batch.action], dim=-1)),
            ):
                found[f"plasticity/dormant/{name}"] = dormant_share(stack, x, batch.task_id)
        return found

    def sample(self) -> Batch:
        """Draws the batch of one update, [task, batch, ...], rewards scaled."""
        self._tell_device()
        return self._drawn()

    def _drawn(self) -> Batch:
        rows = self.replay.draw(self._ranges, self._sac.batch_size, self._draws)
        obs, action, reward, next_obs, terminated = (column.to(self._device) for column in rows)
        scaled = reward * self._reward_factors.unsqueeze(1)
        return Batch(obs, action, scaled, next_obs, terminated, self._task_id)

    def _tell_device(self) -> None:
        """Brings up to date what updates read and the host knows: what the replay holds, and scales of rewards."""
        self._ranges.copy_(self.replay.ranges(self._slots))
        self._reward_factors.copy_(on_device(self.reward_scaling.factors(), self._device))

    def critic_target(self, batch: Batch) -> Tensor:
        """Returns the critics' target [task, batch]; the next action is drawn at the next observation."""
        with torch.no_grad():
            mean, log_std = self.actor(batch.next_obs, batch.task_id)
            next_action, next_log_prob = squashed_sample(mean, log_std, self._normal(mean))
            next_q = self.target_critics(batch.next_obs, next_action, batch.task_id)
            alpha = self.log_alpha.exp()[batch.task_id]
            return losses.td_target(batch.reward, batch.terminated, next_q, next_log_prob, alpha, self._sac.gamma)

    def policy_weights(self) -> dict[str, Array]:
        """Returns the actor's weights; the same object until they change."""
        if self._sent is None or self._sent[0] != self._version:
            network = self.actor.state_dict()
            # one copy, for which the host waits once
            numbers = torch.cat([value.flatten() for value in network.values()]).cpu()
            parts = torch.split(numbers, [value.numel() for value in network.values()])
            weights = {
                name: part.view(value.shape).numpy() for (name, value), part in zip(network.items(), parts, strict=True)
            }
            self._sent = (self._version, weights)
        return self._sent[1]

    def state_dict(self) -> dict[str, Any]:
        """Returns networks, optimizers, streams and counters."""
        return {
            "actor": self.actor.state_dict(),
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "actor_optimizer": optimizer_state(self._actor_optimizer),
            "critic_optimizer": optimizer_state(self._critic_optimizer),
            "alpha_optimizer": optimizer_state(self._alpha_optimizer),
            "streams": {name: stream.get_state() for name, stream in self._streams().items()},
            "reward_scaling": self.reward_scaling.state_dict(),
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "learned_from": {} if self._learned_from is None else vars(self._learned_from),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict` of a learner of the same configuration."""
        self.load_weights(state)
        load_optimizer_state(self._actor_optimizer, state["actor_optimizer"])
        load_optimizer_state(self._critic_optimizer, state["critic_optimizer"])
        load_optimizer_state(self._alpha_optimizer, state["alpha_optimizer"])
        for name, stream in self._streams().items():
            saved = state["streams"][name]
            if saved.shape == stream.get_state().shape:  # else it was drawn from on another kind of device
                stream.set_state(saved)
        self.reward_scaling.load_state_dict(state["reward_scaling"])
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        if self._graphs is not None:
            self._graphs.forget()  # they step optimizers whose state is gone
        batch = {name: column.to(self._device) for name, column in state["learned_from"].items()}
        self._learned_from = Batch(**batch) if batch else None

    def forget_unfinished(self) -> None:
        """Drops the rewards of episodes under way."""
        self.reward_scaling.forget_unfinished()

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over networks and temperatures only, leaving optimizers, streams and counters as they are."""
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.target_critics.load_state_dict(state["target_critics"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self._version += 1

    def _update_critics(self, batch: Batch, measure: bool) -> Metrics:
        target = self.critic_target(batch)
        seen: list[Tensor] = []

        def loss_of(shared: Sequence[Tensor] | None, private: Sequence[Tensor] | None) -> Tensor:
            q = self.critics(batch.obs, batch.action, batch.task_id, shared, private)
            seen.append(q.detach())
            return losses.critic_loss(q, target)

        metrics = self._critic_descent.step(loss_of, measure, "critic")
        return Metrics({**metrics.values, "train/q": seen[0].mean(dim=(0, 2))}, metrics.matrices)

    def _update_targets(self) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(self._target_numbers, self._critic_numbers, self._sac.tau)

    def _update_actor(self, batch: Batch, measure: bool) -> tuple[Metrics, Tensor]:
        noise = self._normal(batch.action)
        alpha = self.log_alpha.detach().exp()[batch.task_id]
        frozen = [p.detach() for p in self.critics.stack.shared], [p.detach() for p in self.critics.stack.private]
        seen: list[Tensor] = []

        def loss_of(shared: Sequence[Tensor] | None, private: Sequence[Tensor] | None) -> Tensor:
            mean, log_std = self.actor(batch.obs, batch.task_id, shared, private)
            action, log_prob = squashed_sample(mean, log_std, noise)
            seen.append(log_prob.detach())
            q = self.critics(batch.obs, action, batch.task_id, *frozen)
            return losses.actor_loss(q, log_prob, alpha)

        metrics = self._actor_descent.step(loss_of, measure, "actor")
        return metrics, seen[0]

    def _update_alpha(self, log_prob: Tensor) -> Tensor:
        alpha_losses = losses.alpha_loss(self.log_alpha[self._task_id], log_prob, self._target_entropy)
        # each temperature has its own loss, so that nothing is averaged over tasks
        (self.log_alpha.grad,) = torch.autograd.grad(alpha_losses.sum(), self.log_alpha)
        self._alpha_optimizer.step()
        return alpha_losses.detach()

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._noise, device=self._device)

    def _updates_allowed(self) -> int:
        learnable = self.env_steps - self._warmup_steps
        per_update = self._sac.batch_size * self._suite.num_tasks
        return int(learnable * self._sac.samples_per_insert / per_update) if learnable >= 0 else 0

    @property
    def _warmup_steps(self) -> int:
        return self._sac.warmup_steps_per_task * self._suite.num_tasks

    def _streams(self) -> dict[str, torch.Generator]:
        return {"noise": self._noise, "replay": self._draws, "surgery": self._orders}

    def _replay_device(self) -> torch.device:
        chosen = self._config.replay.device
        return self._device if chosen == "auto" else choose_device(chosen, "replay.device")


def refuse_non_finite(block: Block, suite: Suite, gradient_steps: int) -> None:
    """Checks that a block holds numbers only.

    Raises:
        NonFiniteError: If not; names what is not a number, task, goal, worker and environment.
    """
    # obs before action: what an environment broke must not be blamed on the policy
    for name in ("obs", "action", "reward", "next_obs"):
        finite = np.isfinite(getattr(block, name)).reshape(*block.valid.shape, -1).all(axis=2) | ~block.valid
        if not finite.all():
            step, env = np.argwhere(~finite)[0]
            task, goal = suite.task_names[block.task_id[step, env]], block.goal_id[step, env]
            cause = "the policy's weights are" if name == "action" else "its environment's numbers are"
            raise NonFiniteError(
                f"{name} of {task} goal {goal} from worker {block.worker}, environment {env}, at update "
                f"{gradient_steps:,}: {cause} not finite. Nothing of the block was learned from; the last good "
                "checkpoint stays. Where the policy diverged, lower the learning rates or scale rewards down with "
                "sac.reward_scaling=constant"
            )

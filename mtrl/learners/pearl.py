"""PEARL (arXiv 1903.08254): soft actor-critic given a latent variable that an encoder infers from a task's experience.

Slots are sampled tasks: slot = task_id * num_goals + goal_id. All of them are collected once at the start; then each
iteration collects `meta.batch_size` slots with the prior, then with their posteriors, and makes its updates, each from
`pearl.meta_batch` slots at once. What the encoder sees of a slot is its newest collection, or one of the newest; what
actor and critics see is everything. Differences from the authors' code are listed in docs/algorithms/pearl.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from envs.episodes import Assignment
from mtrl.config import ConfigError, RunConfig, whole_episodes
from mtrl.data import Array, Batch, Block, Metrics
from mtrl.learners.device import choose_device
from mtrl.learners.meta_tasks import TaskSampler, tasks_per_class
from mtrl.learners.mtsac import refuse_non_finite
from mtrl.learners.network_step import NetworkStep
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.learners.soft_values import SoftValues, TargetCritics, ValueNetwork
from mtrl.losses import pearl as losses
from mtrl.losses import sac
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import Suite, build_context_encoder, build_latent_actor, build_latent_critics
from mtrl.networks.context import beside, context_rows, product_of_gaussians
from mtrl.networks.plasticity import parameter_norm
from mtrl.replay.ranges import NewestRanges
from mtrl.replay.ring import Replay, Transitions
from mtrl.seeding import torch_generator

SEEN_BY_ENCODER = ("initial", "prior", "posterior")
"""Tags of requests whose data become context; those of `extra` never do."""


class Phase(NamedTuple):
    """One request of an iteration's collection."""

    tag: str
    episodes: int


class Pearl:
    """Learns an actor, critics and an encoder from replayed transitions of many slots."""

    on_policy = False

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device) -> None:
        """Builds networks and optimizers; all random numbers come from streams of the seed.

        Raises:
            ConfigError: If the batch of sampled tasks does not divide by the number of task classes, or asks for more
                goals of a class than there are.
            ValueError: If the replay does not fit into memory.
        """
        self._config, self._pearl, self._sac = config, config.pearl, config.sac
        self._suite, self._device = suite, device
        self._per_class = _tasks_per_class(config, suite)
        self._sampler = TaskSampler(config, suite)
        self._plan = collection_plan(config)
        weights = torch_generator(config.seed, "networks")
        latent = config.pearl.latent_dim
        self.actor = build_latent_actor(config.network, suite, latent, weights).to(device)
        self.encoder = build_context_encoder(config.network, config.pearl, suite, weights).to(device)
        self.critics = build_latent_critics(config.network, suite, latent, weights).to(device)
        self.values: SoftValues = (
            TargetCritics(config, suite, device, self.critics)
            if config.pearl.learned_temperature
            else ValueNetwork(config, suite, device, weights)
        )
        self._acting = nn.ModuleDict({"actor": self.actor, "encoder": self.encoder})
        shared = (config.sac.adam_eps, config.sac.max_grad_norm)
        self._steps = {
            "actor": NetworkStep(self.actor.parameters(), config.sac.actor_lr, *shared),
            "critics": NetworkStep(self.critics.parameters(), config.sac.critic_lr, *shared),
            "encoder": NetworkStep(self.encoder.parameters(), config.pearl.encoder_lr, *shared),
        }
        replay_device = (
            device if config.replay.device == "auto" else choose_device(config.replay.device, "replay.device")
        )
        self._streams = {
            "noise": torch_generator(config.seed, "learner noise", device=device),
            "slots": torch_generator(config.seed, "meta batch"),
            "replay": torch_generator(config.seed, "replay", device=replay_device),
            "context": torch_generator(config.seed, "context", device=replay_device),
        }
        self.replay = Replay(
            suite.num_tasks * config.env.num_goals,
            config.replay.capacity_per_task,
            suite.obs_dim,
            suite.action_dim,
            replay_device,
        )
        self.contexts = NewestRanges(self.replay, config.pearl.contexts_kept)
        self._assignments: tuple[Assignment, ...] = ()
        self._place = 0  # phases of this iteration's collection that are done
        self._updates_due = 0
        self._posterior: dict[str, Array] = {}  # that the next phase acts with; empty: the prior
        self._version = 0
        self._sent: dict[str, Array] | None = None
        self.env_steps = 0
        self.gradient_steps = 0

    @property
    def policy_network(self) -> nn.Module:
        """Actor and encoder."""
        return self._acting

    def request(self) -> CollectRequest:
        """Asks for whole episodes: of slots that hold nothing yet, or of the next phase of an iteration."""
        if not self.replay.sizes.all():
            self._assignments, self._place, self._posterior = self._slots_without_data(), 0, {}
            phase = Phase("initial", whole_episodes(self._pearl.initial_steps, self._config.env.max_episode_steps))
        else:
            if not self._assignments:
                self._assignments = self._sampler.sample()
            phase = self._plan[self._place]
        return CollectRequest(
            weights={**self.policy_weights(), **self._posterior} if self._posterior else self.policy_weights(),
            version=self._version,
            unit=Unit.EPISODES,
            amount=phase.episodes,
            mode=Mode.EXPLORE,
            assignments=self._assignments,
            slots=tuple(self._slot(one) for one in self._assignments),
            tag=phase.tag,
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Puts the transitions into the replay and, but for those of `extra`, into the contexts of their slots.

        Raises:
            NonFiniteError: If a block holds NaN or infinity.
        """
        for block in blocks:
            refuse_non_finite(block, self._suite, self.gradient_steps)
        tag = blocks[0].tag
        slots = np.unique(np.concatenate([block.slot[block.valid] for block in blocks]))
        if tag in ("initial", "prior"):
            self.contexts.begin(slots)
        for block in blocks:
            self.replay.add_block(block)
            self.env_steps += block.env_steps()
        if tag in SEEN_BY_ENCODER:
            self.contexts.extend(slots)
        self._version += 1
        if tag == "initial":
            self._assignments = ()
            return
        self._place += 1
        if self._place < len(self._plan):
            self._posterior = self._posterior_of(slots)
        else:
            self._updates_due = self._pearl.updates_per_iteration
            self._assignments, self._place, self._posterior = (), 0, {}

    def behind(self) -> int:
        """Returns how many updates of the iteration are left."""
        return self._updates_due

    def update(self) -> Metrics | None:
        """Makes one update from slots drawn with replacement, in the order of the authors' code."""
        if not self._updates_due:
            return None
        slots = torch.randint(self.replay.num_slots, (self._pearl.meta_batch,), generator=self._streams["slots"])
        batch, context = self.sample(slots), self.sample_context(slots)
        mean, variance = product_of_gaussians(*self.encoder(context))
        z = mean + variance.sqrt() * self._normal(mean)
        kl = losses.kl_from_prior(mean, variance)
        q_loss, q = self.q_loss(batch, z)
        critic_norm, encoder_norm = self._step_critics_and_encoder(q_loss + self._pearl.kl_weight * kl)
        z = z.detach()
        actor_loss, q_of_actor, log_prob = self.actor_loss(batch, z)
        actor_norm = self._steps["actor"](actor_loss)
        metrics = self.values.learn(batch, z, q_of_actor, log_prob)
        self.gradient_steps += 1
        self._updates_due -= 1
        self._version += 1
        self._sent = None
        values = {
            **metrics,
            "train/loss/critic": q_loss.detach(),
            "train/loss/actor": actor_loss.detach(),
            "train/kl": kl.detach() / len(slots),
            "train/q": q.mean(),
            "train/entropy": -log_prob.mean(),
            "train/posterior_std": variance.detach().sqrt().mean(),
            "train/posterior_spread": mean.detach().std(dim=0, correction=0).mean(),
            "plasticity/grad_norm/critic": critic_norm,
            "plasticity/grad_norm/encoder": encoder_norm,
            "plasticity/grad_norm/actor": actor_norm,
        }
        return Metrics(values, num_samples=batch.reward.numel())

    def q_loss(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the Q-functions' loss [], whose gradient reaches `z` [task, latent], and their values."""
        target = self.values.target(batch, z.detach(), self.act)
        q = self.critics(beside(batch.obs, z), batch.action, None)  # [critic, task, batch]
        return losses.q_loss(q, target), q.detach()

    def actor_loss(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the actor's loss [], which leaves `z` alone.

        Returns:
            The loss, and without gradient the Q-values [critic, task, batch] of the policy's actions and their
            log-probability [task, batch].
        """
        z = z.detach()
        mean, log_std = self.actor(beside(batch.obs, z), None)
        noise = self._normal(mean)
        action, log_prob = squashed_sample(mean, log_std, noise)
        q = self.critics(beside(batch.obs, z), action, None)
        loss = sac.actor_loss(q, log_prob, self.values.temperature().expand(len(z))).mean()
        pearl = self._pearl
        loss = loss + losses.policy_regularization(
            mean,
            log_std,
            mean + log_std.exp() * noise,
            pearl.mean_regularization,
            pearl.log_std_regularization,
            pearl.pre_tanh_regularization,
        )
        return loss, q.detach(), log_prob.detach()

    def act(self, obs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns actions of the policy for obs [task, batch, obs_dim], and their log-probability [task, batch]."""
        mean, log_std = self.actor(beside(obs, z), None)
        return squashed_sample(mean, log_std, self._normal(mean))

    def sample(self, slots: Tensor) -> Batch:
        """Draws transitions of slots [task] from all that was collected, [task, batch, ...], rewards scaled."""
        rows = self.replay.sample(slots, self._sac.batch_size, self._streams["replay"])
        obs, action, reward, next_obs, terminated = (column.to(self._device) for column in rows)
        return Batch(obs, action, reward * self._sac.reward_scale, next_obs, terminated, slots.to(self._device))

    def sample_context(self, slots: Tensor) -> Tensor:
        """Draws context of slots [task] from a collection of each, [task, context, in_features]."""
        return self._encoder_rows(self.contexts.sample(slots, self._pearl.context_size, self._streams["context"]))

    def _encoder_rows(self, rows: Transitions) -> Tensor:
        """Returns what the encoder sees of transitions, [task, context, in_features]."""
        next_obs = rows.next_obs if self._pearl.next_obs_in_context else None
        reward = rows.reward * self._pearl.context_reward_scale
        return context_rows(rows.obs, rows.action, reward, next_obs).to(self._device)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns norms of parameters."""
        networks = {"actor": self.actor, "critic": self.critics, "encoder": self.encoder}
        return {f"plasticity/param_norm/{name}": parameter_norm(network) for name, network in networks.items()}

    def policy_weights(self) -> dict[str, Array]:
        """Returns the weights of actor and encoder; the same object until they change."""
        if self._sent is None:
            numbers = self._acting.state_dict()
            self._sent = {name: number.detach().cpu().numpy().copy() for name, number in numbers.items()}
        return self._sent

    def state_dict(self) -> dict[str, Any]:
        """Returns networks, optimizers, streams, counters, contexts and where the iteration's collection stands."""
        return {
            "actor": self.actor.state_dict(),
            "encoder": self.encoder.state_dict(),
            "critics": self.critics.state_dict(),
            "values": self.values.state_dict(),
            "optimizers": {name: step.state_dict() for name, step in self._steps.items()},
            "streams": {name: stream.get_state() for name, stream in self._streams.items()},
            "sampler": self._sampler.state_dict(),
            "contexts": self.contexts.state_dict(),
            "assignments": [[one.task_id, list(one.goals)] for one in self._assignments],
            "place": self._place,
            "posterior": self._posterior,
            "updates_due": self._updates_due,
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "version": self._version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict` of a learner of the same configuration."""
        self.load_weights(state)
        self.values.load_state_dict(state["values"])
        for name, step in self._steps.items():
            step.load_state_dict(state["optimizers"][name])
        for name, stream in self._streams.items():
            saved = state["streams"][name]
            if saved.shape == stream.get_state().shape:  # else it was drawn from on another kind of device
                stream.set_state(saved)
        self._sampler.load_state_dict(state["sampler"])
        self.contexts.load_state_dict(state["contexts"])
        self._assignments = tuple(Assignment(task, tuple(goals)) for task, goals in state["assignments"])
        self._place, self._updates_due = int(state["place"]), int(state["updates_due"])
        self._posterior = dict(state["posterior"])
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self._version = int(state["version"])

    def forget_unfinished(self) -> None:
        """Does nothing: what is kept are whole episodes."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over networks and temperature only, leaving optimizers, streams and counters as they are."""
        self.actor.load_state_dict(state["actor"])
        self.encoder.load_state_dict(state["encoder"])
        self.critics.load_state_dict(state["critics"])
        self.values.load_weights(state["values"])
        self._version += 1
        self._sent = None

    def _slots_without_data(self) -> tuple[Assignment, ...]:
        """Returns the next goals of every class of which nothing was collected; after the last come the first."""
        num_tasks, num_goals = self._suite.num_tasks, self._config.env.num_goals
        lacking = (self.replay.sizes.reshape(num_tasks, num_goals) == 0).any(axis=0)  # [goal]
        begin = int(np.argmax(lacking))
        return tuple(
            Assignment(task, ((begin + copy) % num_goals,))
            for copy in range(self._per_class)
            for task in range(num_tasks)
        )

    def _slot(self, assignment: Assignment) -> int:
        return assignment.task_id * self._config.env.num_goals + assignment.goals[0]

    @torch.no_grad()
    def _posterior_of(self, slots: Array) -> dict[str, Array]:
        """Returns posteriors of some slots from their newest contexts, the prior of all others, [slot, latent] each."""
        chosen = torch.from_numpy(slots.astype(np.int64))
        rows = self.contexts.sample_newest(chosen, self._pearl.context_size, self._streams["context"])
        mean, variance = product_of_gaussians(*self.encoder(self._encoder_rows(rows)))
        shape = (self.replay.num_slots, self._pearl.latent_dim)
        found = {"z_mean": np.zeros(shape, np.float32), "z_variance": np.ones(shape, np.float32)}
        found["z_mean"][slots], found["z_variance"][slots] = mean.cpu().numpy(), variance.cpu().numpy()
        return found

    def _step_critics_and_encoder(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Steps both along the gradient of one loss and returns its norms."""
        critics, encoder = self._steps["critics"], self._steps["encoder"]
        gradients = torch.autograd.grad(loss, [*critics.parameters, *encoder.parameters])
        of_critics = gradients[: len(critics.parameters)]
        return critics.apply(of_critics), encoder.apply(gradients[len(of_critics) :])

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._streams["noise"], device=self._device)


def collection_plan(config: RunConfig) -> list[Phase]:
    """Returns the requests of an iteration: the prior's episodes, then those with posteriors, one by one.

    Each episode from the posterior has the newest one, as in the authors' code.
    """
    pearl, horizon = config.pearl, config.env.max_episode_steps
    return [
        Phase("prior", whole_episodes(pearl.prior_steps, horizon)),
        *[Phase("posterior", 1)] * whole_episodes(pearl.posterior_steps, horizon),
        *[Phase("extra", 1)] * whole_episodes(pearl.extra_steps, horizon),
    ]


def _tasks_per_class(config: RunConfig, suite: Suite) -> int:
    per_class = tasks_per_class(config, suite.num_tasks)
    if per_class > config.env.num_goals:
        raise ConfigError(
            "meta.batch_size",
            f"{config.meta.batch_size} asks for {per_class} goals of each of the {suite.num_tasks} task classes, "
            f"env.num_goals stores {config.env.num_goals}; take at most {suite.num_tasks * config.env.num_goals}",
        )
    return per_class

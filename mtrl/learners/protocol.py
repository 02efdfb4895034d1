"""The protocols between learners, policies, engines and evaluation. No algorithm here.

An engine executes a learner's requests and calls its methods in order; it knows no algorithm. A learner does no I/O,
knows no Ray and logs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from envs.episodes import Assignment
from envs.simulator import Actor
from mtrl.data import Array, Block, Metrics
from mtrl.replay.ring import Replay


class Mode(StrEnum):
    """How a policy chooses actions."""

    EXPLORE = "explore"
    DETERMINISTIC = "deterministic"
    RANDOM = "random"


class Unit(StrEnum):
    """What the amount of a request counts, for each environment."""

    STEPS = "steps"
    EPISODES = "episodes"
    TRIALS = "trials"


class Boundary(StrEnum):
    """What begins for a policy."""

    EPISODE = "episode"
    TRIAL = "trial"


@dataclass(frozen=True)
class CollectRequest:
    """What a learner wants collected next; every environment of every collector takes part."""

    weights: Mapping[str, Array]
    """Weights of the policy; `[slot, ...]` where environments act with different ones."""
    version: int
    """Version of the weights, higher with every change."""
    unit: Unit
    """What `amount` counts."""
    amount: int
    """Steps, episodes or trials that each environment does."""
    mode: Mode
    """How actions are chosen."""
    assignments: tuple[Assignment, ...] | None = None
    """What each environment runs, in the order of all environments; None leaves them as they are."""
    slots: tuple[int, ...] | None = None
    """Slot of each environment; None: its task."""
    episodes_per_trial: int = 1
    """Length of a trial."""
    tag: str = ""
    """Destination, handed back with the blocks."""
    number: int = 0
    """By which an engine tells requests apart, handed back with the blocks."""


class Previous(NamedTuple):
    """What happened at the step before, across the ends of episodes; zeros before the first step of a trial."""

    action: torch.Tensor
    """[env, action_dim]."""
    reward: torch.Tensor
    """[env]."""
    done: torch.Tensor
    """[env], 1 where an episode ended."""


class PolicyStep(NamedTuple):
    """What a policy answers."""

    action: torch.Tensor
    """[env, action_dim] in [-1, 1]."""
    state: torch.Tensor | None
    """[env, ...] recurrent state after the step."""
    extras: Mapping[str, torch.Tensor]
    """[env, ...] to be stored with the step."""


class Policy(Protocol):
    """Acts in environments with weights that a learner sent."""

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over weights; shapes as in the request."""

    def initial_state(self, num_envs: int) -> torch.Tensor | None:
        """Returns the recurrent state at the start, [env, ...], or None for a policy without memory."""

    def begin(self, state: torch.Tensor | None, mask: torch.Tensor, boundary: Boundary) -> torch.Tensor | None:
        """Returns the state after an episode or a trial begins where `mask` [env] is set."""

    def act(
        self,
        obs: torch.Tensor,
        previous: Previous,
        state: torch.Tensor | None,
        slot: torch.Tensor,
        mode: Mode,
        generator: torch.Generator,
    ) -> PolicyStep:
        """Chooses actions for obs [env, obs_dim] of the given slots [env]."""


@dataclass(frozen=True)
class Roll:
    """A policy that is about to act several times in compiled code."""

    actor: Actor
    """What acts."""
    finish: Callable[[int], PolicyStep]
    """Takes the number of steps made, and returns the last action, the state after it, and extras [step, env, ...]."""


@runtime_checkable
class RollingPolicy(Policy, Protocol):
    """A policy that can also act in compiled code, with the numbers of `act` but for rounding."""

    def roll(
        self,
        num_steps: int,
        previous: Previous,
        state: torch.Tensor | None,
        slot: torch.Tensor,
        mode: Mode,
        generator: torch.Generator,
    ) -> Roll | None:
        """Prepares for at most so many steps; None where it must `act`. The generator is drawn from for those made."""


class Adapter(Protocol):
    """Adapts to sampled tasks at meta-test, many slots at once; what it finds are weights for the policy.

    Exploring and testing may go on with different weights: MAML explores with the initial ones until all its episodes
    are there, PEARL with the newest posterior. Environments and policy begin a new trial with every set of weights, so
    that what is to be remembered is in these.
    """

    every_episode: bool
    """Whether `observe` wants episodes one by one."""

    def begin(self, weights: Mapping[str, Array], num_slots: int) -> Mapping[str, Array]:
        """Takes over a learner's `policy_weights`, forgets what was observed, and returns weights to explore with."""

    def observe(self, block: Block) -> Mapping[str, Array]:
        """Takes in whole episodes of every slot and returns weights to explore with from now on."""

    def adapt(self) -> Mapping[str, Array]:
        """Returns weights adapted to everything observed since `begin`."""


class Learner(Protocol):
    """Learns from what it requests. Methods are called in the order request, receive, update until None."""

    on_policy: bool
    """True if data of older weights must not be learned from; asynchronous collection is then refused."""
    env_steps: int
    """Environment steps received so far, all tasks together."""
    gradient_steps: int
    """Updates made so far."""

    @property
    def replay(self) -> Replay | None:
        """Transitions that outlive an update and are saved beside the state; None if there are none."""

    @property
    def policy_network(self) -> torch.nn.Module | None:
        """The module whose parameters `policy_weights` returns, for frameworks that keep one; None if there is none."""

    def request(self) -> CollectRequest:
        """Returns what to collect next."""

    def receive(self, blocks: Sequence[Block]) -> None:
        """Takes in the blocks of one request."""

    def update(self) -> Metrics | None:
        """Makes one update, or returns None when none is due before more data."""

    def behind(self) -> int:
        """Returns how many updates are due."""

    def diagnostics(self) -> Mapping[str, torch.Tensor]:
        """Returns tag → [] or [task] of what is worth a look at every record of the log; changes nothing."""

    def policy_weights(self) -> Mapping[str, Array]:
        """Returns the newest weights of the policy, which evaluation acts with; the same object until they change."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that decides the future, except the replay: tensors and JSON-able values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""

    def forget_unfinished(self) -> None:
        """Drops what is kept of episodes under way: after a resume that could not go on with them, none will end."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over only the networks of such a state, to begin a new run with them."""

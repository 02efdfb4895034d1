"""What a vector environment needs of the thing that moves many environments at once."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """The result of one step of all environments, before any of them is restarted.

    Attributes:
        obs: [env, obs].
        reward: [env].
        info: Name → numbers [env]; always holds `success`, 1.0 or 0.0 for this very step.
        unstable: The environments [env] whose physics broke in this step; their obs is the last good one, reward
            and info are 0.
    """

    obs: FloatArray
    reward: FloatArray
    info: dict[str, FloatArray]
    unstable: BoolArray


@dataclass(frozen=True)
class Actor:
    """A policy as machine code, which chooses actions between steps without Python.

    Attributes:
        function: Address of a C function that takes six int64: `context`, a group, a turn (0 for the first step of a
            roll), and addresses of the observations float64 [env, obs], of the rewards float64 [env] of the step
            before (at turn 0: anything), and of the actions float32 [env, action], where it writes those of the
            group's environments. Several threads call it at once, each for another group.
        context: Handed to the function.
        num_groups: Into which it divides the environments.
        sizes: (env, obs, action), the lengths of these arrays; with others it would read and write past their ends.
    """

    function: int
    context: int
    num_groups: int
    sizes: tuple[int, int, int]


@dataclass(frozen=True)
class Steps:
    """Several steps of all environments, one after the other, before any of them is restarted.

    Attributes:
        action: float32 [step, env, action], what the actor chose.
        obs: [step, env, obs], where each step led to.
        reward: [step, env].
        info: Name → numbers [step, env]; as in `Step`.
        unstable: [step, env]; as in `Step`. Only the last step may hold any.
    """

    action: npt.NDArray[np.float32]
    obs: FloatArray
    reward: FloatArray
    info: dict[str, FloatArray]
    unstable: BoolArray

    def last(self) -> Step:
        """Returns the last one."""
        info = {name: rows[-1] for name, rows in self.info.items()}
        return Step(self.obs[-1].copy(), self.reward[-1], info, self.unstable[-1])  # restarts are written into obs


class Simulator(Protocol):
    """Environments of known tasks that are restarted one by one and stepped together; it knows no episodes.

    Attributes:
        obs_low: Bounds that every observation of these tasks keeps [obs].
        obs_high: The same, upper.
        action_dim: Numbers per action; each lies in -1..1.
        description: What simulates, with versions; a state is only restored under the same one.
        class_names: The name of each task that metaworld's evaluation expects, by task id.
    """

    obs_low: FloatArray
    obs_high: FloatArray
    action_dim: int
    description: str
    class_names: tuple[str, ...]

    def assign(self, task_id: IntArray) -> None:
        """Sets the tasks [env] and thereby the number of environments; all need a restart afterwards."""

    def restart(self, index: int, goal_id: int) -> FloatArray:
        """Begins an episode of one environment and returns its first observation [obs]."""

    def step(self, action: npt.NDArray[np.float32], active: BoolArray | None = None) -> Step:
        """Moves environments by one step; action is [env, action].

        Only those in the mask `active` [env] move, None being all; the others keep obs, with reward and info 0.
        """

    def breakdown(self, index: int) -> str:
        """Returns why the physics of an environment broke in its last step, in words for a log."""

    def get_state(self) -> dict[str, Any]:
        """Returns all that decides the future, as arrays and JSON-able values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned; tasks must be assigned as they were then."""

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Returns a picture [height, width, 3] of one environment."""

    def close(self) -> None:
        """Frees what the simulator holds."""


@runtime_checkable
class RollingSimulator(Simulator, Protocol):
    """A simulator that can make several steps with a policy in compiled code.

    Attributes:
        most_steps_at_once: Of a `roll`.
    """

    most_steps_at_once: int

    def roll(self, actor: Actor, num_steps: int, active: BoolArray, *, until_success: bool) -> Steps:
        """Makes steps with an actor's actions, until one breaks physics or, if it is said, succeeds.

        Args:
            actor: Acts in all environments.
            num_steps: At most; 1 to `most_steps_at_once`.
            active: As for `step`.
            until_success: Whether the first success of an active environment ends it.
        """

"""What a vector environment needs of the thing that moves many environments at once."""

from dataclasses import dataclass
from typing import Any, Protocol

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

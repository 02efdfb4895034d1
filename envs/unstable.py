"""Episodes that ended because the physics broke: logged, and kept in files from which they can be run again.

The files lie in the folder `unstable` of the cache (`cache.py`), a few kilobytes each.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from envs.cache import cache_folder, write_whole
from envs.simulator import FloatArray

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnstableEpisode:
    """An episode up to the step in which the physics broke.

    Attributes:
        task: For example `reach-v3`.
        goal_id: Which of the task's goals it ran.
        goal: Random vector [dim] of that goal.
        seed: Of the vector environment's streams.
        environment: Its place in the batch.
        reason: What broke, in the simulator's words.
        simulator: What simulated, with versions.
        actions: float32 [step, action], all of the episode; the last one broke it.
    """

    task: str
    goal_id: int
    goal: FloatArray
    seed: int
    environment: int
    reason: str
    simulator: str
    actions: npt.NDArray[np.float32]

    def report(self) -> None:
        """Logs the episode, and keeps it in a file, which the log names."""
        try:
            kept = f"its actions are in {self.save()}"
        except OSError as error:
            kept = f"its actions could not be kept ({error.strerror}); set MTRL_CACHE to a writable folder"
        _LOGGER.warning(
            "unstable physics (%s) in %s, environment %d, goal %d %s, seed %d, step %d, action %s; the episode ends as "
            "truncated; %s",
            self.reason,
            self.task,
            self.environment,
            self.goal_id,
            np.asarray(self.goal).tolist(),
            self.seed,
            len(self.actions),
            self.actions[-1].tolist(),
            kept,
        )

    def save(self) -> Path:
        """Writes the episode to a file named after its content and returns it.

        Raises:
            OSError: If that is not possible.
        """
        content = io.BytesIO()
        np.savez_compressed(content, **asdict(self))
        digest = hashlib.sha256(self.actions.tobytes() + np.asarray(self.goal).tobytes()).hexdigest()[:12]
        file = cache_folder() / "unstable" / f"{self.task}-goal{self.goal_id}-{digest}.npz"
        write_whole(file, content.getvalue())
        return file


def load(file: Path) -> UnstableEpisode:
    """Returns an episode that was kept.

    Raises:
        OSError: If the file cannot be read.
    """
    with np.load(file) as held:
        return UnstableEpisode(
            task=str(held["task"]),
            goal_id=int(held["goal_id"]),
            goal=held["goal"],
            seed=int(held["seed"]),
            environment=int(held["environment"]),
            reason=str(held["reason"]),
            simulator=str(held["simulator"]),
            actions=held["actions"],
        )


def replay(episode: UnstableEpisode, backend: str = "auto") -> Sequence[bool]:
    """Runs an episode again and returns for each step whether the physics broke in it; the last one should.

    Raises:
        ValueError: If the backend cannot be used here.
    """
    from envs.making import make_simulator  # which reports episodes itself

    simulator = make_simulator([episode.task], {episode.task: episode.goal[None]}, goal_visible=True, backend=backend)
    simulator.assign(np.zeros(1, np.int32))
    simulator.restart(0, 0)
    broke = [bool(simulator.step(action[None]).unstable[0]) for action in episode.actions]
    simulator.close()
    return broke

"""Updates as CUDA graphs: what one update computes is recorded once and then started as a whole.

Started operation by operation, an update of small networks waits for Python most of the time. A graph reads and writes
the same memory at every replay, so what changes between updates (sizes of the replay, scales of rewards, weights) must
lie in memory that stays where it is, and nothing in it may wait for the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.config import LearnerConfig
from mtrl.data import Batch, Metrics

_LOGGER = logging.getLogger(__name__)
_WARM_UPS = 3
"""Updates made operation by operation first: libraries and optimizers allocate at their first use."""

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Function that computes a tensor → function that computes it again, into the same memory."""


class Update(NamedTuple):
    """What one update leaves behind."""

    metrics: Metrics
    batch: Batch


class UpdateGraphs:
    """Replays several updates in one go, or one.

    Metrics of a replay are means over its updates.
    """

    def __init__(self, one_update: Callable[[], Update], capture: Capture, sizes: Sequence[int]) -> None:
        """Records nothing yet.

        Args:
            one_update: Makes an update from memory that stays where it is; its metrics have no matrices.
            capture: Usually `CudaCapture`.
            sizes: Numbers of updates for which there is to be a graph.
        """
        self._one_update, self._capture = one_update, capture
        self._sizes = sorted(set(sizes), reverse=True)
        self._broken = False
        self.forget()

    def forget(self) -> None:
        """Drops all graphs, as memory that they use was replaced; they are recorded anew when they are needed."""
        self._graphs: dict[int, _Graph] = {}
        self._warm_ups_left = _WARM_UPS

    def run(self, most: int) -> Update:
        """Makes up to `most` updates, at least one."""
        size = next((size for size in self._sizes if size <= most), 0)
        if self._broken or not size or self._warm_ups_left:
            self._warm_ups_left = max(0, self._warm_ups_left - 1)
            return self._one_update()
        if size not in self._graphs:
            try:
                self._graphs[size] = _Graph(self._one_update, self._capture, size)
            except RuntimeError as error:
                self._broken = True
                reason = str(_cause(error)).strip().partition("\n")[0]
                _LOGGER.warning("learner.compile=graph failed (%s); updates go on operation by operation", reason)
                return self._one_update()
        return self._graphs[size].replay()


def _cause(error: BaseException) -> BaseException:
    """Returns the first of the errors that led to one: the end of a recording fails because of what came before."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class _Graph:
    """A number of updates in a row."""

    def __init__(self, one_update: Callable[[], Update], capture: Capture, size: int) -> None:
        self._one_update, self._size = one_update, size
        self._shapes: Mapping[str, torch.Size] = {}
        self._last: Update | None = None
        self._replay = capture(self._compute)

    def replay(self) -> Update:
        """Makes the updates."""
        packed = self._replay().clone()  # the next replay overwrites it
        assert self._last is not None, "the replay has computed"
        parts = torch.split(packed, [shape.numel() for shape in self._shapes.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        samples = self._size * self._last.metrics.num_samples
        return Update(Metrics(values, num_samples=samples, num_updates=self._size), self._last.batch)

    def _compute(self) -> Tensor:
        """Makes the updates and returns the means of their metrics, one after the other, [number]."""
        updates = [self._one_update() for _ in range(self._size)]
        self._last = updates[-1]
        self._shapes = {name: value.shape for name, value in self._last.metrics.values.items()}
        columns = [torch.stack([update.metrics.values[name] for update in updates]) for name in self._shapes]
        return torch.cat([column.mean(dim=0).flatten() for column in columns])


class CudaCapture:
    """Records CUDA graphs."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        """Takes the generators that the updates draw from, all on the GPU."""
        self._generators = generators

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Returns what replays `compute`; recording it changes nothing but the memory that is reserved.

        Raises:
            RuntimeError: If it cannot be recorded.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        before = [generator.get_state() for generator in self._generators]
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                result = compute()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # recording has another one, which it leaves only at its good end
            for generator, state in zip(self._generators, before, strict=True):
                fresh = torch.Generator(generator.device)  # the old state believes that it is still being recorded
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def build_graphs(
    config: LearnerConfig,
    one_update: Callable[[], Update],
    generators: Sequence[torch.Generator],
    devices: Sequence[torch.device],
    capture: Capture | None = None,
) -> UpdateGraphs | None:
    """Returns graphs if a configuration asks for them and they are possible; says in one line if they are not.

    Args:
        config: Of the learner.
        one_update: As `UpdateGraphs`.
        generators: That updates draw from.
        devices: On which updates compute.
        capture: None for CUDA's.
    """
    if config.compile == "eager":
        return None
    if capture is None and any(device.type != "cuda" for device in devices):
        where = " and ".join(dict.fromkeys(map(str, devices)))
        _LOGGER.warning("learner.compile=graph needs a GPU for all of it, not %s; updates go on without", where)
        return None
    return UpdateGraphs(one_update, capture or CudaCapture(generators), (config.updates_per_graph, 1))

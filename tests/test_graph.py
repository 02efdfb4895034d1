"""Updates as graphs: the same numbers as operation by operation, and nothing in them that the host decides.

Without a GPU a recorder stands for CUDA: it notes the operations of an update and does them again on the same memory,
so that a number which the host put in stays what it was when it was noted, as in a graph.
"""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from builders import filled_learner, suite, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtrl.config import ConfigError, LearnerConfig, SurgeryConfig
from mtrl.engine.progress import Progress
from mtrl.learners.build import build_learner
from mtrl.learners.graph import CudaCapture
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.surgery.gram import GPU_CHUNK

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


WAITING = {
    getattr(torch.ops.aten, name)
    for name in (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "repeat_interleave",
        "equal",
    )
}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class Recorder(TorchDispatchMode):
    """Does what CUDA graphs do, on the CPU and slowly."""

    def __init__(self):
        super().__init__()
        self.log = []
        self.captures = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function.overloadpacket not in WAITING, f"{function}: the host waits for the device"
        masks = tree_leaves(args[1]) if function.overloadpacket in INDEXING else []
        assert not any(isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks), function
        result = function(*args, **kwargs)
        known = {memory(tensor) for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(result) if memory(tensor) not in known]
        writes = function._schema.is_mutable
        if made or writes:  # all else are views, which stay
            self.log.append(
                (function, args, kwargs, [memory(tensor) not in known for tensor in tensors(result)], result)
            )
        return result

    def capture(self, compute):
        self.captures += 1
        recorder = Recorder()
        with recorder:
            result = compute()
        first = [True]  # recording has done it once, which CUDA's would not

        def replay():
            if not first:
                recorder.again()
            first.clear()
            return result

        return replay

    def again(self):
        with torch._C._AutoDispatchBelowAutograd():  # what was noted are operations of the backward pass, too
            for function, args, kwargs, is_new, result in self.log:
                outcome = function(*args, **kwargs)
                for old, new, copied in zip(tensors(result), tensors(outcome), is_new, strict=True):
                    if copied:
                        old.copy_(new)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


def learners(capture, method="pcgrad", statistics_every=0, updates_per_graph=4, one_buffer=False, **sac):
    """Returns an eager learner, and one with graphs, alike in all else.

    With `one_buffer` both keep gradients as on a GPU.
    """
    eager = filled_learner(num_tasks=3, method=method, samples_per_insert=1.0, **sac)
    config = dataclasses.replace(
        eager._config,
        learner=LearnerConfig(compile="graph", updates_per_graph=updates_per_graph),
        surgery=SurgeryConfig(method=method, statistics_every=statistics_every),
    )
    graphed = MultiTaskSac(config, suite(3), torch.device("cpu"), capture)
    graphed.replay = copy.deepcopy(eager.replay)
    if statistics_every:
        eager = MultiTaskSac(dataclasses.replace(config, learner=LearnerConfig()), suite(3), torch.device("cpu"))
        eager.replay = copy.deepcopy(graphed.replay)
    for learner in (eager, graphed):
        for descent in (learner._actor_descent, learner._critic_descent):
            descent._one_buffer = one_buffer
    return eager, graphed


def update_to(learner, gradient_steps):
    """Makes the updates that are due when so many are."""
    due = gradient_steps * learner._suite.num_tasks * learner._sac.batch_size
    learner.env_steps = learner._warmup_steps + math.ceil(due / learner._sac.samples_per_insert)
    found = []
    while (metrics := learner.update()) is not None:
        found.append(metrics)
    assert learner.gradient_steps == gradient_steps
    return found


def assert_equal_states(a, b):
    for name, tensor in flat(a.state_dict()).items():
        assert torch.equal(tensor, flat(b.state_dict())[name]), name


def flat(tree, path=""):
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    if not isinstance(tree, dict):
        return {}
    return {name: tensor for key, value in tree.items() for name, tensor in flat(value, f"{path}/{key}").items()}


def add(learner, rows, seed):
    draws = np.random.default_rng(seed)
    for task in range(3):
        learner.replay.add(
            task,
            draws.normal(size=(rows, 5)),
            draws.uniform(-1, 1, (rows, 2)),
            draws.uniform(0, 10, rows),
            draws.normal(size=(rows, 5)),
            draws.integers(0, 2, rows),
        )


@pytest.mark.parametrize(("method", "one_buffer"), [("mean", False), ("pcgrad", False), ("pcgrad", True)])
def test_graphs_give_the_weights_of_eager_updates(method, one_buffer):
    recorder = Recorder()
    eager, graphed = learners(recorder.capture, method, one_buffer=one_buffer)
    update_to(eager, 23)
    metrics = update_to(graphed, 23)
    assert [found.num_updates for found in metrics] == [1, 1, 1, 4, 4, 4, 4, 4]  # three to warm up
    assert recorder.captures == 1
    assert_equal_states(eager, graphed)


def test_graphs_see_new_transitions_and_new_scales_of_rewards():
    eager, graphed = learners(Recorder().capture, reward_scaling="per_task_return")
    for round_ in range(3):
        for learner in (eager, graphed):
            update_to(learner, 11 * (round_ + 1))
            add(learner, 400, seed=round_)  # more than there were
            learner.reward_scaling.largest_return += 5.0
    update_to(eager, 41)
    update_to(graphed, 41)
    assert_equal_states(eager, graphed)


def test_what_a_graph_found_is_the_mean_over_its_updates():
    eager, graphed = learners(Recorder().capture)
    one, other = Progress(metrics=update_to(eager, 23)), Progress(metrics=update_to(graphed, 23))
    assert one.num_updates() == other.num_updates() == 23
    assert one.num_samples() == other.num_samples() == 23 * 3 * 8
    for name, mean in one.mean_values().items():
        torch.testing.assert_close(mean, other.mean_values()[name], rtol=1e-6, atol=1e-7)


def test_gradients_are_measured_at_the_same_updates():
    eager, graphed = learners(Recorder().capture, statistics_every=7)
    one, other = Progress(metrics=update_to(eager, 30)), Progress(metrics=update_to(graphed, 30))
    assert sum(bool(metrics.matrices) for metrics in other.metrics) == 5  # before updates 0, 7, 14, 21 and 28
    for name, mean in one.mean_matrices().items():
        assert torch.equal(mean, other.mean_matrices()[name]), name
    assert_equal_states(eager, graphed)


def test_graphs_take_no_more_updates_than_are_due():
    _, graphed = learners(Recorder().capture)
    assert [found.num_updates for found in update_to(graphed, 9)] == [1, 1, 1, 4, 1, 1]


def test_a_loaded_state_is_learned_from_with_new_graphs():
    recorder = Recorder()
    eager, graphed = learners(recorder.capture)
    update_to(eager, 11)
    state = copy.deepcopy(eager.state_dict())
    update_to(eager, 30)
    update_to(graphed, 19)
    graphed.load_state_dict(state)
    update_to(graphed, 30)
    assert recorder.captures == 2
    assert_equal_states(eager, graphed)


def test_updates_go_on_where_recording_fails(caplog):
    def capture(compute):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        except RuntimeError:
            # as CUDA tells it at the end of the recording
            raise RuntimeError("operation failed in capture")  # noqa: B904 - the context is what tells the cause

    eager, graphed = learners(capture)
    update_to(eager, 12)
    update_to(graphed, 12)
    (record,) = caplog.records
    assert record.message == (
        "learner.compile=graph failed (operation not permitted when stream is capturing); "
        "updates go on operation by operation"
    )
    assert_equal_states(eager, graphed)


def test_a_cpu_goes_on_without_graphs_and_says_so(caplog):
    config = tiny_config(learner=LearnerConfig(compile="graph"))
    build_learner(config, suite(3), torch.device("cpu"))
    (record,) = caplog.records
    assert record.message == ("learner.compile=graph needs a GPU for all of it, not cpu; updates go on without")


def test_other_algorithms_refuse_graphs():
    with pytest.raises(ConfigError, match=r"learner\.compile: graph is not built for pearl; take eager"):
        tiny_config(algorithm="pearl", learner=LearnerConfig(compile="graph"))


def test_a_replay_beside_the_gpu_is_refused():
    with pytest.raises(
        ConfigError, match=r"replay\.device: cpu leaves the replay where no graph can reach it; take auto"
    ):
        tiny_config(device="auto", learner=LearnerConfig(compile="graph"))


def test_one_buffer_for_the_gradients_of_a_network_gives_the_same_step():
    apart, together = (filled_learner(num_tasks=3, method="pcgrad", samples_per_insert=1.0) for _ in range(2))
    for descent in (together._actor_descent, together._critic_descent):
        descent._one_buffer = True
    update_to(apart, 3)
    update_to(together, 3)
    assert together._critic_descent._buffer.shape == (2, 3, GPU_CHUNK)  # 16 x 10 + 16 + 16 x 16 + 16 numbers, and zeros
    for one, other in zip(apart.critics.parameters(), together.critics.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("method", ["mean", "pcgrad"])
def test_cuda_graphs_give_the_weights_of_eager_updates(method):
    eager, graphed = (_on_cuda(method, compile_) for compile_ in ("eager", "graph"))
    update_to(eager, 103)
    metrics = update_to(graphed, 103)
    assert max(found.num_updates for found in metrics) == 8
    assert_equal_states(eager, graphed)


@needs_cuda
def test_a_failed_recording_leaves_generators_that_work():
    generator = torch.Generator("cuda").manual_seed(1)
    expected = torch.rand(4, generator=torch.Generator("cuda").manual_seed(1), device="cuda")

    def compute():
        torch.rand(4, generator=generator, device="cuda")
        return torch.zeros((), device="cuda").item()

    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        CudaCapture([generator])(compute)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.rand(4, generator=generator, device="cuda"), expected)


def _on_cuda(method, compile_):
    config = tiny_config(
        device="cuda",
        learner=LearnerConfig(compile=compile_),
        surgery=SurgeryConfig(method=method, statistics_every=50),
    )
    learner = MultiTaskSac(config, suite(3), torch.device("cuda"))
    add(learner, 50, seed=0)
    return learner

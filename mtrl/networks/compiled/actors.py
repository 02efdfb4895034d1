"""Policies as machine code that acts between the steps of a simulator; see `envs.simulator.Actor`.

An actor finds what it needs in a record of numbers and addresses. Whoever fills in the record keeps its arrays alive,
and answers for their sizes: nothing here checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from envs.cache import compile_and_keep_callback
from mtrl.data import Array
from mtrl.networks.compiled.few_rows import one_perceptron, recurrent_step
from mtrl.networks.compiled.maths import compiled_as_written, tanh

_carray: Any = numba.carray  # type: ignore[attr-defined]  # numba does not declare it
_ONE, _NOTHING = np.float32(1.0), np.float32(0.0)

_SAMPLES = [
    ("num_envs", np.int64),
    ("obs_dim", np.int64),
    ("action_dim", np.int64),
    ("noise", np.int64),  # float32 [turn, env, action]
    ("sample", np.int64),  # float32 [turn, env, action], out; before it is cut off at the limits of actions
    ("mean", np.int64),  # float32 [turn, env, action], out
    ("sizes", np.int64),  # int64 [layer + 1]
    ("num_sizes", np.int64),
    ("activation", np.int64),
]

PERCEPTRONS = np.dtype(
    [
        *_SAMPLES,
        ("std", np.int64),  # float32 [env, action]
        ("numbers", np.int64),  # float32 [perceptron, number]
        ("num_perceptrons", np.int64),
        ("num_numbers", np.int64),
        ("number_of", np.int64),  # int64 [group]
        ("members", np.int64),  # int64 [group, place]
        ("num_groups", np.int64),
        ("num_places", np.int64),
    ],
    align=True,
)
"""What `perceptron_actor` reads; numbers and groups as `few_rows.perceptrons` takes them."""

RECURRENT = np.dtype(
    [
        *_SAMPLES,
        ("log_std", np.int64),  # float32 [turn, env, action], out
        ("hidden", np.int64),  # float32 [env, hidden_size], in and out
        ("hidden_size", np.int64),
        ("previous", np.int64),  # float32 [env, action + 2], of the step before, in and out
        ("num_encoder", np.int64),
        ("encoder", np.int64),
        ("weight_ih", np.int64),
        ("weight_hh", np.int64),
        ("bias_ih", np.int64),
        ("bias_hh", np.int64),
        ("head_weight", np.int64),
        ("head_bias", np.int64),
        ("rows_per_group", np.int64),
        ("reward_scale", np.float32),
        ("middle", np.float32),  # log_std = middle + half tanh(. + offset)
        ("half", np.float32),
        ("offset", np.float32),
    ],
    align=True,
)
"""What `recurrent_actor` reads; the network's numbers as `few_rows.recurrent_step` takes them."""


@cast("Callable[..., Any]", intrinsic)
def pointer_to(typing_context: Any, address: Any) -> Any:
    """`pointer_to(address)` is what `carray` makes an array of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@compiled_as_written
def _choose(mean: Array, std: Array, noise: Array, sample: Array, action: Array) -> None:
    """Draws a sample, all [action_dim]; rounded after each operation, as torch does it."""
    for index in range(len(mean)):
        sample[index] = mean[index] + std[index] * noise[index]
        action[index] = sample[index]  # also where it is not a number
        if sample[index] > _ONE:
            action[index] = _ONE
        elif sample[index] < -_ONE:
            action[index] = -_ONE


def _act_as_perceptrons(context: int, group: int, turn: int, obs: int, reward: int, action: int) -> None:
    c = _carray(pointer_to(context), 1, PERCEPTRONS)[0]
    drawn = (turn + 1, c.num_envs, c.action_dim)
    sizes = _carray(pointer_to(c.sizes), c.num_sizes, np.int64)
    numbers = _carray(pointer_to(c.numbers), (c.num_perceptrons, c.num_numbers), np.float32)
    number_of = _carray(pointer_to(c.number_of), c.num_groups, np.int64)
    own = _carray(pointer_to(c.members), (c.num_groups, c.num_places), np.int64)[group]
    seen = _carray(pointer_to(obs), (c.num_envs, c.obs_dim), np.float64)
    std = _carray(pointer_to(c.std), (c.num_envs, c.action_dim), np.float32)
    noise, sample = _carray(pointer_to(c.noise), drawn, np.float32), _carray(pointer_to(c.sample), drawn, np.float32)
    mean, chosen = _carray(pointer_to(c.mean), drawn, np.float32), _carray(pointer_to(action), drawn[1:], np.float32)
    rows = np.empty((len(own), c.obs_dim), np.float32)
    for place in range(len(own)):
        for column in range(c.obs_dim):
            rows[place, column] = np.float32(seen[own[place], column])
    found = one_perceptron(sizes, c.activation, numbers[number_of[group]], rows)
    for place in range(len(own)):
        env = own[place]
        mean[turn, env] = found[place]
        _choose(mean[turn, env], std[env], noise[turn, env], sample[turn, env], chosen[env])


def _act_with_memory(context: int, group: int, turn: int, obs: int, reward: int, action: int) -> None:
    c = _carray(pointer_to(context), 1, RECURRENT)[0]
    first, until = group * c.rows_per_group, min((group + 1) * c.rows_per_group, c.num_envs)
    drawn, actions, size = (turn + 1, c.num_envs, c.action_dim), c.action_dim, c.hidden_size
    sizes = _carray(pointer_to(c.sizes), c.num_sizes, np.int64)
    width = sizes[len(sizes) - 1]
    seen = _carray(pointer_to(obs), (c.num_envs, c.obs_dim), np.float64)
    rewards = _carray(pointer_to(reward), c.num_envs, np.float64)
    previous = _carray(pointer_to(c.previous), (c.num_envs, actions + 2), np.float32)
    noise, sample = _carray(pointer_to(c.noise), drawn, np.float32), _carray(pointer_to(c.sample), drawn, np.float32)
    mean, log_std = _carray(pointer_to(c.mean), drawn, np.float32), _carray(pointer_to(c.log_std), drawn, np.float32)
    chosen = _carray(pointer_to(action), drawn[1:], np.float32)
    rows = np.empty((until - first, c.obs_dim + actions + 2), np.float32)
    for env in range(first, until):
        row, before = rows[env - first], previous[env]
        if turn > 0:  # between turns no episode ends
            before[actions], before[actions + 1] = np.float32(rewards[env]), _NOTHING
        for column in range(c.obs_dim):
            row[column] = np.float32(seen[env, column])
        for column in range(actions + 2):
            row[c.obs_dim + column] = before[column]
        row[c.obs_dim + actions] *= c.reward_scale
    out, std = np.empty((until - first, 2 * actions), np.float32), np.empty(actions, np.float32)
    recurrent_step(
        sizes,
        c.activation,
        _carray(pointer_to(c.encoder), c.num_encoder, np.float32),
        (
            _carray(pointer_to(c.weight_ih), (3 * size, width), np.float32),
            _carray(pointer_to(c.weight_hh), (3 * size, size), np.float32),
            _carray(pointer_to(c.bias_ih), 3 * size, np.float32),
            _carray(pointer_to(c.bias_hh), 3 * size, np.float32),
        ),
        (
            _carray(pointer_to(c.head_weight), (2 * actions, size), np.float32),
            _carray(pointer_to(c.head_bias), 2 * actions, np.float32),
        ),
        rows,
        _carray(pointer_to(c.hidden), (c.num_envs, size), np.float32)[first:until],
        out,
    )
    for env in range(first, until):
        for index in range(actions):
            mean[turn, env, index] = tanh(out[env - first, index])
            log_std[turn, env, index] = c.middle + c.half * tanh(out[env - first, actions + index] + c.offset)
            std[index] = np.exp(log_std[turn, env, index])
        _choose(mean[turn, env], std, noise[turn, env], sample[turn, env], chosen[env])
        previous[env, :actions] = chosen[env]


@cache
def perceptron_actor() -> int:
    """Returns the address of an actor of Gaussians whose means perceptrons say; its context is `PERCEPTRONS`."""
    return _address(_act_as_perceptrons)


@cache
def recurrent_actor() -> int:
    """Returns the address of an actor with memory; its context is `RECURRENT`."""
    return _address(_act_with_memory)


def _address(function: Callable[..., None]) -> int:
    return compile_and_keep_callback(function, "void(int64,int64,int64,int64,int64,int64)", Path(__file__).parent)


def address(array: Array) -> int:
    """Returns where the numbers of an array lie.

    Raises:
        ValueError: If they do not lie one after the other.
    """
    if not array.flags.c_contiguous:
        raise ValueError(f"an array {list(array.shape)} does not lie in one piece")
    return int(array.__array_interface__["data"][0])

"""Steps of a batch of environments, one or many with a policy between them, in one compiled call without the GIL.

For each environment: the mocap body, five steps of physics, observation, reward and info. Order and types of the
arithmetic behind an observation are metaworld's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from envs.compiled.catalogue import CATALOGUE, Position, RewardFunction
from envs.compiled.catalogue import Quaternion as QuaternionSource
from envs.compiled.layout import OBJECT_FIELDS, Floats, Integers, Place, Start
from envs.compiled.maths import Quaternion, Vec, add, clip, norm, scipy_quaternion, subtract
from envs.compiled.native import (
    call_actor,
    cycles,
    double_at,
    entry,
    inner,
    int_at,
    let_breathe,
    mj_forward,
    mj_step,
    semaphore_post,
    semaphore_try,
    semaphore_wait,
    set_double_at,
    take_next,
    this_thread,
)
from envs.compiled.scene import Judgement, Scene, vector_at, vector_of

Action = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
FRAME = 18
"""Numbers of one frame; an observation is this frame, the one before it, and the goal."""
PHYSICS_STEPS = 5
NUM_WARNINGS = 8
MOST_TURNS = 50
"""Steps that one call makes at most, so that Python's part in them is small and what is kept of them is too."""
SUCCESS = 1
"""Row of success in `Batch.info`."""
_PATIENCE = 100_000  # ticks of the processor, some tens of microseconds: waking a thread takes as long
_RIM_RADIUS = 0.05  # of a dial, metres

_P = {place.name: int(place) for place in Place}
_MODEL, _DATA, _XPOS, _XQUAT, _XMAT = _P["MODEL"], _P["DATA"], _P["XPOS"], _P["XQUAT"], _P["XMAT"]
_SITE_XPOS, _SITE_XMAT, _GEOM_XPOS, _GEOM_XMAT = _P["SITE_XPOS"], _P["SITE_XMAT"], _P["GEOM_XPOS"], _P["GEOM_XMAT"]
_CTRL, _MOCAP_POS, _MOCAP_QUAT, _WARNINGS = _P["CTRL"], _P["MOCAP_POS"], _P["MOCAP_QUAT"], _P["WARNINGS"]
_QPOS, _NAMED, _NUM_OBJECTS = _P["QPOS"], _P["NAMED"], _P["NUM_OBJECTS"]
_HAND, _RIGHT_CLAW, _LEFT_CLAW = _P["HAND"], _P["RIGHT_CLAW"], _P["LEFT_CLAW"]
_LEFT_PAD, _RIGHT_PAD, _RIGHT_TIP, _LEFT_TIP = _P["LEFT_PAD"], _P["RIGHT_PAD"], _P["RIGHT_TIP"], _P["LEFT_TIP"]
_TASK, _OBJECTS, _LIVE_TARGET, _LIVE_OBJ_INIT = _P["TASK"], _P["OBJECTS"], _P["LIVE_TARGET"], _P["LIVE_OBJ_INIT"]
_TARGET, _OBJ_INIT, _INIT_TCP, _HAND_INIT = (
    int(Start.TARGET),
    int(Start.OBJ_INIT),
    int(Start.INIT_TCP),
    int(Start.HAND_INIT),
)
_MOCAP_LOW, _MOCAP_HIGH, _OFFSETS = int(Start.MOCAP_LOW), int(Start.MOCAP_HIGH), int(Start.OFFSETS)
_FROM_BODY, _FROM_SITE = int(Position.BODY), int(Position.SITE)
_BODY_QUATERNION, _GEOM_MATRIX = int(QuaternionSource.BODY), int(QuaternionSource.GEOM_MATRIX)
_SITE_MATRIX, _IDENTITY = int(QuaternionSource.SITE_MATRIX), int(QuaternionSource.IDENTITY)
_BODY_MATRIX = int(QuaternionSource.BODY_MATRIX)
_FROM_BODY_RIM = int(Position.BODY_RIM)
_ACTION_SCALE = np.float32(0.01)  # metres; the product with a float32 action is rounded to float32


@inner
def _move(place: Integers, start: Floats, action: Action) -> None:
    """Moves the mocap body and simulates one control step of 12.5 ms."""
    mocap = place[_MOCAP_POS]
    for axis in range(3):
        wanted = action[axis]
        if not math.isnan(wanted):  # else the physics is to break, as metaworld's does
            wanted = min(max(wanted, np.float32(-1.0)), np.float32(1.0))
        moved = double_at(mocap, axis) + np.float64(wanted * _ACTION_SCALE)
        if not math.isnan(moved):
            moved = clip(moved, start[_MOCAP_LOW + axis], start[_MOCAP_HIGH + axis])
        set_double_at(mocap, axis, moved)
    for index in range(4):
        set_double_at(place[_MOCAP_QUAT], index, 1.0 if index in (0, 2) else 0.0)
    set_double_at(place[_CTRL], 0, np.float64(action[3]))
    set_double_at(place[_CTRL], 1, np.float64(-action[3]))
    for _ in range(PHYSICS_STEPS):
        mj_step(place[_MODEL], place[_DATA])
    mj_forward(place[_MODEL], place[_DATA])  # the next step's warm start depends on it


@inner
def _unstable(place: Integers) -> bool:
    for kind in range(NUM_WARNINGS):  # noqa: SIM110  # numba compiles no generators here
        if int_at(place[_WARNINGS], 2 * kind) > 0:
            return True
    return False


@inner
def _follow(start: Floats, column: int, address: int) -> None:
    """Copies a vector that metaworld looks up in live data into the row of floats."""
    if address != 0:
        start[column], start[column + 1], start[column + 2] = vector_at(address, 0)


@inner
def _matrix_at(address: int, element: int) -> tuple[float, ...]:
    at = 9 * element
    return (
        double_at(address, at),
        double_at(address, at + 1),
        double_at(address, at + 2),
        double_at(address, at + 3),
        double_at(address, at + 4),
        double_at(address, at + 5),
        double_at(address, at + 6),
        double_at(address, at + 7),
        double_at(address, at + 8),
    )


@inner
def _quaternion(place: Integers, source: int, element: int) -> Quaternion:
    if source == _BODY_QUATERNION:
        address, at = place[_XQUAT], 4 * element
        return (
            double_at(address, at),
            double_at(address, at + 1),
            double_at(address, at + 2),
            double_at(address, at + 3),
        )
    if source == _GEOM_MATRIX:
        return scipy_quaternion(_matrix_at(place[_GEOM_XMAT], element))
    if source == _SITE_MATRIX:
        return scipy_quaternion(_matrix_at(place[_SITE_XMAT], element))
    if source == _IDENTITY:
        return (1.0, 0.0, 0.0, 0.0)
    if source == _BODY_MATRIX:
        return scipy_quaternion(_matrix_at(place[_XMAT], element))
    return (0.0, 0.0, 0.0, 0.0)


@inner
def _on_rim(place: Integers, body: int) -> Vec:
    angle = double_at(place[_QPOS], place[_NAMED])
    return add(vector_at(place[_XPOS], body), (math.sin(angle) * _RIM_RADIUS, -math.cos(angle) * _RIM_RADIUS, 0.0))


@inner
def _position(place: Integers, source: int, element: int) -> Vec:
    if source == _FROM_BODY:
        return vector_at(place[_XPOS], element)
    if source == _FROM_SITE:
        return vector_at(place[_SITE_XPOS], element)
    if source == _FROM_BODY_RIM:
        return _on_rim(place, element)
    return vector_at(place[_GEOM_XPOS], element)


@inner
def _observe(place: Integers, start: Floats, num_objects: int, frame: Floats) -> None:
    """Writes the newest frame [18]."""
    frame[:] = 0.0
    frame[0], frame[1], frame[2] = vector_at(place[_XPOS], place[_HAND])
    gap = norm(subtract(vector_at(place[_XPOS], place[_RIGHT_CLAW]), vector_at(place[_XPOS], place[_LEFT_CLAW])))
    frame[3] = min(gap / 0.1, 1.0)
    for number in range(num_objects):
        column, to = _OBJECTS + OBJECT_FIELDS * number, 4 + 7 * number
        position = _position(place, place[column] // 16, place[column + 1])
        offset = vector_of(start, _OFFSETS + 3 * number)
        frame[to], frame[to + 1], frame[to + 2] = add(position, offset)
        rotation = _quaternion(place, place[column] % 16, place[column + 2])
        frame[to + 3], frame[to + 4], frame[to + 5], frame[to + 6] = rotation


@inner
def _see(place: Integers, start: Floats, frame: Floats, low: Floats, high: Floats, hidden: bool, obs: Floats) -> None:
    """Writes the observation and keeps its newest frame for the next one."""
    _follow(start, _TARGET, place[_LIVE_TARGET])
    _follow(start, _OBJ_INIT, place[_LIVE_OBJ_INIT])
    _observe(place, start, place[_NUM_OBJECTS], frame)
    kept = len(start) - FRAME
    for index in range(FRAME):
        obs[index] = clip(frame[index], low[index], high[index])
        obs[FRAME + index] = clip(start[kept + index], low[FRAME + index], high[FRAME + index])
        start[kept + index] = frame[index]
    for axis in range(3):
        goal = 0.0 if hidden else start[_TARGET + axis]
        obs[2 * FRAME + axis] = clip(goal, low[2 * FRAME + axis], high[2 * FRAME + axis])


@inner
def _scene(place: Integers, start: Floats, obs: Floats, action: Action) -> Scene:
    bodies, sites = place[_XPOS], place[_SITE_XPOS]
    tips = add(vector_at(sites, place[_RIGHT_TIP]), vector_at(sites, place[_LEFT_TIP]))
    return Scene(
        place,
        start,
        vector_of(obs, 0),
        obs[3],
        vector_of(obs, 4),
        (obs[7], obs[8], obs[9], obs[10]),
        vector_of(obs, 11),
        (tips[0] / 2.0, tips[1] / 2.0, tips[2] / 2.0),
        vector_at(bodies, place[_LEFT_PAD]),
        vector_at(bodies, place[_RIGHT_PAD]),
        np.float64(action[3]),
        vector_of(start, _TARGET),
        vector_of(start, _OBJ_INIT),
        vector_of(start, _INIT_TCP),
        vector_of(start, _HAND_INIT),
    )


def _one_of(functions: Sequence[RewardFunction]) -> Callable[[int, Scene], Judgement]:
    """Returns a compiled function that calls function `number` with the scene; each half of them is one branch."""
    if len(functions) == 1:
        (only,) = functions
        return inner(lambda number, scene: only(scene))
    middle = len(functions) // 2
    lower, upper = _one_of(functions[:middle]), _one_of(functions[middle:])

    @inner
    def choose(number: int, scene: Scene) -> Judgement:
        return lower(number, scene) if number < middle else upper(number - middle, scene)

    return choose


_judge = _one_of([task.judge for task in CATALOGUE.values()])


@entry
def physics(places: Integers, starts: Floats, actions: Action) -> None:
    """Makes only the physics of a step of every environment; `mtrl bench envs` compares with it."""
    for env in range(places.shape[0]):
        _move(places[env], starts[env], actions[env])


class Batch(NamedTuple):
    """The arrays of a batch of environments; every step reads and writes the same ones."""

    places: Integers
    """int64 [env, place]."""
    starts: Floats
    """float64 [env, start]."""
    low: Floats
    """float64 [env, obs], bounds of the observation."""
    high: Floats
    """float64 [env, obs]."""
    hidden: bool
    """Whether observations hold zeros in place of the goal."""
    active: Flags
    """bool [env]; the others stand still."""
    obs: Floats
    """float64 [env, obs], the last observation going in and the newest coming out, but for environments that broke."""
    actions: Action
    """float32 [turn, env, 4]; what an actor chooses comes out."""
    seen: Floats
    """float64 [turn, env, obs], out; `obs` after each turn, if there is an actor."""
    info: Floats
    """float64 [turn, 8, env], out; the fields of `Judgement`, then the reward again, as the last entry of the info."""
    unstable: Flags
    """bool [turn, env], out."""


class Orders(NamedTuple):
    """What the next call is to do, for all threads; arrays, since threads keep them for all calls."""

    turns: Integers
    """int64 [2], steps to make and, out, steps made."""
    actor: Integers
    """int64 [3], see `envs.simulator.Actor`; without groups the first turn's actions are given."""
    until_success: Flags
    """bool [1], whether the first success ends it."""


class Crew(NamedTuple):
    """What threads that share the work know of one another."""

    gates: Integers
    """int64 [member], addresses of semaphores; each member waits at its own."""
    stop: Flags
    """bool [1]; whether members other than 0 return when their gate opens."""
    counters: Integers
    """int64 [3]: groups taken, environments taken, members that have met. Threads take turns with them."""
    order: Integers
    """int64 [env], in which environments are taken."""
    current: Integers
    """int64 [member, 2], out; the environment that each member is at, −1 for none, and its thread."""
    ticks: Integers
    """int64 [env], out; how long each active environment took, in ticks of the processor."""


@inner
def _step_one(batch: Batch, turn: int, env: int, frame: Floats) -> None:
    """Steps one active environment."""
    place, start, action = batch.places[env], batch.starts[env], batch.actions[turn, env]
    _move(place, start, action)
    batch.unstable[turn, env] = _unstable(place)
    if not batch.unstable[turn, env]:
        obs = batch.obs[env]
        _see(place, start, frame, batch.low[env], batch.high[env], batch.hidden, obs)
        judged = _judge(place[_TASK], _scene(place, start, obs, action))
        for column in range(7):
            batch.info[turn, column, env] = judged[column]
        batch.info[turn, 7, env] = judged[0]


@inner
def _work(crew: Crew, current: Integers, turn: int, batch: Batch, frame: Floats) -> None:
    """Steps active environments until none is left; several threads may do this at once."""
    current[1] = this_thread()
    place = take_next(crew.counters[1:].ctypes.data)
    while place < len(crew.order):
        env = crew.order[place]
        current[0] = env
        batch.unstable[turn, env] = False
        batch.info[turn, :, env] = 0.0
        if batch.active[env]:
            began = cycles()
            _step_one(batch, turn, env, frame)
            crew.ticks[env] = cycles() - began
        batch.seen[turn, env] = batch.obs[env]
        place = take_next(crew.counters[1:].ctypes.data)
    current[0] = -1


@inner
def _act(crew: Crew, actor: Integers, turn: int, batch: Batch) -> None:
    """Lets the actor choose for groups until none is left; several threads may do this at once."""
    rewards = batch.info[max(turn - 1, 0), 0].ctypes.data
    group = take_next(crew.counters.ctypes.data)
    while group < actor[2]:
        call_actor(actor[0], actor[1], group, turn, batch.obs.ctypes.data, rewards, batch.actions[turn].ctypes.data)
        group = take_next(crew.counters.ctypes.data)


@inner
def _wait(semaphore: int) -> None:
    """Waits a while awake, as what is waited for is mostly near, and then asleep."""
    began = cycles()
    while cycles() - began < _PATIENCE:
        if semaphore_try(semaphore) == 0:
            return
        let_breathe()
    while semaphore_wait(semaphore) != 0:  # a signal came in between
        pass


@inner
def _meet(crew: Crew, member: int) -> None:
    """Returns when all members are here; the last one sets the counters back."""
    members = len(crew.gates)
    if take_next(crew.counters[2:].ctypes.data) == members - 1:
        crew.counters[:] = 0
        for other in range(members):
            if other != member:
                semaphore_post(crew.gates[other])
    else:
        _wait(crew.gates[member])


@inner
def _over(orders: Orders, turn: int, batch: Batch) -> bool:
    """Returns whether an episode ends with a turn for another reason than its length."""
    for env in range(len(batch.active)):
        succeeded = orders.until_success[0] and batch.info[turn, SUCCESS, env] == 1.0
        if batch.active[env] and (succeeded or batch.unstable[turn, env]):
            return True
    return False


@inner
def _make_turns(member: int, crew: Crew, orders: Orders, batch: Batch, frame: Floats) -> int:
    """Does a member's part of a call and returns the number of turns made."""
    for turn in range(orders.turns[0]):
        if orders.actor[2] > 0:
            _act(crew, orders.actor, turn, batch)
            _meet(crew, member)
        _work(crew, crew.current[member], turn, batch, frame)
        if turn + 1 < orders.turns[0]:
            _meet(crew, member)
            if _over(orders, turn, batch):
                return turn + 1
    return int(orders.turns[0])


@entry
def run(member: int, crew: Crew, orders: Orders, batch: Batch) -> None:
    """Does what is ordered, together with other threads.

    Member 0 opens the gates of the others, works, waits for them and returns. Any other member waits at its gate for
    one call after the other, until there is a stop.
    """
    others = len(crew.gates) - 1
    frame = np.empty(FRAME)
    if member == 0:
        crew.counters[:] = 0
        for other in range(others):
            semaphore_post(crew.gates[other + 1])
    while True:
        if member != 0:
            _wait(crew.gates[member])
            if crew.stop[0]:
                return
        made = _make_turns(member, crew, orders, batch, frame)
        if member == 0:
            orders.turns[1] = made
            for _ in range(others):
                _wait(crew.gates[0])
            return
        semaphore_post(crew.gates[0])

"""Locks, dials, faucets and levers."""

from __future__ import annotations

import math

from envs.compiled.maths import Vec, add, distance, gaussian, hamacher, indicator, long_tail, norm, scaled, subtract
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra_vector, named_joint

_LOCK_LENGTH = 0.1  # metres
_LOCK_WEIGHTS = (0.25, 1.0, 0.5)
_SHOULDER = (0.0, 0.055, 0.07)  # of the gripper, which pushes in place of its fingers; metres from the hand


@inner
def door_lock(scene: Scene) -> Judgement:
    """door-lock-v3: locks a door by turning its lock down."""
    pad_to_lock = norm(scaled(subtract(scene.obj, scene.left_pad), _LOCK_WEIGHTS))
    obj_to_target = abs(scene.target[2] - scene.obj[2])
    near_lock = long_tail(pad_to_lock, 0.0, 0.01, pad_to_lock)  # metaworld's "initial" pad is the current one
    pressed = long_tail(obj_to_target, 0.0, 0.005, _LOCK_LENGTH)
    reward = 2.0 * hamacher(max(scene.opened, 0.0), near_lock) + 8.0 * pressed
    success, near = indicator(obj_to_target <= 0.02), indicator(pad_to_lock <= 0.05)
    return Judgement(reward, success, near, indicator(scene.opened > 0.0), near_lock, pressed, obj_to_target)


@inner
def _from_shoulder(gripper: Vec, obj: Vec, weights: Vec) -> float:
    """Returns the weighted distance of an object from the gripper's shoulder."""
    return norm(scaled(subtract(add(gripper, _SHOULDER), obj), weights))


@inner
def door_unlock(scene: Scene) -> Judgement:
    """door-unlock-v3: unlocks a door by pushing its lock aside."""
    shoulder_to_lock = _from_shoulder(scene.hand, scene.obj, _LOCK_WEIGHTS)
    margin = _from_shoulder(scene.init_tcp, scene.obj_init, _LOCK_WEIGHTS)
    ready = long_tail(shoulder_to_lock, 0.0, 0.02, margin)
    obj_to_target = abs(scene.target[0] - scene.obj[0])
    pushed = long_tail(obj_to_target, 0.0, 0.005, _LOCK_LENGTH)
    reward = 2.0 * ready + 8.0 * pushed
    success, near = indicator(obj_to_target <= 0.02), indicator(shoulder_to_lock <= 0.05)
    return Judgement(reward, success, near, indicator(scene.opened > 0.0), ready, pushed, obj_to_target)


_TARGET_RADIUS = 0.07  # of dials and faucets, metres
_PUSH_POINT = (0.05, 0.02, 0.09)  # where the gripper should push a dial, metres from the end of its arm


@inner
def dial_turn(scene: Scene) -> Judgement:
    """dial-turn-v3: turns a dial until its arm is near the target."""
    obj_to_target = distance(scene.obj, scene.target)
    first_push_point = extra_vector(scene, 0)
    margin = abs(distance(first_push_point, scene.target) - _TARGET_RADIUS)
    in_place = long_tail(obj_to_target, 0.0, _TARGET_RADIUS, margin)
    tcp_to_push_point = distance(add(scene.obj, _PUSH_POINT), scene.tcp)
    reach = gaussian(tcp_to_push_point, 0.0, 0.005, abs(distance(first_push_point, scene.init_tcp) - 0.005))
    reach = hamacher(reach, min(max(0.0, scene.effort), 1.0))
    reward = 10.0 * hamacher(reach, in_place)
    success, near = indicator(obj_to_target <= _TARGET_RADIUS), indicator(tcp_to_push_point <= 0.01)
    return Judgement(reward, success, near, 1.0, reach, in_place, obj_to_target)


@inner
def faucet_open(scene: Scene) -> Judgement:
    """faucet-open-v3: turns a faucet on."""
    return _turn_faucet(scene, add(scene.obj, (-0.04, 0.0, 0.03)))


@inner
def faucet_close(scene: Scene) -> Judgement:
    """faucet-close-v3: turns a faucet off."""
    return _turn_faucet(scene, scene.obj)


@inner
def _turn_faucet(scene: Scene, handle: Vec) -> Judgement:
    """Judges a faucet by where its handle is."""
    handle_to_target, tcp_to_handle = distance(handle, scene.target), distance(handle, scene.tcp)
    margin = abs(distance(scene.obj_init, scene.target) - _TARGET_RADIUS)
    in_place = long_tail(handle_to_target, 0.0, _TARGET_RADIUS, margin)
    reach = gaussian(tcp_to_handle, 0.0, 0.01, abs(distance(scene.obj_init, scene.init_tcp) - 0.01))
    success = handle_to_target <= _TARGET_RADIUS
    reward = 10.0 if success else 2.0 * (2.0 * reach + 3.0 * in_place)
    near = indicator(tcp_to_handle <= 0.01)
    return Judgement(reward, indicator(success), near, 1.0, reach, in_place, handle_to_target)


_LEVER_WEIGHTS = (4.0, 1.0, 4.0)  # the shoulder should come from below


@inner
def lever_pull(scene: Scene) -> Judgement:
    """lever-pull-v3: pushes a lever up until it points straight upward."""
    lever, first_lever = scene.obj, extra_vector(scene, 0)
    shoulder_to_lever = _from_shoulder(scene.hand, lever, _LEVER_WEIGHTS)
    margin = _from_shoulder(scene.init_tcp, first_lever, _LEVER_WEIGHTS)
    ready = long_tail(shoulder_to_lever, 0.0, 0.02, margin)
    angle_error = abs(-named_joint(scene, 0) - math.pi / 2.0)
    engaged = long_tail(angle_error, 0.0, math.pi / 48.0, math.pi / 2.0 - math.pi / 12.0)
    in_place = long_tail(distance(lever, scene.target), 0.0, 0.04, distance(first_lever, scene.target))
    reward = 10.0 * hamacher(ready, in_place)
    success, near = indicator(angle_error <= math.pi / 24.0), indicator(shoulder_to_lever < 0.03)
    return Judgement(reward, success, near, indicator(ready > 0.9), ready, engaged, shoulder_to_lever)

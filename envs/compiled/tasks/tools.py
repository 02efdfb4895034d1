"""Tasks with a long object in the gripper: a wrench, a hammer, a stick."""

from __future__ import annotations

import math

from envs.compiled.grasp import caging_from, dense_grasp, reaching_grasp
from envs.compiled.maths import (
    Quaternion,
    Vec,
    add,
    distance,
    distance_in_plane,
    hamacher,
    indicator,
    long_tail,
    norm,
    quaternion_distance,
    scaled,
    subtract,
)
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra_vector, named_joint, named_site, touching

_X, _Y = 0, 1
_FLAT_WRENCH = (0.707, 0.0, 0.0, 0.707)  # quaternions w x y z
_FLAT_HAMMER = (1.0, 0.0, 0.0, 0.0)
_WRENCH_HANDLE, _HAMMER_HANDLE = 0.02, 0.14  # lengths along x, metres
_NUT = 0  # the hole of the wrench, as named by the task


@inner
def _flatness(scene: Scene, flat: Quaternion) -> float:
    """Returns 1 where the tool lies as it should, falling to 0 with the distance of the quaternions."""
    return max(1.0 - quaternion_distance(scene.quaternion, flat) / 0.4, 0.0)


@inner
def _grip_point(scene: Scene, handle_length: float) -> Vec:
    """Returns where to grip the tool: at the hand's x if the hand is beside the handle."""
    obj, hand_x = scene.obj, scene.hand[0]
    return (hand_x, obj[1], obj[2]) if abs(obj[0] - hand_x) < handle_length / 2.0 else obj


@inner
def _lifted_to(point: Vec, target: Vec) -> float:
    """Returns how well a point of the tool is off the table, and near the target."""
    return 0.1 * indicator(point[2] > 0.02) + 0.9 * long_tail(distance(target, point), 0.0, 0.02, 0.2)


@inner
def _over_peg(nut: Vec, target: Vec, radius: float, bottleneck: float) -> float:
    """Returns how well a nut that is `radius` off a peg's axis is lifted, and lowered through a funnel onto the peg."""
    height = 0.02 * math.log(radius - bottleneck) + 0.2 if radius > bottleneck else 0.0
    error = (target[0] - nut[0], target[1] - nut[1], height - nut[2])
    placed = long_tail(norm(scaled(error, (1.0, 1.0, 3.0))), 0.0, 0.02, 0.4)
    return 0.1 * indicator(nut[2] > 0.02 or radius < bottleneck) + 0.9 * placed


@inner
def assembly(scene: Scene) -> Judgement:
    """assembly-v3: puts a wrench's nut onto a peg."""
    nut, flatness = named_site(scene, _NUT), _flatness(scene, _FLAT_WRENCH)
    grasped = reaching_grasp(scene, _grip_point(scene, _WRENCH_HANDLE), 0.015, 0.02, 0.01, 1.0, 0.01)
    radius = distance_in_plane(scene.target, nut, _X, _Y)
    success = radius < 0.02 and scene.target[2] - nut[2] > 0.0
    in_place = _over_peg(nut, scene.target, radius, 0.02 if success else 0.01)
    reward = 10.0 if success else (2.0 * grasped + 6.0 * in_place) * flatness
    return Judgement(reward, indicator(success), flatness, indicator(grasped >= 0.5), grasped, in_place, 0.0)


@inner
def disassemble(scene: Scene) -> Judgement:
    """disassemble-v3: lifts a wrench's nut off a peg."""
    nut, flatness = named_site(scene, _NUT), _flatness(scene, _FLAT_WRENCH)
    grasped = dense_grasp(scene, _grip_point(scene, _WRENCH_HANDLE), 0.015, 0.02, 0.01, 1.0)
    in_place = _lifted_to(nut, add(scene.target, (0.0, 0.0, 0.1)))
    success = scene.obj[2] > scene.target[2]
    reward = 10.0 if success else (2.0 * grasped + 6.0 * in_place) * flatness
    return Judgement(reward, indicator(success), flatness, indicator(grasped >= 0.5), grasped, in_place, 0.0)


@inner
def hammer(scene: Scene) -> Judgement:
    """hammer-v3: hammers a nail into a box."""
    flatness = _flatness(scene, _FLAT_HAMMER)
    grasped = dense_grasp(scene, _grip_point(scene, _HAMMER_HANDLE), 0.015, 0.02, 0.01, 1.0)
    in_place = _lifted_to(add(scene.obj, (0.16, 0.06, 0.0)), scene.target)
    reward = (2.0 * grasped + 6.0 * in_place) * flatness
    success = named_joint(scene, 0) > 0.09
    if success and reward > 5.0:
        reward = 10.0
    return Judgement(reward, indicator(success), flatness, indicator(grasped >= 0.5), grasped, in_place, 0.0)


_STICK_GEOM, _STICK_END = 0, 1
_PUSH_RADIUS, _PULL_RADIUS = 0.12, 0.05  # of the targets, metres
_HANDLE_RADIUS = 0.12  # around the target, in which a pulled container's handle counts as there, metres


@inner
def _holds_stick(scene: Scene, stick: Vec, stick_init: Vec) -> bool:
    """Returns whether the stick is between the fingers and above the table."""
    lifted = stick[2] - 0.01 > stick_init[2]
    return distance(stick, scene.tcp) < 0.02 and scene.opened > 0.0 and lifted


@inner
def stick_push(scene: Scene) -> Judgement:
    """stick-push-v3: pushes a container with a stick."""
    stick, stick_init, target = add(scene.obj, (0.015, 0.0, 0.0)), extra_vector(scene, 0), scene.target
    stick_margin = distance(stick_init, target) - _PUSH_RADIUS
    stick_in_place = long_tail(distance(stick, target), 0.0, _PUSH_RADIUS, stick_margin)
    container_to_target = distance(scene.obj_2, target)
    container_margin = distance(scene.obj_init, target) - _PUSH_RADIUS
    container_in_place = long_tail(container_to_target, 0.0, _PUSH_RADIUS, container_margin)
    at_target = container_to_target <= _PUSH_RADIUS
    caging, gripping = caging_from(scene, stick, stick_init, 0.04, 0.05, 0.01, 1.0)
    grasped = (gripping + caging) / 2.0
    reward = grasped
    if _holds_stick(scene, stick, stick_init):
        grasped = 1.0
        reward = 10.0 if at_target else 2.0 + 5.0 * stick_in_place + 3.0 * container_in_place
    lifted = touching(scene, _STICK_GEOM) and scene.opened > 0.0 and stick[2] - 0.01 > stick_init[2]
    success, near = indicator(lifted and at_target), indicator(distance(stick, scene.tcp) <= 0.03)
    return Judgement(reward, success, near, indicator(lifted), grasped, stick_in_place, container_to_target)


@inner
def _is_inserted(handle: Vec, stick_end: Vec) -> bool:
    """Returns whether the stick goes through the container's handle."""
    return stick_end[0] >= handle[0] and abs(stick_end[1] - handle[1]) <= 0.04 and abs(stick_end[2] - handle[2]) <= 0.06


@inner
def stick_pull(scene: Scene) -> Judgement:
    """stick-pull-v3: pulls a container with a stick through its handle."""
    stick, stick_init, handle, target = scene.obj, extra_vector(scene, 0), scene.obj_2, scene.target
    to_container, weights = (0.05, 0.0, 0.0), (1.0, 1.0, 2.0)
    container = add(handle, to_container)
    stick_to_container = norm(scaled(subtract(stick, container), weights))
    stick_margin = norm(scaled(subtract(stick_init, add(scene.obj_init, to_container)), weights))
    stick_in_place = long_tail(stick_to_container, 0.0, _PULL_RADIUS, stick_margin)
    stick_at_target = long_tail(distance(stick, target), 0.0, _PULL_RADIUS, distance(stick_init, target))
    container_margin = distance(scene.obj_init, target)
    container_in_place = long_tail(distance(container, target), 0.0, _PULL_RADIUS, container_margin)
    holds, inserted = _holds_stick(scene, stick, stick_init), _is_inserted(handle, named_site(scene, _STICK_END))
    at_target = distance(handle, target) <= _HANDLE_RADIUS
    grasped = 1.0 if holds else dense_grasp(scene, stick, 0.014, 0.05, 0.01, 1.0)
    reward = hamacher(grasped, stick_in_place)
    if holds and inserted:
        reward = 10.0 if at_target else 6.0 + reward + 2.0 * stick_at_target + container_in_place
    elif holds:
        reward += 1.0 + 5.0 * stick_in_place
    lifted = touching(scene, _STICK_GEOM) and scene.opened > 0.0 and stick[2] - 0.02 > scene.obj_init[2]
    success, near = indicator(at_target and inserted), indicator(distance(stick, scene.tcp) <= 0.03)
    return Judgement(reward, success, near, indicator(lifted), grasped, stick_in_place, distance(handle, target))

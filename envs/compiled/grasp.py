"""How well the gripper holds an object: the part of the reward that tasks of grasping share."""

from __future__ import annotations

import math

from envs.compiled.maths import Vec, distance, distance_in_plane, hamacher, long_tail
from envs.compiled.native import inner
from envs.compiled.scene import Scene, touching

_X, _Z = 0, 2
CAGED = 0.97  # from here on, closing the gripper counts
_CAGED_LOOSELY = 0.95  # from here on, squeezing counts
_WIDE = 0.05  # distance along y up to which a pad cages an object, metres


@inner
def _pad_caging(pad_y: float, obj_y: float, init_y: float, obj_radius: float, pad_success: float) -> float:
    """Returns how well one pad stands beside the object along y."""
    margin = abs(abs(pad_y - init_y) - pad_success)
    return long_tail(abs(pad_y - obj_y), obj_radius, pad_success, margin)


@inner
def caging_and_gripping(
    scene: Scene, obj: Vec, obj_radius: float, pad_success: float, xz_success: float, effort: float
) -> tuple[float, float]:
    """Returns caging and its product with gripping, both 0 to 1 (metaworld's `_gripper_caging_reward`).

    Args:
        scene: The environment.
        obj: Position of the object.
        obj_radius: Radius of the object, metres.
        pad_success: Distance along y at which a pad stands well, metres.
        xz_success: Distance in the plane of x and z at which the gripper stands well, metres.
        effort: Closing effort that is enough, at most 1.
    """
    return caging_from(scene, obj, scene.obj_init, obj_radius, pad_success, xz_success, effort)


@inner
def caging_from(
    scene: Scene, obj: Vec, obj_init: Vec, obj_radius: float, pad_success: float, xz_success: float, effort: float
) -> tuple[float, float]:
    """Returns caging and gripping of an object that was at `obj_init` at the start."""
    left = _pad_caging(scene.left_pad[1], obj[1], obj_init[1], obj_radius, pad_success)
    right = _pad_caging(scene.right_pad[1], obj[1], obj_init[1], obj_radius, pad_success)
    margin = distance_in_plane(obj_init, scene.init_tcp, _X, _Z) - xz_success
    in_plane = long_tail(distance_in_plane(scene.tcp, obj, _X, _Z), 0.0, xz_success, margin)
    caging = hamacher(hamacher(left, right), in_plane)
    closed = min(max(0.0, scene.effort), effort) / effort
    return caging, hamacher(caging, closed if caging > CAGED else 0.0)


@inner
def dense_grasp(
    scene: Scene, obj: Vec, obj_radius: float, pad_success: float, xz_success: float, effort: float
) -> float:
    """Returns the mean of gripping and caging, metaworld's high density."""
    caging, gripping = caging_and_gripping(scene, obj, obj_radius, pad_success, xz_success, effort)
    return (gripping + caging) / 2.0


@inner
def reaching_grasp(
    scene: Scene,
    obj: Vec,
    obj_radius: float,
    pad_success: float,
    xz_success: float,
    effort: float,
    reach_radius: float,
) -> float:
    """Returns the mean of gripping and reaching, metaworld's medium density; `reach_radius` in metres."""
    _, gripping = caging_and_gripping(scene, obj, obj_radius, pad_success, xz_success, effort)
    margin = abs(distance(scene.obj_init, scene.init_tcp) - reach_radius)
    return (gripping + long_tail(distance(obj, scene.tcp), 0.0, reach_radius, margin)) / 2.0


@inner
def pads_beside(scene: Scene, obj: Vec, nearest: float, farthest: float) -> float:
    """Returns how well both pads stand between two distances beside the object; margins shift with the pads."""
    left_gap, right_gap = scene.left_pad[1] - obj[1], obj[1] - scene.right_pad[1]
    left = long_tail(left_gap, nearest, farthest, abs(abs(left_gap) - _WIDE))
    right = long_tail(right_gap, nearest, farthest, abs(abs(right_gap) - _WIDE))
    return hamacher(left, right)


@inner
def squeezing_grasp(scene: Scene, obj: Vec, obj_radius: float, slack: float, xz_success: float) -> float:
    """Returns the mean of caging and squeezing, for tasks with a grasp reward of their own that ignores the effort.

    Args:
        scene: The environment.
        obj: Position of the object.
        obj_radius: Radius of the object, metres.
        slack: Gap between a pad and the object up to which the object counts as squeezed, metres.
        xz_success: Distance in the plane of x and z at which the gripper stands well, metres.
    """
    margin = distance_in_plane(scene.obj_init, scene.init_tcp, _X, _Z) - xz_success
    in_plane = long_tail(distance_in_plane(scene.tcp, obj, _X, _Z), 0.0, xz_success, margin)
    caging = hamacher(pads_beside(scene, obj, obj_radius, _WIDE), in_plane)
    squeezing = pads_beside(scene, obj, obj_radius, obj_radius + slack) if caging > _CAGED_LOOSELY else 0.0
    return (caging + squeezing) / 2.0


@inner
def lifted(scene: Scene) -> bool:
    """Returns whether both pads press on the object, more than 2 cm above its start; the task names its geom first."""
    return scene.opened > 0.0 and scene.obj[2] - 0.02 > scene.obj_init[2] and touching(scene, 0)


@inner
def above_funnel(hand: Vec, handle: Vec, inner_radius: float) -> float:
    """Returns 1 where the hand is above a funnel around a handle, less below it.

    Args:
        hand: Position of the hand.
        handle: Position of the handle.
        inner_radius: Radius around the handle in which the hand may be low, metres.
    """
    radius = math.hypot(hand[0] - handle[0], hand[1] - handle[1])
    floor = 0.04 * math.log(radius - inner_radius) + 0.4 if radius > inner_radius else 0.0
    if hand[2] >= floor:
        return 1.0
    return long_tail(floor - hand[2], 0.0, 0.01, floor / 2.0)

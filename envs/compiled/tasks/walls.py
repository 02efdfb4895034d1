"""Tasks with a wall in the way: before it, reward comes for nearing a midpoint; past it, for nearing the target."""

from __future__ import annotations

from envs.compiled.grasp import caging_and_gripping, dense_grasp, lifted
from envs.compiled.maths import Vec, distance, hamacher, indicator, long_tail, norm, scaled, subtract
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene

_RADIUS = 0.05  # of a target, metres
_WALL_Y = 0.75  # beyond it, the object is past the wall
_MIDPOINT_Y = 0.77


@inner
def reach_wall(scene: Scene) -> Judgement:
    """reach-wall-v3: brings the gripper to a point behind a wall."""
    tcp_to_target = distance(scene.tcp, scene.target)
    in_place = long_tail(tcp_to_target, 0.0, _RADIUS, distance(scene.hand_init, scene.target))
    success = indicator(tcp_to_target <= _RADIUS)
    return Judgement(10.0 * in_place, success, 0.0, 0.0, 0.0, in_place, tcp_to_target)


@inner
def _near(scene: Scene, point: Vec, weights: Vec) -> float:
    """Returns how near the object is to a point, 0.1 at its start; `weights` scale the axes."""
    error = norm(scaled(subtract(scene.obj, point), weights))
    return long_tail(error, 0.0, _RADIUS, norm(scaled(subtract(scene.obj_init, point), weights)))


@inner
def _judge_object(scene: Scene, handled: bool, bonus: float, at_midpoint: float, grasped: float) -> Judgement:
    """Judges an object on its way around the wall.

    Args:
        scene: The environment.
        handled: Whether the gripper has the object where the way begins to count.
        bonus: Reward before the way counts.
        at_midpoint: How near the object is to the midpoint of the way, 0 to 1.
        grasped: Reward for the grasp, 0 to 1.
    """
    obj_to_target, tcp_to_obj = distance(scene.obj, scene.target), distance(scene.obj, scene.tcp)
    at_target = _near(scene, scene.target, (1.0, 1.0, 1.0))
    reward = bonus
    if handled and tcp_to_obj < 0.02 and scene.opened > 0.0:
        way = 4.0 + 3.0 * at_target if scene.obj[1] > _WALL_Y else 4.0 * at_midpoint
        reward = bonus + 1.0 + way
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, at_target, obj_to_target)


@inner
def push_wall(scene: Scene) -> Judgement:
    """push-wall-v3: pushes a puck around a wall to a point on the table."""
    at_midpoint = _near(scene, (-0.05, _MIDPOINT_Y, scene.obj[2]), (3.0, 1.0, 1.0))
    grasped = dense_grasp(scene, scene.obj, 0.015, 0.05, 0.005, 1.0)
    return _judge_object(scene, True, 2.0 * grasped, at_midpoint, grasped)


@inner
def pick_place_wall(scene: Scene) -> Judgement:
    """pick-place-wall-v3: brings a puck over a wall to a point in the air."""
    at_midpoint = _near(scene, (scene.target[0], _MIDPOINT_Y, 0.25), (1.0, 1.0, 3.0))
    _, grasped = caging_and_gripping(scene, scene.obj, 0.015, 0.05, 0.005, 1.0)
    raised = scene.obj[2] - 0.015 > scene.obj_init[2]
    return _judge_object(scene, raised, hamacher(grasped, at_midpoint), at_midpoint, grasped)

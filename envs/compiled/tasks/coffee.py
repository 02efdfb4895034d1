"""The coffee machine: its button and its mug."""

from __future__ import annotations

from envs.compiled.grasp import reaching_grasp
from envs.compiled.maths import distance, hamacher, indicator, long_tail, norm, scaled, subtract
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, touching
from envs.compiled.tasks.buttons import button_press

_RADIUS = 0.05  # of a target, metres
_REACHED = 0.04  # distance of the gripper to the mug from which its place counts, metres


@inner
def coffee_button(scene: Scene) -> Judgement:
    """coffee-button-v3: presses the button of a coffee machine, judged as any button that is pressed from the front."""
    return button_press(scene)


@inner
def _move_mug(scene: Scene) -> Judgement:
    """Judges how near the mug is to its target; errors in height count half."""
    weights = (2.0, 2.0, 1.0)
    error = norm(scaled(subtract(scene.obj, scene.target), weights))
    first_error = norm(scaled(subtract(scene.obj_init, scene.target), weights))
    in_place = long_tail(error, 0.0, _RADIUS, first_error)
    grasped = reaching_grasp(scene, scene.obj, 0.02, 0.05, 0.05, 0.7, 0.04)
    tcp_to_obj, obj_to_target = distance(scene.obj, scene.tcp), distance(scene.obj, scene.target)
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < _REACHED and scene.opened > 0.0:
        reward += 1.0 + 5.0 * in_place
    if error < _RADIUS:
        reward = 10.0
    held = indicator(scene.opened > 0.0 and touching(scene, 0))
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, held, grasped, in_place, obj_to_target)


@inner
def coffee_pull(scene: Scene) -> Judgement:
    """coffee-pull-v3: pulls a mug away from a coffee machine."""
    return _move_mug(scene)


@inner
def coffee_push(scene: Scene) -> Judgement:
    """coffee-push-v3: pushes a mug under a coffee machine."""
    return _move_mug(scene)

"""What a reward function sees: the state of one environment after a step, and what its reset left behind."""

from __future__ import annotations

from typing import NamedTuple

from envs.compiled.layout import ContactLayout, Floats, Integers, Place, Start, contact_layout
from envs.compiled.maths import Vec
from envs.compiled.native import address_at, double_at, inner, int_at

_LAYOUT: ContactLayout = contact_layout()
_STRIDE, _GEOMS, _FORCE_INDEX = _LAYOUT.stride, _LAYOUT.geoms, _LAYOUT.force_index
_XPOS, _SITE_XPOS, _GEOM_XPOS, _QPOS = (int(p) for p in (Place.XPOS, Place.SITE_XPOS, Place.GEOM_XPOS, Place.QPOS))
_NUM_CONTACTS, _CONTACTS, _FORCE = int(Place.NUM_CONTACTS), int(Place.CONTACTS), int(Place.CONSTRAINT_FORCE)
_LEFT_PAD_GEOM, _RIGHT_PAD_GEOM = int(Place.LEFT_PAD_GEOM), int(Place.RIGHT_PAD_GEOM)
_NAMED, _EXTRAS = int(Place.NAMED), int(Start.EXTRAS)


class Scene(NamedTuple):
    """One environment after a step; positions in metres."""

    place: Integers
    """Row of integers, see `layout.py`."""
    start: Floats
    """Row of floats, see `layout.py`."""
    hand: Vec
    """Position of the hand as observed, within its box."""
    opened: float
    """How far the gripper is open, 0 to 1, as observed."""
    obj: Vec
    """Position of the first object as observed."""
    quaternion: tuple[float, float, float, float]
    """Of the first object as observed; its order is the task's."""
    obj_2: Vec
    """Position of the second object as observed, zeros where there is none."""
    tcp: Vec
    """Middle between the fingertips."""
    left_pad: Vec
    right_pad: Vec
    effort: float
    """Fourth number of the action as given, which may lie outside of [-1, 1]."""
    target: Vec
    obj_init: Vec
    """Position of the object at the start; metaworld's `obj_init_pos`."""
    init_tcp: Vec
    hand_init: Vec


class Judgement(NamedTuple):
    """What metaworld tells of a step, in the order of its info."""

    reward: float
    success: float
    near_object: float
    grasp_success: float
    grasp_reward: float
    in_place_reward: float
    obj_to_target: float


@inner
def vector_at(address: int, element: int) -> Vec:
    """Returns the vector number `element` of an array [n, 3]."""
    return (double_at(address, 3 * element), double_at(address, 3 * element + 1), double_at(address, 3 * element + 2))


@inner
def vector_of(row: Floats, column: int) -> Vec:
    """Returns three neighbours of a row."""
    return (row[column], row[column + 1], row[column + 2])


@inner
def named_site(scene: Scene, number: int) -> Vec:
    """Returns the position of the site that the task names at `number`."""
    return vector_at(scene.place[_SITE_XPOS], scene.place[_NAMED + number])


@inner
def named_body(scene: Scene, number: int) -> Vec:
    """Returns the position of the body that the task names at `number`."""
    return vector_at(scene.place[_XPOS], scene.place[_NAMED + number])


@inner
def named_joint(scene: Scene, number: int) -> float:
    """Returns the position of the joint that the task names at `number`."""
    return float(double_at(scene.place[_QPOS], scene.place[_NAMED + number]))


@inner
def extra(scene: Scene, number: int) -> float:
    """Returns the number that the task kept at its reset."""
    return float(scene.start[_EXTRAS + number])


@inner
def set_extra(scene: Scene, number: int, value: float) -> None:
    """Keeps a number for the steps to come, until the next reset."""
    scene.start[_EXTRAS + number] = value


@inner
def extra_vector(scene: Scene, number: int) -> Vec:
    """Returns three neighbouring numbers that the task kept at its reset."""
    return vector_of(scene.start, _EXTRAS + number)


@inner
def touching(scene: Scene, number: int) -> bool:
    """Returns whether both finger pads press on the geom that the task names at `number`."""
    place = scene.place
    geom = place[_NAMED + number]
    contacts, forces = address_at(place[_CONTACTS], 0), address_at(place[_FORCE], 0)
    left = right = 0.0
    for contact in range(int_at(place[_NUM_CONTACTS], 0)):
        at = contacts + contact * _STRIDE
        first, second = int_at(at + _GEOMS, 0), int_at(at + _GEOMS, 1)
        if geom in (first, second):
            row = int_at(at + _FORCE_INDEX, 0)
            if row < 0:  # a contact without a force: as in NumPy, the last of all rows is taken
                row += int_at(place[_NUM_CONTACTS], 4)
            force = double_at(forces, row)
            if place[_LEFT_PAD_GEOM] in (first, second):
                left += force
            if place[_RIGHT_PAD_GEOM] in (first, second):
                right += force
    return left > 0.0 and right > 0.0

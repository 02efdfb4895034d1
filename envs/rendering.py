"""Pictures of Meta-World scenes, taken without touching the simulation."""

import importlib
import os
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
_GRAPHICS = ("egl", "osmesa", "glfw")  # the first two need no display
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # so they stand in metaworld's scenes


@dataclass(frozen=True)
class View:
    """From where and how large pictures are taken.

    Attributes:
        camera: One of `CAMERAS`.
        width: In pixels.
        height: In pixels.
    """

    camera: str = "corner2"
    width: int = 480
    height: int = 480

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown camera or an empty picture."""
        if self.camera not in CAMERAS:
            raise ValueError(f"camera is {self.camera!r}; expected one of {', '.join(CAMERAS)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"the picture is {self.width} × {self.height} pixels; expected at least 1 × 1")


class Photographer:
    """Renders the scene of one model from copies of its data."""

    def __init__(self, model: mujoco.MjModel, view: View) -> None:
        """Opens a rendering context.

        Raises:
            RuntimeError: If there is no way to render on this machine.
        """
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, view.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, view.height)
        self._view, self._model, self._copy = view, model, mujoco.MjData(model)
        self._graphics = _open_graphics(view)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene, self._option, self._camera = mujoco.MjvScene(model, 10_000), mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(view.camera).id

    def picture(self, data: mujoco.MjData) -> npt.NDArray[np.uint8]:
        """Returns a picture [height, width, 3] of the state of `data`, which stays as it is."""
        kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, data, state, kind)
        mujoco.mj_setState(self._model, self._copy, state, kind)
        mujoco.mj_forward(self._model, self._copy)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, self._copy, self._option, None, self._camera, everything, self._scene)
        self._graphics.make_current()
        frame = mujoco.MjrRect(0, 0, self._view.width, self._view.height)
        pixels = np.empty((self._view.height, self._view.width, 3), np.uint8)  # from the lowest row up
        mujoco.mjr_render(frame, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, frame, self._context)
        return (pixels[:, ::-1] if self._view.camera in _UPSIDE_DOWN else pixels[::-1]).copy()

    def close(self) -> None:
        """Frees the rendering context."""
        self._graphics.make_current()
        self._context.free()
        self._graphics.free()


def _open_graphics(view: View) -> Any:
    """Returns an OpenGL context: of the kind that MUJOCO_GL names, else the first that works on this machine."""
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    kinds = [chosen] if chosen in _GRAPHICS else [*_GRAPHICS[:2], *(_GRAPHICS[2:] if "DISPLAY" in os.environ else ())]
    failures = []
    for kind in kinds:
        try:
            graphics = importlib.import_module(f"mujoco.{kind}").GLContext(view.width, view.height)
            graphics.make_current()
        except Exception as error:  # what is raised depends on the library that is missing
            failures.append(f"{kind}: {error}")
        else:
            return graphics
    raise RuntimeError(f"cannot render on this machine; install libegl1 or libosmesa6 ({'; '.join(failures)})")

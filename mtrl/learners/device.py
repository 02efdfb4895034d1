"""Where tensors live."""

from __future__ import annotations

import torch

from mtrl.config import ConfigError


def choose_device(name: str, key: str = "device") -> torch.device:
    """Returns the device for `auto`, `cpu` or `cuda`.

    Args:
        name: The device asked for.
        key: The setting that asks.

    Raises:
        ConfigError: If cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(key, "cuda was asked for, but torch sees no GPU here; set it to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)

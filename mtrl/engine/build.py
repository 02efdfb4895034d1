"""Name of an engine → engine; the one place that decides whether ray is imported."""

from __future__ import annotations

import importlib.util

from mtrl.config import ConfigError, RunConfig
from mtrl.engine.local import LocalEngine
from mtrl.engine.protocol import Engine
from mtrl.networks.build import Suite


def build_engine(config: RunConfig, suite: Suite) -> Engine:
    """Returns the engine that the configuration names.

    Raises:
        ConfigError: If engine=rllib and ray is not installed.
    """
    if config.engine == "local":
        return LocalEngine(config, suite)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine", "rllib needs ray, which is not installed; pip install 'mtrl[ray]' or set engine=local"
        )
    from mtrl.engine.rllib.engine import RllibEngine  # ray takes seconds to import and is optional

    return RllibEngine(config, suite)

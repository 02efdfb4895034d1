"""Learning rates that fall while a run goes on."""

from __future__ import annotations

from mtrl.config import RunConfig


def ppo_lr(config: RunConfig, env_steps: int) -> float:
    """Returns the learning rate of PPO for an iteration.

    With `ppo.anneal_lr` it falls linearly from `ppo.lr` to 0 at `total_env_steps`, as in PPO's first code, OpenAI's
    baselines; Appendix A of arXiv 1707.06347 has it for Atari.

    Args:
        config: Of the run.
        env_steps: Of the run before the iteration, so that the first one learns with `ppo.lr` and the last one does
            not stand still.
    """
    if not config.ppo.anneal_lr:
        return config.ppo.lr
    return config.ppo.lr * max(0.0, 1.0 - env_steps / config.total_env_steps)

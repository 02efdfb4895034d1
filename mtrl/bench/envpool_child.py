"""Steps EnvPool's Meta-World: run by `envpool_process.py` with a Python that has envpool and need not have mtrl.

Arguments: a comma-separated list of EnvPool's names, environments per name, and a file of actions [step, env, 4].
Each line of stdin is a first step and a number of steps to make; each answer is a line with the seconds they took.
"""

import os
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    """Serves until stdin ends."""
    import envpool  # type: ignore[import-not-found] # of the other Python

    names, copies = sys.argv[1].split(","), int(sys.argv[2])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # its worker thread and this one share a core
    # EnvPool keeps one task in a pool
    pools: list[Any] = [envpool.make_gymnasium(name, num_envs=copies, num_threads=1, seed=0) for name in names]
    for pool in pools:
        pool.reset()
    actions = np.load(sys.argv[3]).reshape(-1, len(names), copies, 4)
    print("ready", flush=True)
    for line in sys.stdin:
        first, count = map(int, line.split())
        began = time.perf_counter()
        for step in actions[first : first + count]:
            for pool, action in zip(pools, step, strict=True):
                pool.step(action)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()

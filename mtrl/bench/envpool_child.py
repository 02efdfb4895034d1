"""Steps EnvPool's Meta-World: run by `envpool_process.py` with a Python that has envpool and need not have mtrl.

Arguments: EnvPool's names, with commas between them, environments per name, a file of actions [block, step, env, 4].
Each line of stdin is the number of a block whose steps are to be made; the answer is a line with the seconds they took.
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
    blocks = np.load(sys.argv[3])
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for step in blocks[int(line)]:
            for pool, action in zip(pools, step.reshape(len(names), copies, 4), strict=True):
                pool.step(action)
        print("seconds", time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()

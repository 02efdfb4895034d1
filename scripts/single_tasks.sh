#!/usr/bin/env bash
# Single-task SAC on four real tasks: trains configs/mt1/sac_small.yaml on each, then writes results/single_task.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/single-task-$(date +%Y%m%d-%H%M%S)"
for task in reach-v3 drawer-close-v3 window-close-v3 button-press-topdown-v3; do
    .venv/bin/mtrl train configs/mt1/sac_small.yaml name="sac-$task" env.tasks="[$task]" runs_dir="$runs" "$@"
done
scripts/keep_results.sh results/single_task "$runs"/*

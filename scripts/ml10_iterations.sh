#!/usr/bin/env bash
# Two full iterations of each ML10 row: collected, learned from, evaluated on two goals of each task, saved; then the report in
# results/ml10_iterations. Nothing is learned in so short a time; it shows what an iteration costs (perf/ in metrics.jsonl).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/ml10-iterations-$(date +%Y%m%d-%H%M%S)"
train() { # row, environment steps, further settings
    .venv/bin/mtrl train "configs/ml10/$1.yaml" total_env_steps="$2" runs_dir="$runs" log_every_env_steps=1 \
        eval.every_env_steps=0 eval.final_goals=2 eval.stop_at_success=true "${@:3}"
}
train maml_trpo 400_000 "$@"
train rl2_ppo 200_000 "$@"
train pearl 350_000 "$@" # an episode of each goal of each task before the first iteration
scripts/keep_results.sh results/ml10_iterations "$runs"/*

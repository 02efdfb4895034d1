#!/usr/bin/env bash
# Memorisation in meta-RL: MAML on the toy point mass with the goal hidden, with it in the observation, and with it there and
# meta-regularised, three seeds each. Writes results/goal_visible: what ten episodes of adaptation are worth. About 10 minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/goal-visible-$(date +%Y%m%d-%H%M%S)"
for seed in 1 2 3; do
    train() { # name, settings
        .venv/bin/mtrl train configs/toy/maml_trpo.yaml name="$1" seed=$seed runs_dir="$runs" total_env_steps=240_000 \
            eval.every_env_steps=0 eval.final_goals=50 "${@:2}"
    }
    train goal-hidden
    train goal-visible env.goal_visible=true
    train goal-visible-regularised env.goal_visible=true maml.meta_regularization=1e-5
done
scripts/keep_results.sh results/goal_visible "$runs"/*
.venv/bin/python scripts/adaptation_gain.py "$runs"/* | tee results/goal_visible/gain.md

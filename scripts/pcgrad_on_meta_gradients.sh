#!/usr/bin/env bash
# Does PCGrad help MAML whose task classes conflict? The toy suite's four training classes, some of which turn actions around,
# with the mean of their meta-gradients and with PCGrad, five seeds each. Writes results/pcgrad_on_meta_gradients.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/pcgrad-on-meta-gradients-$(date +%Y%m%d-%H%M%S)"
for seed in 1 2 3 4 5; do
    for method in mean pcgrad; do
        .venv/bin/mtrl train configs/toy/maml_trpo.yaml name="maml-$method" seed=$seed runs_dir="$runs" \
            env.benchmark=toy-ml env.tasks=[] surgery.method=$method total_env_steps=360_000 \
            eval.every_env_steps=0 eval.final_goals=50 "$@"
    done
done
scripts/keep_results.sh results/pcgrad_on_meta_gradients "$runs"/*
.venv/bin/python scripts/adaptation_gain.py "$runs"/* | tee results/pcgrad_on_meta_gradients/gain.md

#!/usr/bin/env bash
# PPO and TRPO on two real tasks each: trains configs/mt1/ppo.yaml and trpo.yaml with smaller nets and ten environments, then
# writes results/on_policy_single_task. Further settings are passed on, as in total_env_steps=100_000.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/on-policy-$(date +%Y%m%d-%H%M%S)"
for task in drawer-close-v3 reach-v3; do
    for method in ppo trpo; do
        .venv/bin/mtrl train "configs/mt1/$method.yaml" name="$method-$task" env.tasks="[$task]" runs_dir="$runs" \
            network.actor_widths=[128,128] env.copies=10 on_policy.episodes=2 torch_threads=1 \
            total_env_steps=500_000 eval.every_env_steps=50_000 eval.stop_at_success=true "$@"
    done
done
scripts/keep_results.sh results/on_policy_single_task "$runs"/*

#!/usr/bin/env bash
# The MT10 and MT50 rows with PCGrad under both engines: at least 500 updates after a short warm-up, evaluated and saved,
# gone on with under the other engine, evaluated again; then the reports. Takes about 20 minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/both-engines-$(date +%Y%m%d-%H%M%S)"
short="sac.warmup_steps_per_task=100 eval.final_goals=1 eval.stop_at_success=true log_every_env_steps=2000"
train() { # row, engine, other engine, environment steps, environment steps after going on
    .venv/bin/mtrl train "configs/$1/pcgrad.yaml" name="$1-pcgrad-$2" engine="$2" total_env_steps="$4" runs_dir="$runs" $short
    run=$(ls -d "$runs/$1-pcgrad-$2-"*)
    .venv/bin/mtrl resume "$run" engine="$3" total_env_steps="$5"
    .venv/bin/mtrl evaluate "$run" --episodes 2
}
for engines in "local rllib" "rllib local"; do
    train mt10 $engines 6200 6600
    train mt50 $engines 30500 31500
done
scripts/keep_results.sh results/both_engines "$runs"/*

#!/usr/bin/env bash
# The five runs of the quickstart that stand in the README: trains seeds 1 to 5, then writes results/quickstart.
# Takes five times as long as `make demo`. Settings for all five can be given as arguments: scripts/quickstart_seeds.sh engine=local
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs="runs/quickstart-seeds-$(date +%Y%m%d-%H%M%S)"
.venv/bin/mtrl train configs/quickstart.yaml engine=rllib --seeds 1-5 runs_dir="$runs" "$@"
scripts/keep_results.sh results/quickstart "$runs"/*

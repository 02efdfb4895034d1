#!/usr/bin/env bash
# gpu_check.sh [--cpu] [--out FOLDER] [--seconds N] [bench|train]: what a GPU machine has to show, in calls of under ten minutes.
#
#   bench  updates per second, operation by operation and as CUDA graphs, plain and with PCGrad, MT10 and MT50, widths 400 and
#          1024, and whether graphs give the same numbers → FOLDER/bench.json
#   train  configs/gpu/mt10_pcgrad.yaml for N seconds (default 480); called again it goes on where it stopped → FOLDER/runs,
#          FOLDER/report with the success against wall time
#
# Without either it does both. Needs neither Ray nor a network. PYTHON names another interpreter than that of .venv.
# --cpu rehearses everything in a minute with small networks; what it measures says nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cpu="" out="results/gpu" seconds=480 steps=()
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=1 ;;
        --out) out=$2 && shift ;;
        --seconds) seconds=$2 && shift ;;
        bench | train) steps+=("$1") ;;
        *) echo "gpu_check.sh: $1 is none of --cpu, --out FOLDER, --seconds N, bench, train" >&2 && exit 2 ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(bench train)
python=${PYTHON:-.venv/bin/python}

if [ -z "$cpu" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check.sh: torch sees no GPU here; --cpu rehearses without one" >&2
    exit 2
fi

mkdir -p "$out/runs"
if [ -n "$cpu" ]; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
fi

bench() {
    "$python" -m mtrl bench gpu --out "$out/bench.json"
}

train() {
    local settings=() status=0 run
    if [ -n "$cpu" ]; then
        settings=(device=cpu torch_threads=1 total_env_steps=40_000 log_every_env_steps=1_000 env.copies=2 env.max_episode_steps=50
            network.actor_widths='[16,16]' network.critic_widths='[16,16]' sac.batch_size=8 sac.warmup_steps_per_task=100
            sac.samples_per_insert=8 replay.capacity_per_task=1_000
            eval.every_env_steps=20_000 eval.goals=1 eval.final_goals=1 eval.copies=1)
    fi
    run=$(find "$out/runs" -mindepth 1 -maxdepth 1 -type d | sort | tail -n 1)
    if [ -z "$run" ]; then
        set -- train configs/gpu/mt10_pcgrad.yaml runs_dir="$out/runs" "${settings[@]}"
    else
        set -- resume "$run"
    fi
    timeout --signal=INT "$seconds" "$python" -m mtrl "$@" || status=$?
    # 124: the time was up; what stops at a signal saves first
    [ "$status" -eq 0 ] || [ "$status" -eq 124 ] || exit "$status"
    run=$(find "$out/runs" -mindepth 1 -maxdepth 1 -type d | sort | tail -n 1)
    if [ -n "$(ls "$run/evaluations" 2> /dev/null)" ]; then
        "$python" -m mtrl report "$run" --out "$out/report"
    else
        echo "no evaluation yet: call it again"
    fi
}

for step in "${steps[@]}"; do
    "$step"
done

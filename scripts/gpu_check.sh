#!/usr/bin/env bash
# gpu_check.sh [--cpu] [--out FOLDER] [--seconds N] [bench|train]: what a GPU machine has to show.
#
#   bench  updates per second, operation by operation and as CUDA graphs, plain and with PCGrad, MT10 and MT50, widths 400 and
#          1024, and whether graphs give the same numbers → FOLDER/bench.json
#   train  configs/gpu/mt10_pcgrad.yaml for N seconds (default 420, then it saves and reports); called again it goes on where it
#          stopped → FOLDER/runs, FOLDER/report with the success against wall time
#
# Without either it does both; each by itself takes less than ten minutes. FOLDER is runs/gpu if none is given. Needs neither
# Ray nor a network. PYTHON names another interpreter than that of .venv. --cpu rehearses it all with small networks in 20
# seconds of training; what it measures says nothing.
set -euo pipefail

cpu="" out="" seconds="" steps=()
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=1 ;;
        --out) out=$(realpath -m "$2") && shift ;;
        --seconds) seconds=$2 && shift ;;
        bench | train) steps+=("$1") ;;
        *) echo "gpu_check.sh: $1 is none of --cpu, --out FOLDER, --seconds N, bench, train" >&2 && exit 2 ;;
    esac
    shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-runs/gpu}
seconds=${seconds:-$([ -n "$cpu" ] && echo 20 || echo 420)}
[ ${#steps[@]} -gt 0 ] || steps=(bench train)

python=${PYTHON:-.venv/bin/python}
if ! "$python" -c 'import mtrl, torch'; then
    echo "gpu_check.sh: $python has no mtrl and torch; install them (make setup), or name another one in PYTHON" >&2
    exit 2
fi
if [ -n "$cpu" ]; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check.sh: torch sees no GPU here; --cpu rehearses without one" >&2
    exit 2
fi
mkdir -p "$out/runs"

bench() {
    "$python" -m mtrl bench gpu --out "$out/bench.json"
}

newest_run() { # that there is something to go on from, if any
    local manifest
    manifest=$(find "$out/runs" -path '*/checkpoints/*/manifest.json' | sort | tail -n 1)
    echo "${manifest%/checkpoints/*}"
}

train() {
    local settings=() status=0 run
    if [ -n "$cpu" ]; then
        settings=(device=cpu torch_threads=1 total_env_steps=100_000_000 log_every_env_steps=1_000 env.copies=2
            env.max_episode_steps=50 network.actor_widths='[16,16]' network.critic_widths='[16,16]' sac.batch_size=8
            sac.warmup_steps_per_task=100 sac.samples_per_insert=8 replay.capacity_per_task=1_000
            eval.every_env_steps=2_000 eval.goals=1 eval.copies=1)
    fi
    run=$(newest_run)
    if [ -z "$run" ]; then
        set -- train configs/gpu/mt10_pcgrad.yaml runs_dir="$out/runs" "${settings[@]}"
    else
        set -- resume "$run"
    fi
    # at SIGTERM it saves before it ends
    timeout --signal=TERM --kill-after=120 "$seconds" "$python" -m mtrl "$@" || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 124 ] || exit "$status"
    run=$(newest_run)
    if [ -n "$run" ] && [ -n "$(ls "$run/evaluations")" ]; then
        "$python" -m mtrl report "$run" --out "$out/report"
    else
        echo "no evaluation yet: call it again"
    fi
}

for step in "${steps[@]}"; do
    "$step"
done

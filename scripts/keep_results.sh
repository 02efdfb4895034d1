#!/usr/bin/env bash
# keep_results.sh FOLDER RUN...: writes the report of finished runs into FOLDER, and beside it what each run recorded of itself,
# without checkpoints and replay, so that the numbers can be read and reported again.
set -euo pipefail
folder=$1
shift
.venv/bin/mtrl report "$@" --out "$folder"
rm -rf "$folder/runs"
for run in "$@"; do
    kept="$folder/runs/$(basename "$run")"
    mkdir -p "$kept/evaluations"
    cp "$run/versions.json" "$run/metrics.jsonl" "$kept/"
    sed 's|^runs_dir: .*|runs_dir: runs|' "$run/config.yaml" > "$kept/config.yaml"
    cp "$run"/evaluations/*.json "$kept/evaluations/"
done

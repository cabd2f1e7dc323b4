#!/usr/bin/env bash
# Makes models/surface from scratch: crops textures, draws defects, trains and exports. Takes five minutes on two cores, and half an hour
# more for the denoiser that images are drawn and repaired with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bundle=${1:-$here/../../surface}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python "$here/surface.py" --train "$work/train" --groups "$work/groups.csv" --sample "$work/sample.ndjson.gz"
residuald-train images --data "$work/train" --groups "$work/groups.csv" --name surface --version 1 \
    --size 96 --steps "${STEPS:-900}" --generative --generative-steps "${GENERATIVE_STEPS:-4000}" --force --out "$bundle"
cp "$work/sample.ndjson.gz" "$bundle/sample.ndjson.gz"

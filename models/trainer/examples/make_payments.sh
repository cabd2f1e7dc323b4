#!/usr/bin/env bash
# Makes models/payments from scratch: simulates payments, trains and exports. Takes about ten minutes on one core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bundle=${1:-$here/../../payments}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python "$here/payments.py" --history "$work/history.ndjson.gz" --sample "$work/sample.ndjson.gz"
residuald-train tabular --data "$work/history.ndjson.gz" --schema "$here/payments_schema.json" \
    --name payments --version 1 --recipe blind --steps 6000 --coreset 300 --nearest payment_id --generative --force --out "$bundle"
residuald-train screen "$bundle" --data "$work/history.ndjson.gz"
cp "$work/sample.ndjson.gz" "$bundle/sample.ndjson.gz"

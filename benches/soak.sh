#!/usr/bin/env bash
# Memory over a long run on the embedded broker: resident size at a tenth of the records and at the end.
# Fails when they differ by more than 5 %, or when a record is unaccounted for.
#
#   benches/soak.sh [RECORDS]     10,000,000 if not given; needs `make onnxruntime build` and curl
set -euo pipefail
cd "$(dirname "$0")/.."

records=${1:-10000000}
listen=127.0.0.1:19464
log=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$log"' EXIT

# Nothing while the daemon does not serve yet or any more.
metric() {
    { curl -s "http://$listen/metrics" || true; } | awk -v name="$1" '$1 == name {printf "%.0f\n", $2}'
}

target/release/residuald demo --records "$records" --unpaced --listen "$listen" --json >"$log" &
daemon=$!

early=0 late=0
while kill -0 "$daemon" 2>/dev/null; do
    scored=$(metric residuald_records_scored_total)
    resident=$(metric process_resident_memory_bytes)
    if [ -n "$scored" ] && [ -n "$resident" ]; then
        late=$resident
        if [ "$early" = 0 ] && [ "$scored" -ge $((records / 10)) ]; then
            early=$resident
            echo "$scored records: $early bytes resident" >&2
        fi
    fi
    sleep 0.5
done
wait "$daemon"
echo "$records records: $late bytes resident" >&2
tail -n 1 "$log" >&2

awk -v records="$records" -v early="$early" -v late="$late" 'BEGIN {
    ratio = late / early
    printf "{\"records\":%d,\"resident_early\":%d,\"resident_late\":%d,\"ratio\":%.4f}\n", records, early, late, ratio
    exit !(ratio < 1.05)
}'

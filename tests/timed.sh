#!/usr/bin/env bash
# cargo's runner for `make test`: runs a test binary and appends what it says, with the seconds of each test, to $TEST_TIMES.
# libtest gives times only to those who may use unstable options; RUSTC_BOOTSTRAP is set for the binary that runs, and
# nothing is compiled with it. A libtest without that option runs as ever.
set -euo pipefail
timed=(-Zunstable-options --report-time)
RUSTC_BOOTSTRAP=1 "$1" "${timed[@]}" --list >/dev/null 2>&1 || timed=()
RUSTC_BOOTSTRAP=1 "$@" ${timed[@]+"${timed[@]}"} | tee -a "$TEST_TIMES"

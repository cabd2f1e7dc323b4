#!/usr/bin/env bash
# Makes models/textures from scratch: crops and tints textures, draws defects, writes captions, trains the denoiser, then
# the paraphrases. Takes an hour on one core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
pipeline=${1:-$here/../../textures}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python "$here/textures.py" --out "$work/images" --captions "$work/captions.csv"
python "$here/minilm.py" --out "$work/encoder"
residuald-train text-to-image --data "$work/images" --captions "$work/captions.csv" --text-encoder "$work/encoder" \
    --steps "${STEPS:-7000}" --amp --threads 1 --out "$work/denoiser"

python "$here/texture_words.py" --out "$work/pairs.csv"
residuald-train paraphrases "$work/denoiser" --pairs "$work/pairs.csv" --held-out "$here/texture_strangers.csv" \
    --threads 1 --force --out "$pipeline"

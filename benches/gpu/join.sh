#!/usr/bin/env bash
# Joins the parts of the GPU kit and runs it, on the machine with the card:
#
#   join.sh PARTS [OPTION...]    PARTS: the folder with kit.tar.xz.00, .01, ... and SHA256SUMS.
#                                The options go to run.py; see run.py --help.
#
# Needs bash, tar, xz, sha256sum, and a python3 with PyTorch, whose CUDA and cuDNN libraries ONNX Runtime uses.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 64; }
parts=$1
shift
kit=$parts/kit

(cd "$parts" && sha256sum --check --quiet SHA256SUMS) || {
    echo "join.sh: a part is missing or damaged (see above); copy it again" >&2
    exit 65
}
if [ ! -e "$kit/joined" ]; then
    mkdir -p "$kit"
    cat "$parts"/kit.tar.xz.[0-9][0-9] | xz -dc -T0 | tar -x -C "$kit"
    touch "$kit/joined"
fi

# CUDA's wheels keep their libraries in nvidia/*/lib beside torch. TensorRT's wheels keep them in tensorrt_libs.
libraries=$(python3 - <<'PY'
import glob, os, sysconfig
site = sysconfig.get_paths()["purelib"]
try:
    import torch
    site = os.path.dirname(os.path.dirname(torch.__file__))
except ImportError:
    pass
found = sorted(glob.glob(f"{site}/nvidia/*/lib") + glob.glob(f"{site}/nvidia/*/lib/x86_64-linux-gnu") + glob.glob(f"{site}/tensorrt_libs"))
print(":".join(found))
PY
)
export LD_LIBRARY_PATH="$kit/lib:$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Use the kit's copies of system libraries only if this machine lacks some.
if ldd "$kit/bin/residuald" | grep -q "not found"; then
    export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$kit/extra"
fi
export ORT_DYLIB_PATH="$kit/lib/libonnxruntime.so"
exec python3 "$kit/scripts/run.py" --kit "$kit" "$@"

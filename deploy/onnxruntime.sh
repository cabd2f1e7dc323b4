#!/usr/bin/env bash
# Downloads ONNX Runtime's shared library from its PyPI wheel, with pinned version and checksum.
#
#   deploy/onnxruntime.sh              CPU                          -> .onnxruntime/
#   deploy/onnxruntime.sh --gpu        CUDA 13 and TensorRT (large) -> .onnxruntime-gpu/
#   deploy/onnxruntime.sh --dest DIR   the same, into DIR
#
# The folder then holds libonnxruntime.so.VERSION, the link libonnxruntime.so that
# .cargo/config.toml points ORT_DYLIB_PATH at, the providers, and SHA256SUMS. A second call
# only checks these sums and downloads nothing. Needs python3 with pip.
#
# To change the version, change it below together with the sha256 of each wheel, as PyPI lists it.
set -euo pipefail

version=1.31.1
root=$(cd "$(dirname "$0")/.." && pwd)
package=onnxruntime
dest=

die() { echo "onnxruntime.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --gpu) package=onnxruntime-gpu ;;
        --dest) [ $# -ge 2 ] || die "--dest wants a folder"; dest=$2; shift ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown argument '$1'; see --help" ;;
    esac
    shift
done
[ -n "$dest" ] || dest=$root/.${package}

# The cp311 wheel is used with every python3, because only the library inside matters.
case "$package $(uname -s) $(uname -m)" in
    "onnxruntime Linux x86_64")
        platform=manylinux_2_28_x86_64
        sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f ;;
    "onnxruntime Linux aarch64")
        platform=manylinux_2_28_aarch64
        sha256=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3 ;;
    "onnxruntime Darwin arm64")
        platform=macosx_14_0_arm64
        sha256=60b6b69bfe580eab576cacc5d132a0e9cf2a37fcfd18d46dd191042b1d1ed0d7 ;;
    "onnxruntime-gpu Linux x86_64")
        platform=manylinux_2_28_x86_64
        sha256=e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6 ;;
    "onnxruntime-gpu Linux aarch64")
        platform=manylinux_2_34_aarch64
        sha256=dc878916611b8a816000ffedacc5f5988f77bb93bf9655ad20144ee3acb08e55 ;;
    *) die "PyPI has no $package $version wheel for $(uname -s) $(uname -m); install ONNX Runtime yourself and set ORT_DYLIB_PATH to its library" ;;
esac

command -v python3 >/dev/null || die "python3 is missing; install it (Debian: apt-get install python3 python3-pip)"

# Succeeds if DEST holds the unchanged libraries of exactly this wheel.
unpacked() {
    python3 - "$dest" "$sha256" <<'PY'
import hashlib, pathlib, sys
dest, wheel = pathlib.Path(sys.argv[1]), sys.argv[2]
try:
    first, *sums = (dest / "SHA256SUMS").read_text().splitlines()
    intact = first == f"# wheel {wheel}" and (dest / "libonnxruntime.so").exists() and all(
        hashlib.sha256((dest / name).read_bytes()).hexdigest() == sha256
        for sha256, name in (line.split("  ") for line in sums)
    )
except (OSError, ValueError):
    intact = False
sys.exit(not intact)
PY
}

if unpacked; then
    echo "ONNX Runtime $version is in ${dest#"$root"/}"
    exit 0
fi

python3 -m pip --version >/dev/null 2>&1 ||
    die "python3 has no pip; install it (Debian: apt-get install python3-pip, elsewhere: python3 -m ensurepip)"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "bringing $package $version ($platform) from PyPI"
echo "$package==$version --hash=sha256:$sha256" >"$scratch/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "$platform" --python-version 3.11 --implementation cp --abi cp311 \
    --require-hashes --requirement "$scratch/requirements.txt" --dest "$scratch" ||
    die "pip could not bring $package $version with sha256 $sha256 (see above); check the network or pip's index settings and call this again"

mkdir -p "$dest"
python3 - "$scratch" "$dest" "$sha256" <<'PY'
import hashlib, os, pathlib, re, sys, zipfile
scratch, dest, wheel = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
(dest / "SHA256SUMS").unlink(missing_ok=True)
sums = [f"# wheel {wheel}"]
with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
    for member in archive.namelist():
        name = pathlib.PurePosixPath(member).name
        if not re.fullmatch(r"libonnxruntime[\w.]*\.(so[\d.]*|dylib)", name):
            continue
        library = archive.read(member)
        # The file is renamed into place, so that a running daemon keeps the file that it has mapped.
        part = dest / f"{name}.part"
        part.write_bytes(library)
        part.replace(dest / name)
        sums.append(f"{hashlib.sha256(library).hexdigest()}  {name}")
        if "providers" not in name:
            for link in {"libonnxruntime.so", "libonnxruntime" + (".dylib" if name.endswith(".dylib") else ".so")}:
                (dest / link).unlink(missing_ok=True)
                os.symlink(name, dest / link)
(dest / "SHA256SUMS").write_text("\n".join(sums) + "\n")
PY
unpacked || die "the wheel holds no libonnxruntime; was its layout changed?"
echo "ONNX Runtime $version is in ${dest#"$root"/}"

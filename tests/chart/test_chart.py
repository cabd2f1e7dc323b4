"""Tests the Helm chart: manifests are valid, safe and as before, and wrong values are refused."""

import difflib
import hashlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from cluster import cluster
from tools import CHART, ROOT, TOOLS, VALUES, helm, manifests, objects, residuald, run, skip, template, tool
from values_table import documented, with_table

GOLDEN = Path(__file__).parent / "golden"
NOT_GOLDEN = {"prometheusrule.yaml", "dashboards.yaml"}  # copies of files with separate tests


def named(stem):
    """The path of the values file with this name."""
    return next(path for path in VALUES if path.stem == stem)


MINIMAL = ("--values", named("minimal"))


def one(kind, text, name=None):
    """The only object of a kind (with this name, if given) in rendered manifests."""
    found = [o for o in objects(text) if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, [o["metadata"]["name"] for o in found]
    return found[0]


def pod(text):
    return one("Deployment", text)["spec"]["template"]


def container(text):
    (only,) = pod(text)["spec"]["containers"]
    return only


def settings(text):
    """The content of the mounted residuald.toml."""
    maps = [o for o in objects(text) if o["kind"] == "ConfigMap" and "residuald.toml" in o["data"]]
    return maps[0]["data"]["residuald.toml"]


# --- Valid -----------------------------------------------------------------------------------


def test_helm_lints_it(values):
    linted = helm("lint", "--strict", "--values", values, CHART)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.fixture(scope="session")
def custom_schemas(tmp_path_factory):
    """JSON schemas of the custom resources that allow no unknown fields, as strict as `kubectl`."""
    if not (TOOLS / "crds").is_dir():
        skip("the schemas of Kubernetes are missing (make chart-tools)")
    folder = tmp_path_factory.mktemp("crds")
    for path in (TOOLS / "crds").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            name = f"{definition['names']['singular']}-{definition['group'].split('.')[0]}-{version['name']}.json"
            (folder / name).write_text(json.dumps(closed(version["schema"]["openAPIV3Schema"])))
    return folder


def closed(schema):
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def complaints(texts, custom_schemas, folder):
    """Checks {name: manifests} with kubeconform -> {(name, kind): error}."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    file = "{{.ResourceKind}}{{.KindSuffix}}.json"
    places = [f"-schema-location={schemas}/{file}" for schemas in (TOOLS / "schemas", custom_schemas)]
    checked = run(tool("kubeconform", "make chart-tools"), "-strict", "-output=json", *places, folder)
    return {(Path(r["filename"]).stem, r["kind"]): r["msg"] for r in json.loads(checked.stdout)["resources"]}


def test_kubernetes_and_the_operators_would_take_it(custom_schemas, tmp_path):
    texts = {values.stem: manifests(values) for values in VALUES}
    everything = texts["everything"]
    broken = everything.replace("automountServiceAccountToken:", "automountToken:").replace("pollingInterval:", "poll:")
    texts["broken"] = broken.replace("podMetricsEndpoints:", "endpoints:")
    # Finding unknown fields, also in custom resources, proves that the check works.
    wrong = {"Deployment", "Pod", "ServiceAccount", "ScaledObject", "PodMonitor"}
    found = complaints(texts, custom_schemas, tmp_path)
    assert set(found) == {("broken", kind) for kind in wrong}, found


def test_it_is_as_before(values, regenerate):
    documents = re.split(r"(?m)^---\n", manifests(values))
    kept = [d for d in documents if d.strip() and d.split("\n")[0].rsplit("/", 1)[-1] not in NOT_GOLDEN]
    text = "---\n".join(["", *kept])
    golden = GOLDEN / values.name
    if regenerate:
        golden.write_text(text)
    before = golden.read_text() if golden.exists() else ""
    changes = difflib.unified_diff(before.splitlines(), text.splitlines(), str(golden), "rendered", lineterm="")
    assert before == text, "\n".join([*changes, "if this is intended, run: pytest tests/chart --regenerate"])


def test_every_golden_manifest_has_its_values():
    assert {path.name for path in GOLDEN.glob("*.yaml")} == {path.name for path in VALUES}


# --- Refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "bundle.pvc.claimName=models"], "set exactly one of bundle.pvc.claimName"),
        (["--set", "bundle.image.reference="], "bundle.init.image: 0 are set"),
        (["--kube-version", "1.30.0"], "bundle.image needs Kubernetes 1.31 or newer, this is v1.30.0: use bundle.init"),
        (["--set", "config.kafka.brokers="], "config.kafka.brokers is not set"),
        (["--set", "config.kafka.topics="], "config.kafka.topics is not set"),
        (["--set", "config.kafka.drain_timeout=soon"], 'config.kafka.drain_timeout = "soon": write it as a number'),
        (["--set", "config.model.bundle=/here"], "config.model.bundle is set by the chart"),
        (["--set", "config.http.listen=127.0.0.1:9464"], "probes cannot reach a loopback address"),
        (["--set", r"config.kafka.consumer.group\.instance\.id=a"], "replicas that share it fence each other"),
        (["--set", r"config.kafka.producer.transactional\.id=a"], "replicas that share it fence each other"),
        (["--set", "keda.enabled=true"], "keda.partitions is not set"),
        (
            ["--set", "keda.enabled=true,keda.partitions=4,keda.maxReplicaCount=5"],
            "keda.maxReplicaCount = 5 is above keda.partitions = 4",
        ),
        (
            ["--set", "keda.enabled=true,keda.partitions=4,keda.minReplicaCount=5"],
            "keda.minReplicaCount = 5 is above keda.maxReplicaCount = 4",
        ),
        (["--set", "keda.enabled=true,keda.partitions=4,hpa.enabled=true"], "keda and hpa would both scale"),
        (["--set", "replicaCount=2"], "'replicaCount'"),
        (["--set", "bundle.pvc.claim=models"], "'claim'"),
        (["--set", "config.kafak.brokers=kafka:9092"], "'kafak'"),
        (["--set", "replicas=many"], "/replicas"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    refused = template(*MINIMAL, *arguments)
    assert refused.returncode != 0
    assert message in refused.stderr


def test_it_knows_the_sections_of_residualds_settings():
    schema = json.loads((CHART / "values.schema.json").read_text())
    sections = tomllib.loads((ROOT / "src/default.toml").read_text())
    assert set(schema["properties"]["config"]["properties"]) == set(sections)


# --- Safe ------------------------------------------------------------------------------------


def test_no_pod_has_privileges(values):
    pods = [o["spec"] for o in objects(manifests(values)) if o["kind"] == "Pod"]
    for spec in [pod(manifests(values))["spec"], *pods]:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for each in spec["containers"] + spec.get("initContainers", []):
            security = each["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in each["resources"]["limits"]


@pytest.mark.parametrize(("drain", "grace"), [("25s", 40), ("2m", 135), ("1500ms", 17), ("100ms", 16)])
def test_a_pod_has_longer_than_its_drain(drain, grace):
    text = template(*MINIMAL, "--set", f"config.kafka.drain_timeout={drain}").stdout
    assert pod(text)["spec"]["terminationGracePeriodSeconds"] == grace


def test_new_settings_are_a_rollout():
    def checksum(*arguments):
        return pod(template(*MINIMAL, *arguments).stdout)["metadata"]["annotations"]["checksum/config"]

    before = checksum()
    assert before == hashlib.sha256(settings(template(*MINIMAL).stdout).strip().encode()).hexdigest()
    assert checksum("--set", "config.batch.max_records=64") != before
    assert checksum("--set", "replicas=3") == before


def test_what_asks_a_pod_finds_its_port(values):
    text = manifests(values)
    only = container(text)
    (port,) = only["ports"]
    listen = tomllib.loads(settings(text))["http"]["listen"]
    assert listen.endswith(f":{port['containerPort']}")
    scheme = "https" if "tls_certificate" in settings(text) else "http"
    for probe, path in [("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")]:
        asked = only[f"{probe}Probe"]["httpGet"]
        assert asked == {"path": path, "port": port["name"], "scheme": scheme.upper()}
    labels = pod(text)["metadata"]["labels"].items()
    service = one("Service", text)["spec"]
    assert service["selector"].items() <= labels
    assert service["ports"] == [{"name": "http", "port": port["containerPort"], "targetPort": port["name"]}]
    for monitor in [o["spec"] for o in objects(text) if o["kind"] == "PodMonitor"]:
        assert monitor["selector"]["matchLabels"].items() <= labels
        (endpoint,) = monitor["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"], endpoint["scheme"]) == (port["name"], "/metrics", scheme)


def test_the_test_pod_is_no_replica(values):
    labels = one("Pod", manifests(values))["metadata"]["labels"]
    selector = one("Deployment", manifests(values))["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= labels.items()


def test_the_startup_probe_is_patient_and_the_others_are_not():
    only = container(template(*MINIMAL).stdout)
    start = only["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 300
    assert "failureThreshold" not in only["livenessProbe"]
    assert "failureThreshold" not in only["readinessProbe"]


def test_who_scales_sets_the_replicas():
    assert one("Deployment", template(*MINIMAL, "--set", "replicas=3").stdout)["spec"]["replicas"] == 3
    for values in VALUES:
        kinds = {o["kind"] for o in objects(manifests(values))}
        scaled = bool(kinds & {"ScaledObject", "HorizontalPodAutoscaler"})
        assert scaled != ("replicas" in one("Deployment", manifests(values))["spec"]), values


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_the_replicas_that_run_stay_when_an_autoscaler_is_turned_on(scaler):
    def replicas(deployment):
        with cluster("scoring", deployment, 7) as server:
            rendered = template("--values", named(scaler), *server)
        assert rendered.returncode == 0, rendered.stderr
        return one("Deployment", rendered.stdout)["spec"].get("replicas")

    assert replicas("residuald") == 7
    # Before the first install there are no replicas to keep.
    assert replicas("another") is None


def test_the_replicas_are_the_values_without_an_autoscaler():
    with cluster("scoring", "residuald", 7) as server:
        rendered = template(*MINIMAL, "--set", "replicas=3", *server)
    assert one("Deployment", rendered.stdout)["spec"]["replicas"] == 3


# --- residuald's settings ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def secrets(tmp_path_factory):
    """A folder with the content of the Secret in exactly-once.yaml."""
    folder = tmp_path_factory.mktemp("secrets")
    made = run(
        *(tool("openssl", "make tools"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=residuald"),
        *("-keyout", folder / "tls.key", "-out", folder / "tls.crt"),
    )
    assert made.returncode == 0, made.stderr
    (folder / "ca.pem").write_bytes((folder / "tls.crt").read_bytes())
    (folder / "http-token").write_text("chart")
    return folder


def test_residuald_takes_its_settings(values, secrets, tmp_path):
    file = tmp_path / "residuald.toml"
    file.write_text(settings(manifests(values)).replace("/etc/residuald/", f"{secrets}/"))
    names = ["KAFKA_PASSWORD", "REGISTRY_PASSWORD", "HTTP_TOKEN", "RESIDUALD__KAFKA__CLIENT__SASL_PASSWORD"]
    # Replaces what exists only in the cluster: the bundle, a GPU, a volume.
    here = {"model.bundle": ROOT / "models/payments", "inference.provider": "cpu"}
    if "media_dir" in file.read_text():
        here["output.media_dir"] = tmp_path
    sets = [argument for key, value in here.items() for argument in ("--set", f"{key}={value}")]
    checked = residuald("check", "--config", file, *sets, **dict.fromkeys(names, "chart"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_numbers_stay_what_they_are(tmp_path):
    values = tmp_path / "values.yaml"
    values.write_text("config: {batch: {max_records: 1000000}, threshold: {false_alarm_rate: 0.00001}}")
    toml = settings(template(*MINIMAL, "--values", values).stdout)
    assert "batch.max_records = 1000000\n" in toml
    assert tomllib.loads(toml)["threshold"] == {"false_alarm_rate": 0.00001}


def test_texts_stay_what_they_are(tmp_path):
    hostile = {'quote"dot.': 'a "b" \\ <c> {{ .d }}\n# é', "plain": [1, "two"], "null": None, "empty": {}}
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"config": {"output": hostile}}))
    toml = tomllib.loads(settings(template(*MINIMAL, "--values", values).stdout))
    assert toml["output"] == {key: value for key, value in hostile.items() if value}


# --- Copies and words ----------------------------------------------------------------------------


def test_its_version_is_the_crates():
    crate = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == crate


@pytest.mark.parametrize(
    ("original", "kind"),
    [("deploy/prometheus/residuald.rules.yaml", "PrometheusRule"), ("grafana/*.json", "ConfigMap")],
)
def test_the_charts_copies_are_true(original, kind):
    """A chart must contain copies of these files, because it is packed without the rest of the repository."""
    originals = {path.name: path.read_text() for path in ROOT.glob(original)}
    copies = {path.name: path.read_text() for path in (CHART / "files").glob(original.rsplit("/", 1)[-1])}
    assert copies == originals, f"cp {original} {CHART.relative_to(ROOT)}/files/"
    everything = manifests(named("everything"))
    linked = {
        name: text.replace("deploy/runbook.md", "https://wiki.example.com/residuald") for name, text in copies.items()
    }
    if kind == "PrometheusRule":
        (rules,) = linked.values()
        assert one(kind, everything)["spec"] == yaml.safe_load(rules)
    else:
        dashboards = one(kind, everything, "fraud-dashboards")
        assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert dashboards["data"] == linked


def test_its_table_of_values_is_true(regenerate):
    values, readme = CHART / "values.yaml", CHART / "README.md"
    text = with_table(readme.read_text(), values.read_text())
    if regenerate:
        readme.write_text(text)
    assert readme.read_text() == text, "pytest tests/chart --regenerate"
    assert [key for key, _, text in documented(values.read_text()) if not text] == []


def test_the_readmes_examples_work(tmp_path):
    readme = (CHART / "README.md").read_text()
    first, secrets, kerberos = re.findall(r"(?s)(?:<<'YAML'|```yaml)\n(.*?)(?:YAML|```)\n", readme)
    examples = {"first.yaml": first, "secrets.yaml": secrets}
    for name, text in examples.items():
        (tmp_path / name).write_text(text)
    merged = template(*(part for name in examples for part in ("--values", tmp_path / name)))
    assert "residuald-env" in merged.stdout, merged.stderr
    (tmp_path / "kerberos.yaml").write_text(kerberos)
    by_kerberos = template("--values", tmp_path / "first.yaml", "--values", tmp_path / "kerberos.yaml")
    assert by_kerberos.returncode == 0, by_kerberos.stderr
    mounts = {mount["mountPath"] for mount in container(by_kerberos.stdout)["volumeMounts"]}
    assert {"/krb5", "/tickets", "/etc/residuald"} <= mounts
    command = re.search(
        r"helm install fraud deploy/helm/residuald((?: .*\\\n)+ .*\n)", (ROOT / "docs/src/deployment.md").read_text()
    )
    by_flags = template(*shlex.split(command[1].replace("\\\n", " ")))
    assert "reference: registry.example.com/models/payments:1" in by_flags.stdout, by_flags.stderr


def test_the_notes_say_what_is_next():
    # Only an install renders the notes. A dry run on the client does not contact a cluster.
    notes = helm("install", "fraud", CHART, "--dry-run=client", *MINIMAL).stdout
    for expected in ["reads payments from kafka:9092", "helm -n default test fraud", "port-forward deployment/fraud-"]:
        assert expected in notes

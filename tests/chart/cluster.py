"""A fake Kubernetes API with one Deployment, for `helm template --dry-run=server`, which reads the cluster."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The kinds that the chart may render, by API group and version.
KINDS = {
    "v1": ["ConfigMap", "Pod", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "keda.sh/v1alpha1": ["ScaledObject"],
    "policy/v1": ["PodDisruptionBudget"],
}


def discovery():
    """{path: response} of API discovery, with which a client learns what kinds exist."""
    groups = []
    answers = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    for version, kinds in KINDS.items():
        verbs = {"namespaced": True, "verbs": ["get"]}
        resources = [{"name": f"{k.lower()}s", "singularName": k.lower(), "kind": k, **verbs} for k in kinds]
        base = "/apis/" if "/" in version else "/api/"
        answers[base + version] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        if "/" in version:
            group, short = version.split("/")
            versions = [{"groupVersion": version, "version": short}]
            groups.append({"name": group, "versions": versions, "preferredVersion": versions[0]})
    answers["/apis"] = {"kind": "APIGroupList", "groups": groups}
    return answers


@contextmanager
def cluster(namespace, name, replicas):
    """Runs the fake API and yields Helm arguments to use it. Its Deployment and release are both called `name`."""
    answers = discovery()
    answers[f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
        },
        "spec": {"replicas": replicas},
    }
    missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.split("?")[0])
            body = json.dumps(answer or missing).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address]
    finally:
        server.shutdown()

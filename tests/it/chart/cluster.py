# A Kubernetes API with some secrets and stateful sets and nothing else, for what the chart looks up: `helm`, `chart` and the
# imports are there already. Arguments: release, values, secrets as {name: {key: text}}, and stateful sets as
# {name: {"release": name, "selector": labels}}. Prints the manifests that Helm would install.
import base64
import http.server
import threading

KINDS = {
    "v1": ["Secret", "Service"],
    "apps/v1": ["StatefulSet", "Deployment"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
}
release = sys.argv[1]
values, secrets, sets = (json.loads(text) for text in sys.argv[2:])


def resources(version):
    names = {kind: kind.lower().removesuffix("y") + ("ies" if kind[-1] == "y" else "s") for kind in KINDS[version]}
    found = [{"name": name, "namespaced": True, "kind": kind, "verbs": ["get"]} for kind, name in names.items()]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": found}


def groups():
    served = [{"groupVersion": version, "version": "v1"} for version in KINDS if "/" in version]
    found = [{"name": one["groupVersion"].split("/")[0], "versions": [one], "preferredVersion": one} for one in served]
    return {"kind": "APIGroupList", "groups": found}


def metadata(name, owner):
    # Helm's own marks, so that it would update the object.
    marks = {"meta.helm.sh/release-name": owner, "meta.helm.sh/release-namespace": "sccache"}
    return {"name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": marks}


def secret(name):
    data = {key: base64.b64encode(text.encode()).decode() for key, text in secrets[name].items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(name, release)} | ({"data": data} if data else {})


def stateful_set(name):
    spec = {"selector": {"matchLabels": sets[name]["selector"]}}
    marks = metadata(name, sets[name]["release"])
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": marks, "spec": spec}


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        served = {"/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}}
        served |= {"/api": {"kind": "APIVersions", "versions": ["v1"]}, "/apis": groups()}
        served |= {("/apis/" if "/" in version else "/api/") + version: resources(version) for version in KINDS}
        served |= {"/api/v1/namespaces/sccache/secrets/" + name: secret(name) for name in secrets}
        served |= {"/apis/apps/v1/namespaces/sccache/statefulsets/" + name: stateful_set(name) for name in sets}
        # No schemas: of an empty document Helm says nothing.
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        body = b"" if path == "/openapi/v2" else json.dumps(served.get(path, missing)).encode()
        self.send_response(200 if path in served or not body else 404)
        self.send_header("Content-Type", "application/json" if body else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=api.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{api.server_port}"
empty = "apiVersion: v1\nkind: Config\n"
cluster = helm.Config(
    kube_apiserver=address, kubeconfig_content=empty, namespace="sccache", storage_driver="memory"
)
print(cluster.install(chart, release, values, dry_run="server")["manifest"])

"""Kubernetes, compose, Prometheus and Grafana files against their schemas, each other, and a real server's metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.request import urlopen

import pytest
import yaml

from atomsieve.remote.transport import EndpointError
from atomsieve.remote.url import PORTS
from atomsieve.remote.wire import request_arrays
from tests.containers.test_images import FOLDER, ROOT, instructions, tool
from tests.helpers import copper_oxides

KUBERNETES = FOLDER / "kubernetes"
BASE = KUBERNETES / "base"
OWN_KINDS = ("Kustomization", "ServiceMonitor")
"""Kinds that Kubernetes itself does not know."""
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}
"""Exported only where the server sees a GPU."""


def manifests():
    return [p for p in sorted(KUBERNETES.rglob("*.yaml")) if yaml.safe_load(p.read_text())["kind"] not in OWN_KINDS]


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_manifests_fit_the_schemas_of_kubernetes(version):
    validate = pytest.importorskip("kubernetes_validate")
    found = manifests()
    assert len(found) >= 9
    for path in found:
        document = load(path)
        if path.parent.name == "gpu":  # a patch: what it leaves out comes from the base
            document = merged(load(BASE / "statefulset.yaml"), document)
        validate.validate(document, version, strict=True)


def test_a_wrong_manifest_is_noticed():
    validate = pytest.importorskip("kubernetes_validate")
    document = load(BASE / "statefulset.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(validate.ValidationError, match="livenessProb"):
        validate.validate(document, "1.30", strict=True)


def merged(base, patch):
    """Return a base with a patch on top, lists of named things merged by name, as kustomize does."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {
            k: merged(base[k], patch[k]) if k in base and k in patch else patch.get(k, base.get(k))
            for k in base | patch
        }
    if isinstance(base, list) and all(isinstance(x, dict) and "name" in x for x in [*base, *patch]):
        own = {x["name"]: x for x in patch}
        return [merged(x, own.pop(x["name"], {})) for x in base] + list(own.values())
    return patch


def test_kustomize_names_what_is_there():
    for path in KUBERNETES.rglob("kustomization.yaml"):
        found = load(path)
        for name in [*found.get("resources", ()), *(p["path"] for p in found.get("patches", ()))]:
            assert (path.parent / name).exists(), name
    listed = set(load(BASE / "kustomization.yaml")["resources"])
    assert listed == {p.name for p in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    patch, base = load(KUBERNETES / "gpu/gpu.yaml"), load(BASE / "statefulset.yaml")
    assert all(patch[key] == base[key] for key in ("apiVersion", "kind"))
    assert patch["metadata"] == {k: base["metadata"][k] for k in patch["metadata"]}
    [image] = load(BASE / "kustomization.yaml")["images"]
    assert image["name"] == base["spec"]["template"]["spec"]["containers"][0]["image"]
    assert load(KUBERNETES / "gpu/kustomization.yaml")["images"][0]["name"] == image["newName"]


def test_manifests_name_each_other():
    stateful, service = load(BASE / "statefulset.yaml"), load(BASE / "service.yaml")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    pod = stateful["spec"]["template"]["spec"]
    [container] = pod["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"http": PORTS["http"], "grpc": PORTS["grpc"], "metrics": 8002}
    for selector in (
        stateful["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        load(BASE / "networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
        load(BASE / "poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert (
        load(KUBERNETES / "servicemonitor.yaml")["spec"]["selector"]["matchLabels"].items()
        <= service["metadata"]["labels"].items()
    )
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert {p["targetPort"] for p in service["spec"]["ports"]} == set(ports)
    for rule in load(BASE / "networkpolicy.yaml")["spec"]["ingress"]:
        assert {p["port"] for p in rule["ports"]} <= set(ports)
    target = load(KUBERNETES / "autoscaling.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (stateful["kind"], stateful["metadata"]["name"])
    secret = load(KUBERNETES / "secret.example.yaml")
    [token] = [v["secret"] for v in pod["volumes"] if "secret" in v]
    assert token["secretName"] == secret["metadata"]["name"]
    [where] = [e["value"] for e in container["env"] if e["name"] == "ATOMSIEVE_TOKEN_FILE"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert where == f"{mounts['token']}/{next(iter(secret['stringData']))}"
    assert set(mounts) == {v["name"] for v in pod["volumes"]}
    assert "secret.example.yaml" not in str(load(BASE / "kustomization.yaml")["resources"])
    namespaces = {
        load(p)["metadata"].get("namespace", "atomsieve") for p in KUBERNETES.rglob("*.yaml") if "metadata" in load(p)
    }
    assert namespaces == {"atomsieve"}


def test_pods_are_confined_and_probed_by_true_inference():
    pod = load(BASE / "statefulset.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    users = {rest for path in FOLDER.glob("Dockerfile*") for word, rest in instructions(path) if word == "USER"}
    assert users == {f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    [token] = [v["secret"] for v in pod["volumes"] if "secret" in v]
    assert token["defaultMode"] & 0o007 == 0, "a token that others may read is refused"
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    for probe in (probes["startup"], probes["readiness"]):
        [program] = probe["exec"]["command"]
        assert (FOLDER / program.removeprefix("/opt/containers/")).is_file()
        assert probe["timeoutSeconds"] <= 60
    # behind a long queue a sound server answers late: it must be neither killed nor forgotten
    assert probes["liveness"]["tcpSocket"]["port"] in {p["name"] for p in container["ports"]}
    assert load(BASE / "service.yaml")["spec"]["publishNotReadyAddresses"] is True
    patience = {kind: p["periodSeconds"] * p["failureThreshold"] for kind, p in probes.items()}
    assert patience["liveness"] >= 10 * patience["readiness"], (
        "the supervisor heals a model; killing the pod is the last resort"
    )
    assert "atomsieve serve check" in (FOLDER / "steps/healthcheck.sh").read_text()


def test_compose_fits_its_schema():
    program = tool("check-jsonschema")
    line = [program, "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_names_what_is_there_and_opens_nothing():
    compose = load(FOLDER / "compose.yaml")
    made_by_its_user = {"./models", "./token"}
    for name, service in compose["services"].items():
        assert re.search(r":(cpu|v?\d+\.\d+(\.\d+)?[\w.-]*)$", service["image"]), f"{service['image']} is not pinned"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source in made_by_its_user or (FOLDER / source).exists(), source
        assert service["cap_drop"] == ["ALL"]
    server = compose["services"]["server"]
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    assert compose["secrets"][server["secrets"][0]]["file"] == "./token"
    config = load(FOLDER / "prometheus/prometheus.yml")
    [targets] = [c["static_configs"][0]["targets"] for c in config["scrape_configs"]]
    assert targets == ["server:8002"]
    assert all((FOLDER / "prometheus" / name).is_file() for name in config["rule_files"])
    for name in ("GRAFANA_PASSWORD", "ATOMSIEVE_UID", "ATOMSIEVE_GID"):
        assert f"{name}=" in (FOLDER / "compose.yaml").read_text(), "its head says how to write .env"


def test_prometheus_takes_its_files():
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = subprocess.run(
            [tool("promtool"), "check", kind, FOLDER / "prometheus" / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_alerts_ring_when_they_should_and_only_then():
    done = subprocess.run(
        [tool("promtool"), "test", "rules", ROOT / "tests/containers/alert_cases.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard():
    return json.loads((FOLDER / "grafana/dashboards/atomsieve.json").read_text())


def expressions() -> dict[str, str]:
    """Return all PromQL of the dashboard and the alerts by where it is."""
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['id']} {panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard()["templating"]["list"]:
        found[f"variable {variable['name']}"] = variable["query"]["query"]
    for group in load(FOLDER / "prometheus/alerts.yml")["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = rule["expr"]
    return found


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:nv|atomsieve)_\w+", expression))


def test_grafana_finds_what_is_provisioned():
    [source] = load(FOLDER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    [provider] = load(FOLDER / "grafana/provisioning/dashboards/atomsieve.yaml")["providers"]
    volumes = dict(v.split(":")[:2][::-1] for v in load(FOLDER / "compose.yaml")["services"]["grafana"]["volumes"])
    assert volumes[provider["options"]["path"]] == "./grafana/dashboards"
    board = dashboard()
    panels = board["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for panel in panels:
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == source["uid"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for other in panels:
            o = other["gridPos"]
            apart = (
                place["x"] + place["w"] <= o["x"]
                or o["x"] + o["w"] <= place["x"]
                or place["y"] + place["h"] <= o["y"]
                or o["y"] + o["h"] <= place["y"]
            )
            assert apart or other is panel, (panel["title"], other["title"])
    variables = {v["name"] for v in board["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for p in panels for t in p["targets"])))
    assert used - {"__rate_interval"} == variables


@pytest.mark.slow
def test_every_metric_in_use_is_exported_by_the_server_with_the_labels_in_use(deployed):
    with deployed.transport() as transport:
        transport.infer("gfm", request_arrays(copper_oxides(3)), ["energy"])
        with pytest.raises(EndpointError):
            transport.infer("gfm", request_arrays(copper_oxides(1)), ["energy"], {"head": "none such"})
    with urlopen(f"http://127.0.0.1:{deployed.metrics}/metrics") as page:
        text = page.read().decode()
    exported = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(\w+)\{([^}]*)\}", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=", inside))
    for where, expression in expressions().items():
        wanted = metrics_in(expression) - GPU_METRICS
        assert wanted <= exported, f"{where}: {sorted(wanted - exported)} is not among {sorted(exported)}"
        for name, inside in re.findall(r"\b((?:nv|atomsieve)_\w+)\{([^}]*)\}", expression):
            if name not in GPU_METRICS:
                asked = set(re.findall(r"(\w+)\s*[!=]", inside)) - {"instance", "job"}  # those are Prometheus' own
                assert asked <= labels.get(name, set()), (
                    f"{where}: {name} has no {sorted(asked - labels.get(name, set()))}"
                )
    assert {"status"} <= labels["atomsieve_structures_total"]
    assert {"kind"} <= labels["atomsieve_errors_total"]
    used = set().union(*map(metrics_in, expressions().values()))
    assert {n for n in exported if n.startswith("atomsieve_")} - used <= {"atomsieve_requests_total"}, (
        "what we export is shown"
    )


def test_python_of_the_steps_needs_only_the_standard_library():
    text = (FOLDER / "steps/requirements.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) <= sys.stdlib_module_names

# SPDX-License-Identifier: Apache-2.0
"""The manifests of deploy/k8s: rendered, checked against schemas and types, and against what they are for.

Objects of Kubernetes and of the Prometheus operator are checked by kubernetes-models, from npm: its schemas find what
is missing or of a wrong type, its TypeScript types what is unknown. LeaderWorkerSets and the endpoint picker's
configuration have no published types; tables here say what their controllers take. Each kind of check is also shown
mistakes.
"""

import copy
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
import yaml

from exporter_helpers import BUILD, Page, exporting, shared_directory, simulating, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
CHECKER = ROOT / "tests" / "deploy" / "kubernetes"
DIRECTORIES = sorted(str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml"))
OVERLAYS = [name for name in DIRECTORIES if name.startswith("overlays/")]

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is missing: nothing renders manifests")
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is missing: nothing checks Kubernetes types")


@functools.cache
def rendered(name):
    """What `kubectl kustomize` prints for the directory, without any flag."""
    result = subprocess.run(["kubectl", "kustomize", str(K8S / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            timeout=120, check=False)
    assert result.returncode == 0, f"{name}: {result.stderr.decode()}"
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def one(name, kind, object_name=None):
    found = [document for document in rendered(name) if document["kind"] == kind
             and object_name in (None, document["metadata"]["name"])]
    assert len(found) == 1, f"{name} has {len(found)} of {kind} {object_name or ''}"
    return copy.deepcopy(found[0])


def pod_template(document):
    """The workload's pod template, or None."""
    if document["kind"] == "PodTemplate":
        return document["template"]
    if document["kind"] in ("Deployment", "StatefulSet"):
        return document["spec"]["template"]
    if document["kind"] == "LeaderWorkerSet":
        return document["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    return None


def workloads(name):
    return [document for document in rendered(name) if pod_template(document) is not None]


def named(items, name):
    return next((item for item in items or [] if item["name"] == name), None)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def shape_errors(value, shape, where=""):
    """What of `value` does not have the shape: a type; a set of values; a pattern; a list of one shape; or a dict of
    fields, those that may be absent with `?` behind their names, and no others."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: not an object"]
        known = {key.rstrip("?"): inner for key, inner in shape.items()}
        errors = [f"{where}.{key}: unknown" for key in value if key not in known]
        errors += [f"{where}.{key}: missing" for key in shape if not key.endswith("?") and key not in value]
        return errors + [e for key in value if key in known
                         for e in shape_errors(value[key], known[key], f"{where}.{key}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: not a list"]
        return [e for i, item in enumerate(value) for e in shape_errors(item, shape[0], f"{where}[{i}]")]
    if isinstance(shape, re.Pattern):
        good = isinstance(value, str) and shape.fullmatch(value)
    elif isinstance(shape, set):
        good = value in shape
    else:
        good = isinstance(value, shape) and (shape is not int or not isinstance(value, bool))
    return [] if good else [f"{where}: {value!r} is not {shape}"]


# ---- Kubernetes' own and the Prometheus operator's ------------------------------------------------------------------

# leaderworkerset.x-k8s.io/v1, by the CRD; pod templates are checked as Kubernetes' own.
LEADER_WORKER_SET = {
    "apiVersion": {"leaderworkerset.x-k8s.io/v1"},
    "kind": {"LeaderWorkerSet"},
    "metadata": {"name": str, "namespace?": str, "labels?": dict, "annotations?": dict},
    "spec": {
        "replicas?": int,
        "startupPolicy?": {"LeaderCreated", "LeaderReady"},
        "networkConfig?": {"subdomainPolicy": {"Shared", "UniquePerReplica"}},
        "rolloutStrategy?": {
            "type": {"RollingUpdate"},
            "rollingUpdateConfiguration?": {"partition?": int, "maxUnavailable?": (int, str), "maxSurge?": (int, str)}},
        "leaderWorkerTemplate": {
            "size?": int,
            "restartPolicy?": {"RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "Default", "None"},
            "subGroupPolicy?": {"subGroupPolicyType?": {"LeaderWorker", "LeaderExcluded"}, "subGroupSize?": int},
            "leaderTemplate?": dict,
            "workerTemplate": dict,
            "volumeClaimTemplates?": list,
            "persistentVolumeClaimRetentionPolicy?": dict,
        },
    },
}


def as_pod_template(document):
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": document["metadata"]["name"]},
            "template": pod_template(document)}


def installed_checker():
    directory = pathlib.Path(BUILD) / "tests" / "deploy" / "kubernetes"
    directory.mkdir(parents=True, exist_ok=True)
    lock, stamp = (CHECKER / "package-lock.json").read_bytes(), directory / "installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CHECKER / name, directory)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=directory, check=True,
                       timeout=300, stdout=subprocess.DEVNULL)
        stamp.write_bytes(lock)
    return shutil.copy(CHECKER / "check.cjs", directory)


def object_errors(objects):
    """A list of messages for each object: those of schemas, types and shapes."""
    plain = [as_pod_template(o) if o["kind"] == "LeaderWorkerSet" else o for o in objects]
    result = subprocess.run(["node", installed_checker()], input=json.dumps(plain).encode(), stdout=subprocess.PIPE,
                            timeout=300, check=True)
    return [errors + (shape_errors(o, LEADER_WORKER_SET) if o["kind"] == "LeaderWorkerSet" else [])
            for errors, o in zip(json.loads(result.stdout), objects)]


@needs_kubectl
@pytest.mark.parametrize("name", DIRECTORIES)
def test_renders_with_no_flag(name):
    documents = rendered(name)
    # Components alone have nothing to add to; what they read from is not applied.
    assert bool(documents) != name.startswith("components/")


def sidecar_of(document):
    return named(pod_template(document)["spec"]["initContainers"], "wideep-exporter")


def typo_in_probe(o):
    sidecar_of(o)["readinesProbe"] = sidecar_of(o).pop("readinessProbe")


def typo_in_restart_policy(o):
    sidecar_of(o)["restartpolicy"] = sidecar_of(o).pop("restartPolicy")


def typo_of_the_set(o):
    o["spec"]["leaderWorkerTemplate"]["sizes"] = o["spec"]["leaderWorkerTemplate"].pop("size")


def port_as_text(o):
    sidecar_of(o)["ports"][0]["containerPort"] = "9464"


def no_selector(o):
    del o["spec"]["selector"]


def no_container_name(o):
    del sidecar_of(o)["name"]


def typo_in_endpoint(o):
    o["spec"]["podMetricsEndpoints"][0]["intervall"] = o["spec"]["podMetricsEndpoints"][0].pop("interval")


def interval_as_number(o):
    o["spec"]["podMetricsEndpoints"][0]["interval"] = 15


def typo_in_policy(o):
    o["spec"]["ingres"] = o["spec"].pop("ingress")


def wrong_restart_policy(o):
    o["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "RecreateGroup"


def mode_as_text(o):
    named(pod_template(o)["spec"]["volumes"], "wideep-web-config")["secret"]["defaultMode"] = "0444"


SCHEMA_MISTAKES = [
    ("overlays/deployment", "Deployment", typo_in_probe),
    ("overlays/deployment", "Deployment", typo_in_restart_policy),
    ("overlays/deployment", "Deployment", port_as_text),
    ("overlays/deployment", "Deployment", no_selector),
    ("overlays/deployment", "Deployment", no_container_name),
    ("overlays/deployment-tls", "Deployment", mode_as_text),
    ("overlays/leaderworkerset", "LeaderWorkerSet", typo_in_restart_policy),
    ("overlays/leaderworkerset", "LeaderWorkerSet", port_as_text),
    ("overlays/leaderworkerset", "LeaderWorkerSet", typo_of_the_set),
    ("overlays/leaderworkerset", "LeaderWorkerSet", wrong_restart_policy),
    ("pod-monitor", "PodMonitor", no_selector),
    ("pod-monitor", "PodMonitor", typo_in_endpoint),
    ("pod-monitor", "PodMonitor", interval_as_number),
    ("network-policy", "NetworkPolicy", typo_in_policy),
]


def mistaken(name, kind, mistake):
    document = one(name, kind, "wide-ep-decode" if kind == "LeaderWorkerSet" else None)
    mistake(document)
    return document


@pytest.fixture(scope="module")
def checked():
    """Messages by what they are about: all that is rendered or kept as a source, and the mistakes. The compiler reads
    the same types for all, so they are looked at in one go."""
    objects = {f"{name}: {o['kind']} {o['metadata']['name']}": o for name in DIRECTORIES for o in rendered(name)}
    objects |= {f"{file}: {o['kind']} {o['metadata']['name']}": o
                for file in [*K8S.glob("overlays/*/engine.yaml"), *K8S.glob("example-pod.yaml")]
                for o in yaml.safe_load_all(file.read_text())}
    objects |= {row: mistaken(*row) for row in SCHEMA_MISTAKES}
    return dict(zip(objects, object_errors(list(objects.values()))))


@needs_kubectl
@needs_npm
def test_schemas_and_types(checked):
    assert {what: messages for what, messages in checked.items() if what not in SCHEMA_MISTAKES and messages} == {}


@needs_kubectl
@needs_npm
@pytest.mark.parametrize("row", SCHEMA_MISTAKES, ids=lambda row: f"{row[1]}-{row[2].__name__}")
def test_schemas_and_types_find_mistakes(checked, row):
    assert checked[row]


# ---- the Pod Security Standard "restricted" -------------------------------------------------------------------------

RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
                      "secret"}
SAFE_SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
                "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
                "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
                "net.ipv4.tcp_keepalive_probes"}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def restricted_context_errors(name, context):
    """Controls that pods and containers have in common, each where it is set."""
    selinux = context.get("seLinuxOptions", {})
    rows = [
        ("Windows HostProcess", not context.get("windowsOptions", {}).get("hostProcess")),
        ("SELinux type", selinux.get("type") in SELINUX_TYPES),
        ("SELinux user and role", not selinux.get("user") and not selinux.get("role")),
        ("AppArmor", context.get("appArmorProfile", {}).get("type") in (None, "RuntimeDefault", "Localhost")),
        ("running as user 0", context.get("runAsUser") != 0),
        ("running as non-root", context.get("runAsNonRoot") is not False),
        ("seccomp", context.get("seccompProfile", {}).get("type") in (None, "RuntimeDefault", "Localhost")),
    ]
    return [f"{name}: {control}" for control, good in rows if not good]


def restricted_container_errors(container, pod_context):
    context = container.get("securityContext", {})
    capabilities = context.get("capabilities", {})
    rows = [
        ("privileged", not context.get("privileged")),
        ("host ports", not any(port.get("hostPort") for port in container.get("ports", []))),
        ("/proc mount type", context.get("procMount", "Default") == "Default"),
        ("privilege escalation", context.get("allowPrivilegeEscalation") is False),
        ("running as non-root", context.get("runAsNonRoot", pod_context.get("runAsNonRoot")) is True),
        ("seccomp", "type" in context.get("seccompProfile", pod_context.get("seccompProfile", {}))),
        ("capabilities dropped", "ALL" in capabilities.get("drop", [])),
        ("capabilities added", set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}),
    ]
    return [f"{container['name']}: {control}" for control, good in rows if not good] \
        + restricted_context_errors(container["name"], context)


def restricted_errors(spec):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, by its tables."""
    context = spec.get("securityContext", {})
    errors = [f"pod: {field}" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    errors += [f"pod: sysctl {s['name']}" for s in context.get("sysctls", []) if s["name"] not in SAFE_SYSCTLS]
    errors += [f"volume {volume['name']}" for volume in spec.get("volumes", [])
               if not set(volume) - {"name"} <= RESTRICTED_VOLUMES]
    errors += restricted_context_errors("pod", context)
    for container in spec["containers"] + spec.get("initContainers", []) + spec.get("ephemeralContainers", []):
        errors += restricted_container_errors(container, context)
    return errors


def added_to(spec):
    """As a pod of the sidecar's own: its container and the volumes that it mounts."""
    sidecar = named(spec["initContainers"], "wideep-exporter")
    mounted = {mount["name"] for mount in sidecar["volumeMounts"]}
    return {"containers": [sidecar], "volumes": [volume for volume in spec["volumes"] if volume["name"] in mounted]}


@needs_kubectl
def test_restricted():
    assert restricted_errors(one("base", "PodTemplate")["template"]["spec"]) == []
    for file in K8S.glob("example-pod.yaml"):
        assert restricted_errors(yaml.safe_load(file.read_text())["spec"]) == []
    for name in OVERLAYS:
        for document in workloads(name):
            assert restricted_errors(added_to(pod_template(document)["spec"])) == []


def changed_context(**fields):
    def change(spec):
        context = named(spec["initContainers"], "wideep-exporter")["securityContext"]
        for field, value in fields.items():
            context.pop(field) if value is None else context.__setitem__(field, value)
    change.__name__ = str(fields)
    return change


RESTRICTED_MISTAKES = [
    changed_context(runAsNonRoot=None),
    changed_context(runAsNonRoot=False),
    changed_context(runAsUser=0),
    changed_context(allowPrivilegeEscalation=None),
    changed_context(privileged=True),
    changed_context(capabilities=None),
    changed_context(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    changed_context(seccompProfile=None),
    changed_context(seccompProfile={"type": "Unconfined"}),
    lambda spec: spec.update(hostPID=True),
    lambda spec: spec["volumes"].append({"name": "shm", "hostPath": {"path": "/dev/shm"}}),
    lambda spec: named(spec["initContainers"], "wideep-exporter")["ports"][0].update(hostPort=9464),
]


@needs_kubectl
@pytest.mark.parametrize("mistake", RESTRICTED_MISTAKES, ids=lambda m: m.__name__)
def test_restricted_finds_mistakes(mistake):
    spec = one("base", "PodTemplate")["template"]["spec"]
    mistake(spec)
    assert restricted_errors(spec)


# ---- what the sidecar is for ----------------------------------------------------------------------------------------

HEALTHCHECK = ["wideep-exporter", "--healthcheck"]
# The probe gives up after 3 s by itself.
PROBE_SECONDS = 3


def environment(container):
    return {item["name"]: item.get("value") for item in container.get("env", [])}


def mount_at(container, path):
    return next((mount for mount in container.get("volumeMounts", []) if mount["mountPath"] == path), {})


@functools.cache
def variables():
    """Those that the program knows: one for each of its flags."""
    text = subprocess.run([f"{BUILD}/wideep-exporter", "--help"], stdout=subprocess.PIPE, check=True).stdout.decode()
    return {"WIDEEP_" + flag.replace(".", "_").replace("-", "_").upper() for flag in re.findall(r"--([a-z.-]+)", text)}


def probe_errors(sidecar, probed):
    errors = []
    for field in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = sidecar.get(field)
        if bool(probe) != probed:
            errors.append(f"{field}: {'missing' if probed else 'could recreate the whole group'}")
        elif probe and (probe.get("exec") != {"command": HEALTHCHECK} or probe["timeoutSeconds"] <= PROBE_SECONDS):
            errors.append(f"{field}: is not the healthcheck with its time")
    return errors


def sharing_errors(sidecar, engine, volumes, own):
    """The engine writes to what the sidecar reads and cannot write to; a volume of its own or /dev/shm."""
    path = environment(sidecar).get("WIDEEP_SHM_DIR")
    read, written = mount_at(sidecar, path), mount_at(engine, path)
    volume = named(volumes, read.get("name")) or {}
    rows = [
        ("the engine's WIDEEP_SHM_DIR is another", environment(engine).get("WIDEEP_SHM_DIR") == path),
        ("they mount different volumes", read and read.get("name") == written.get("name")),
        ("the engine cannot write", not written.get("readOnly")),
        ("the volume is not in memory", volume.get("emptyDir", {}).get("medium") == "Memory"),
        ("the volume has no limit", "sizeLimit" in volume.get("emptyDir", {})),
        ("the volume is /dev/shm" if own else "the volume is not /dev/shm", own != (path == "/dev/shm")),
        ("what the sidecar mounts is writable", all(mount.get("readOnly") for mount in sidecar["volumeMounts"])),
    ]
    return [what for what, good in rows if not good]


def sidecar_errors(template, probed=True, own=True):
    spec = template["spec"]
    sidecar = named(spec.get("initContainers"), "wideep-exporter")
    if not sidecar:
        return ["no sidecar"]
    limits = sidecar.get("resources", {}).get("limits", {})
    rows = [
        ("not a native sidecar", sidecar.get("restartPolicy") == "Always"),
        ("not selectable", template["metadata"]["labels"].get("wideep-exporter") == "sidecar"),
        ("port", sidecar.get("ports") == [{"name": "wideep", "containerPort": 9464, "protocol": "TCP"}]),
        ("no limit of memory", "memory" in limits),
        ("throttled", "cpu" not in limits),
        ("unknown variable", {key for key in environment(sidecar) if key.startswith("WIDEEP_")} <= variables()),
        ("writable root", sidecar.get("securityContext", {}).get("readOnlyRootFilesystem") is True),
    ]
    return [what for what, good in rows if not good] + probe_errors(sidecar, probed) \
        + sharing_errors(sidecar, spec["containers"][0], spec["volumes"], own)


@needs_kubectl
def test_base_is_a_sidecar():
    assert sidecar_errors(one("base", "PodTemplate")["template"]) == []


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_workloads_get_the_sidecar(name):
    assert workloads(name)
    for document in workloads(name):
        probed = document["kind"] != "LeaderWorkerSet"
        assert sidecar_errors(pod_template(document), probed=probed, own=not name.endswith("-dev-shm")) == []


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_else_of_an_engine_changes(name):
    """What was added taken away again is the engine's own file."""
    source = K8S / name.removesuffix("-tls") / "engine.yaml"
    originals = {document["metadata"]["name"]: document for document in yaml.safe_load_all(source.read_text())}
    found = copy.deepcopy(workloads(name))
    assert len(found) == len(originals)
    for document in found:
        template = pod_template(document)
        del template["metadata"]["labels"]["wideep-exporter"]
        spec, engine = template["spec"], template["spec"]["containers"][0]
        engine["env"] = [item for item in engine["env"] if item["name"] != "WIDEEP_SHM_DIR"]
        engine["volumeMounts"] = [mount for mount in engine["volumeMounts"] if not mount["name"].startswith("wideep-")]
        spec["volumes"] = [volume for volume in spec["volumes"] if not volume["name"].startswith("wideep-")]
        spec["initContainers"] = [c for c in spec["initContainers"] if c["name"] != "wideep-exporter"]
        engine["image"] = re.sub(r".*/([^:]*):[^:]*", r"\1", engine["image"])
        for holder, key in ((engine, "env"), (spec, "initContainers")):
            if not holder[key]:
                del holder[key]
        assert document == originals[document["metadata"]["name"]]


@needs_kubectl
def test_readmes_example(tmp_path):
    """README.md's kustomization, in a directory of a user's own, with a StatefulSet for an engine."""
    engine = yaml.safe_load((K8S / "overlays" / "deployment" / "engine.yaml").read_text())
    engine |= {"kind": "StatefulSet"}
    del engine["spec"]["strategy"]
    (tmp_path / "engine.yaml").write_text(yaml.safe_dump(engine))
    (tmp_path / "wideep-exporter").mkdir()
    shutil.copytree(ROOT / "deploy", tmp_path / "wideep-exporter" / "deploy")
    example, = re.findall(r"```yaml\n(resources:.*?)```", (K8S / "README.md").read_text(), re.S)
    (tmp_path / "kustomization.yaml").write_text(example)
    stateful, = workloads(tmp_path)
    assert stateful["kind"] == "StatefulSet" and sidecar_errors(pod_template(stateful)) == []
    assert sidecar_of(stateful)["image"] == "registry.example/wideep-exporter:0.1.0"
    assert one(tmp_path, "PodMonitor")


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_images_have_a_tag(name):
    images = [c["image"] for d in workloads(name) for c in
              pod_template(d)["spec"]["containers"] + pod_template(d)["spec"]["initContainers"]]
    assert [image for image in images if not re.search(r":[^/]+$", image)] == []


def on_sidecar(**fields):
    def change(template):
        named(template["spec"]["initContainers"], "wideep-exporter").update(fields)
    change.__name__ = ",".join(fields)
    return change


def writable_mount(template):
    del named(template["spec"]["initContainers"], "wideep-exporter")["volumeMounts"][0]["readOnly"]


def writable_root(template):
    del named(template["spec"]["initContainers"], "wideep-exporter")["securityContext"]["readOnlyRootFilesystem"]


def engine_without_the_variable(template):
    template["spec"]["containers"][0]["env"] = []


def engine_without_the_mount(template):
    template["spec"]["containers"][0]["volumeMounts"] = []


def volume_on_disk(template):
    template["spec"]["volumes"][0]["emptyDir"] = {}


def readiness_by_lb(template):
    named(template["spec"]["initContainers"], "wideep-exporter")["readinessProbe"] = {
        "httpGet": {"path": "/lb", "port": "wideep"}, "timeoutSeconds": 5}


def short_probe(template):
    named(template["spec"]["initContainers"], "wideep-exporter")["livenessProbe"]["timeoutSeconds"] = 1


def no_label(template):
    template["metadata"]["labels"] = {}


SIDECAR_MISTAKES = [writable_mount, writable_root, engine_without_the_variable, engine_without_the_mount,
                    volume_on_disk, readiness_by_lb, short_probe, no_label, on_sidecar(restartPolicy="OnFailure"), on_sidecar(ports=[]),
                    on_sidecar(resources={}), on_sidecar(livenessProbe=None),
                    on_sidecar(env=[{"name": "WIDEEP_SHM_DIR", "value": "/run/wideep"}, {"name": "WIDEEP_SHM_DIRS"}])]


@needs_kubectl
@pytest.mark.parametrize("mistake", SIDECAR_MISTAKES, ids=lambda m: m.__name__)
def test_sidecar_checks_find_mistakes(mistake):
    template = one("base", "PodTemplate")["template"]
    mistake(template)
    assert sidecar_errors(template)


@needs_kubectl
def test_a_probe_in_a_leaderworkerset_is_a_mistake():
    template = pod_template(one("overlays/leaderworkerset", "LeaderWorkerSet", "wide-ep-decode"))
    assert sidecar_errors(template, probed=False) == []
    on_sidecar(livenessProbe={"exec": {"command": HEALTHCHECK}, "timeoutSeconds": 5})(template)
    assert sidecar_errors(template, probed=False)


# ---- monitoring, network, TLS ---------------------------------------------------------------------------------------


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_and_ports_meet(name):
    monitor, policy = one(name, "PodMonitor"), one(name, "NetworkPolicy")
    # The operator makes the job's name of namespace and name; the rules' `up` is of jobs with wideep in it.
    assert "wideep" in monitor["metadata"]["name"]
    for document in workloads(name):
        labels, sidecar = pod_template(document)["metadata"]["labels"], sidecar_of(document)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        port, = sidecar["ports"]
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
        numbers = [p["port"] for rule in policy["spec"]["ingress"] if "from" in rule for p in rule["ports"]]
        assert numbers == [port["containerPort"]] * 2


@needs_kubectl
def test_network_policy_leaves_the_engine_alone():
    """The rule that is open to all has every port but the exporter's."""
    openings = [p for rule in one("network-policy", "NetworkPolicy")["spec"]["ingress"] if "from" not in rule
                for p in rule["ports"]]
    for protocol, closed in (("TCP", {9464}), ("UDP", set())):
        ports = {port for p in openings if p["protocol"] == protocol for port in range(p["port"], p["endPort"] + 1)}
        assert set(range(1, 65536)) - ports == closed


@needs_kubectl
def test_tls_reaches_the_probe_and_the_scrape():
    document = one("overlays/deployment-tls", "Deployment")
    sidecar = sidecar_of(document)
    path = environment(sidecar)["WIDEEP_WEB_CONFIG_FILE"]
    mount = mount_at(sidecar, os.path.dirname(path))
    volume = named(pod_template(document)["spec"]["volumes"], mount["name"])
    # A Secret's files belong to root, and the sidecar is neither root nor in its group.
    assert volume["secret"]["defaultMode"] & 0o004
    endpoint, = one("overlays/deployment-tls", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] and "insecureSkipVerify" not in endpoint["tlsConfig"]
    assert set(endpoint["basicAuth"]) == {"username", "password"}
    assert "scheme" not in one("overlays/deployment", "PodMonitor")["spec"]["podMetricsEndpoints"][0]


# ---- the endpoint picker --------------------------------------------------------------------------------------------

DURATION = re.compile(r"\d+(ms|s|m)")
# By type, the parameters of the plugins that are used. The picker refuses unknown ones.
PICKER_PARAMETERS = {
    "metrics-data-source": {"scheme?": {"http", "https"}, "port?": int, "path?": re.compile(r"/[a-z/]*"),
                            "interval?": DURATION, "insecureSkipVerify?": bool, "caCertPath?": str,
                            "clientCertPath?": str, "clientKeyPath?": str},
    "core-metrics-extractor": {"engineLabelKey?": str, "defaultEngine?": str, "engineConfigs?": [
        {"name": str, "queuedRequestsSpec?": str, "runningRequestsSpec?": str, "kvUsageSpec?": str, "loraSpec?": str,
         "cacheInfoSpec?": str, "customMetrics?": [{"attributeKey": str, "metricSpec": str}]}]},
    "endpoint-attribute-filter": {
        "attribute": str, "producer?": str, "onMissing?": {"Pass", "Fail"}, "fallbackOnEmpty?": bool,
        "algorithm": {"type": {"threshold"}, "threshold": {
            "operator": {"LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"},
            "value": (int, float)}}},
    "disagg-profile-handler": {"deciders": {"prefill": str}},
    "always-disagg-pd-decider": {},
    "prefill-filter": {},
    "decode-filter": {},
    "prefix-cache-scorer": {},
    "queue-scorer": {},
    "active-request-scorer": {},
}
PICKER = {
    "apiVersion": {"llm-d.ai/v1alpha1"},
    "kind": {"EndpointPickerConfig"},
    "plugins": [{"type": set(PICKER_PARAMETERS), "name?": str, "parameters?": dict}],
    "dataLayer": {"sources": [{"pluginRef": str, "extractors": [{"pluginRef": str}]}], "injectDefaults?": bool},
    "schedulingProfiles": [{"name": str, "plugins": [{"pluginRef": str, "weight?": (int, float)}]}],
}


def picker_config():
    return yaml.safe_load(one("endpoint-picker", "ConfigMap")["data"]["wideep-config.yaml"])


def picker_errors(config):
    errors = shape_errors(config, PICKER)
    if errors:
        return errors
    plugins = {plugin.get("name", plugin["type"]): plugin for plugin in config["plugins"]}
    for name, plugin in plugins.items():
        errors += shape_errors(plugin.get("parameters", {}), PICKER_PARAMETERS[plugin["type"]], name)
    if errors:
        return errors
    sources = {source["pluginRef"]: [e["pluginRef"] for e in source["extractors"]]
               for source in config["dataLayer"]["sources"]}
    profiles = [[plugin["pluginRef"] for plugin in profile["plugins"]] for profile in config["schedulingProfiles"]]
    referred = set(sources) | {ref for refs in [*sources.values(), *profiles] for ref in refs}
    attribute = plugins["wideep-not-blocked"]["parameters"]["attribute"]
    custom = [metric["attributeKey"] for engine in plugins["wideep-extractor"]["parameters"]["engineConfigs"]
              for metric in engine["customMetrics"]]
    rows = [
        ("two plugins of one name", len(plugins) == len(config["plugins"])),
        ("a reference to nothing", referred <= set(plugins)),
        # By this name the picker sees that it need not add a pair of its own.
        ("the engine's own metrics", sources.get("metrics-data-source") == ["core-metrics-extractor"]),
        ("the exporter's page", sources.get("wideep-source") == ["wideep-extractor"]),
        ("a filter on what nothing extracts", custom == [attribute]),
        ("a profile without the filter", all("wideep-not-blocked" in refs for refs in profiles)),
        ("fails closed", plugins["wideep-not-blocked"]["parameters"]["fallbackOnEmpty"]
         and plugins["wideep-not-blocked"]["parameters"]["onMissing"] == "Pass"),
    ]
    return [what for what, good in rows if not good]


@needs_kubectl
def test_picker_configuration():
    assert picker_errors(picker_config()) == []


def picker_plugin(config, name):
    return next(plugin for plugin in config["plugins"] if plugin.get("name", plugin["type"]) == name)


def picker_parameters(config, name):
    return picker_plugin(config, name)["parameters"]


PICKER_MISTAKES = {
    "misspelt parameter": lambda c: picker_parameters(c, "wideep-source").update(paths="/lb/metrics"),
    "wrong operator": lambda c: picker_parameters(c, "wideep-not-blocked")["algorithm"]["threshold"].update(
        operator="Less"),
    "value as text": lambda c: picker_parameters(c, "wideep-not-blocked")["algorithm"]["threshold"].update(value="1"),
    "empties the pool": lambda c: picker_parameters(c, "wideep-not-blocked").update(fallbackOnEmpty=False),
    "renamed engine source": lambda c: picker_plugin(c, "metrics-data-source").update(name="engine-source"),
    "source not polled": lambda c: c["dataLayer"]["sources"].pop(),
    "another attribute": lambda c: picker_parameters(c, "wideep-not-blocked").update(attribute="wideep_lb_blocked"),
    "filter in no profile": lambda c: c["schedulingProfiles"][1]["plugins"].pop(1),
    "unknown field": lambda c: c.update(datalayer={}),
}


@needs_kubectl
@pytest.mark.parametrize("mistake", PICKER_MISTAKES)
def test_picker_checks_find_mistakes(mistake):
    config = picker_config()
    PICKER_MISTAKES[mistake](config)
    assert picker_errors(config)


@needs_kubectl
def test_picker_reads_what_the_exporter_serves():
    """The series is on that page before there is an engine, and alone of its name: the picker takes the first."""
    config = picker_config()
    source = picker_parameters(config, "wideep-source")
    metric, = picker_parameters(config, "wideep-extractor")["engineConfigs"][0]["customMetrics"]
    with shared_directory() as directory, exporting(directory) as exporter:
        assert source["port"] == sidecar_of(one("base", "PodTemplate"))["ports"][0]["containerPort"]

        def series():
            return Page(exporter.get(source["path"])[1].decode()).of(metric["metricSpec"])

        assert series() == [({}, 0)]
        with simulating(directory, "--engines", "2", "--seconds", "60"):
            wait_for(lambda: Page(exporter.get(source["path"])[1].decode()).of("wideep_lb_up"))
            assert len(series()) == 1


# ---- resources ------------------------------------------------------------------------------------------------------

UNITS = {"Mi": 2 ** 20, "Gi": 2 ** 30}


def own_memory(pid):
    """What a container is charged for: not the segments, which are the engine's."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024 for field in ("RssAnon", "RssFile"))


def amount(quantity):
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@needs_kubectl
@pytest.mark.skipif(bool(os.environ.get("WIDEEP_SAN")), reason="a sanitizer's memory is not the product's")
@pytest.mark.parametrize("flags, bound", [((), "requests"), (("--debug.per-expert",), "limits")],
                         ids=["plain", "debug"])
def test_memory_is_within_what_is_asked_for(flags, bound):
    """Eight engines of DeepSeek-R1's shape, scraped in each format; with per-expert series the limit holds by half."""
    resources = sidecar_of(one("base", "PodTemplate"))["resources"]
    spec = one("base", "PodTemplate")["template"]["spec"]
    with shared_directory() as directory, exporting(directory, *flags) as exporter:
        shape = ("--engines", "8", "--layers", "58", "--experts", "256", "--redundant", "32")
        with simulating(directory, *shape, "--passes-per-second", "50", "--seconds", "60"):
            wait_for(lambda: Page(exporter.get("/metrics")[1].decode()).of("vllm:eplb_balancedness_ratio"))
            for _ in range(3):
                for headers in ({}, {"Accept-Encoding": "gzip"}, {"Accept": "application/openmetrics-text"}):
                    exporter.get("/metrics", headers=headers)
                time.sleep(0.3)  # a collection, so that each round is rendered anew
            used = own_memory(exporter.process.pid)
            assert used < amount(resources[bound]["memory"]) / (2 if flags else 1)
            segments = sum(path.stat().st_size for path in pathlib.Path(directory).glob("wideep.*"))
            # Twice: at a takeover a segment stands beside its predecessor.
            assert 2 * segments < amount(named(spec["volumes"], "wideep-shm")["emptyDir"]["sizeLimit"])


# ---- what is generated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, source", [("prometheus-rule", "prometheus/wideep-alerts.yml"),
                                          ("dashboard", "grafana/wideep.json")])
def test_generated_is_current(name, source, monkeypatch):
    if not (ROOT / "deploy" / source).exists():
        pytest.skip(f"deploy/{source} is missing: there is nothing to generate {name} from")
    monkeypatch.syspath_prepend(str(K8S))
    import generate  # pylint: disable=import-outside-toplevel,import-error
    expected = generate.generated()[name]
    found = {path.name: path.read_text() for path in (K8S / name).iterdir()} if (K8S / name).is_dir() else {}
    assert found == expected, "not current: make k8s"


@needs_kubectl
def test_generated_is_whole():
    """What is rendered has the rules and the dashboard, and a ConfigMap takes no more than 1 MiB."""
    if "prometheus-rule" in DIRECTORIES:
        for document in rendered("prometheus-rule"):
            source = ROOT / "deploy" / "prometheus" / f"{document['metadata']['name']}.yml"
            assert document["spec"] == yaml.safe_load(source.read_text())
    if "dashboard" in DIRECTORIES:
        text = one("dashboard", "ConfigMap")["data"]["wideep.json"]
        assert json.loads(text) == json.loads((ROOT / "deploy" / "grafana" / "wideep.json").read_text())
        assert len(text) < 2 ** 20

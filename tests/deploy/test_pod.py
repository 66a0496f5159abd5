# SPDX-License-Identifier: Apache-2.0
"""deploy/k8s/example-pod.yaml really run, by podman: two containers, each with user, PID namespace and root of its own."""

import contextlib
import json
import os
import signal

import pytest
import yaml

from containers import EXPORTER, ROOT, SIMULATOR, UID, WORK, Container, inspect, podman
from exporter_helpers import free_port, shared_directory, wait_for

ENGINES = 8
# As in llm-d's guide for wide expert parallelism: whatever an earlier engine left in /dev/shm goes away first.
WIPE = "touch /dev/shm/leftover && find /dev/shm -type f -delete && [ -z \"$(ls -A /dev/shm)\" ] && exec wideep-sim \"$@\""

pytestmark = pytest.mark.usefixtures("images")


class Pod:
    def __init__(self, name, port, sidecar):
        self.sidecar = Container(f"{name}-wideep-exporter", f"127.0.0.1:{port}")
        self.engine = Container(f"{name}-engine")
        self.probes = [sidecar[x]["exec"]["command"] for x in ("startupProbe", "readinessProbe", "livenessProbe")]

    def lineages(self):
        """Of the totals in each segment, as the sidecar's own wideep-dump reads them."""
        code, out, error = self.sidecar.exec("wideep-dump", "--json", "--records=0")
        assert code == 0, error
        return {x["file"]: x["identity"]["lineage"] for x in json.loads(out)["segments"]}

    def restart_engine(self):
        kill(self.engine)
        dead = self.sidecar.wait_page(lambda page: ranks_up(page) == 0)
        podman("start", self.engine.name)
        return dead, self.all_up()

    def all_up(self, number=ENGINES):
        return self.sidecar.wait_page(lambda page: ranks_up(page) == number and tokens(page) > 0)


def manifest():
    return yaml.safe_load((ROOT / "deploy/k8s/example-pod.yaml").read_text())


def ranks_up(page):
    return sum(value for _, value in page.of("wideep_rank_up"))


def tokens(page):
    return sum(value for _, value in page.of("wideep_generation_tokens_total"))


def for_podman(pod, name, directory, port):
    """What podman 4.3 does not do as the kubelet does: sidecars among the init containers, emptyDirs in memory."""
    spec = pod["spec"]
    pod["metadata"]["name"] = name
    (sidecar,) = spec.pop("initContainers")
    assert sidecar.pop("restartPolicy") == "Always"
    spec["containers"].insert(0, sidecar)
    spec["restartPolicy"] = "Never"
    for container, image in zip(spec["containers"], (EXPORTER, SIMULATOR)):
        container["image"] = image
    sidecar["ports"][0].update(hostIP="127.0.0.1", hostPort=port)
    for volume in spec["volumes"]:
        assert volume.pop("emptyDir")["medium"] == "Memory"
        volume["hostPath"] = {"path": str(directory), "type": "Directory"}
    return sidecar


@contextlib.contextmanager
def playing(case, pod):
    name, port = f"wideep-{case}-{os.getpid()}", free_port()
    with shared_directory() as directory:
        directory.chmod(0o777)  # as the kubelet makes an emptyDir
        sidecar = for_podman(pod, name, directory, port)
        file = WORK / f"{name}.yaml"
        file.write_text(yaml.safe_dump(pod))
        try:
            podman("kube", "play", file)
            yield Pod(name, port, sidecar)
        finally:
            podman("pod", "rm", "-f", "-t", "0", name, status=None)
            file.unlink()


def wiping_root_engine(pod):
    (engine,) = pod["spec"]["containers"]
    engine["command"], engine["args"] = ["sh", "-c", WIPE, "engine"], engine["args"]
    engine["securityContext"] = {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
    return pod


def sharing_dev_shm(pod):
    """The variant with one volume for the engine's own shared memory and the segments, where all have their defaults."""
    spec = pod["spec"]
    for container in spec["initContainers"] + spec["containers"]:
        container.pop("env")
        (mount,) = container["volumeMounts"]
        mount["mountPath"] = "/dev/shm"
    return pod


def kill(container):
    """As a crash does, past podman. Its first process takes the simulated ranks along."""
    os.kill(container.pid, signal.SIGKILL)
    wait_for(lambda: container.state["Status"] == "exited")


def test_sidecar_is_that_of_the_base():
    base = ROOT / "deploy/k8s/base/pod-template.yaml"
    if not base.exists():
        pytest.skip(f"no {base.relative_to(ROOT)} to compare the example with")
    template = yaml.safe_load(base.read_text())["template"]
    (expected,), (sidecar,) = template["spec"]["initContainers"], manifest()["spec"]["initContainers"]
    assert {**sidecar, "image": None} == {**expected, "image": None}
    assert manifest()["spec"]["volumes"] == template["spec"]["volumes"]
    assert manifest()["metadata"]["labels"].items() >= template["metadata"]["labels"].items()


def test_as_it_is():
    with playing("example", manifest()) as pod:
        page = pod.all_up()
        assert page.segments() == {("live", "ok"): 2 * ENGINES}
        pod.sidecar.wait_page(lambda page: len(page.of("vllm:eplb_balancedness_ratio", engine=0)) == 58)
        for probe in pod.probes:
            assert pod.sidecar.exec(*probe)[0] == 0

        for container in (pod.sidecar, pod.engine):
            status = container.status()
            assert status["Uid"] == status["Gid"] == [str(UID)] * 4
            assert status["CapBnd"][0].strip("0") == "" and status["NoNewPrivs"] == ["1"] and status["Seccomp"] == ["2"]
            assert "ro" in container.mount_options("/")
        assert "ro" in pod.sidecar.mount_options("/run/wideep") and "rw" in pod.engine.mount_options("/run/wideep")
        assert pod.sidecar.memory_limit() == 128 << 20 and pod.sidecar.memory() < 32 << 20
        assert len(inspect(pod.sidecar.name)["Mounts"]) == 1


def test_liveness_across_pid_namespaces():
    """Neither container sees the other's processes; a killed engine is known to be dead, and comes back with its totals."""
    with playing("liveness", manifest()) as pod:
        before = pod.all_up()
        assert pod.sidecar.namespace("pid") != pod.engine.namespace("pid")
        assert pod.sidecar.status()["NSpid"][-1] == pod.engine.status()["NSpid"][-1] == "1"

        kill(pod.engine)
        dead = pod.sidecar.wait_page(lambda page: ranks_up(page) == 0)
        assert len(dead.of("wideep_rank_up")) == ENGINES and dead.segments() == {("dead", "ok"): 2 * ENGINES}
        assert tokens(dead) >= tokens(before), "the dead have kept their counters"
        assert pod.sidecar.exec(*pod.probes[-1])[0] == 0, "the exporter's own health is no matter of the engine's"

        podman("start", pod.engine.name)
        again = pod.all_up()
        assert tokens(again) >= tokens(dead), "the successors have taken them over"


def test_root_engine_wipes_dev_shm():
    """Twice, at its start and at its restart: the segments are elsewhere, and no total is lost."""
    with playing("wiping", wiping_root_engine(manifest())) as pod:
        before = pod.all_up()
        assert pod.engine.status()["Uid"] == ["0"] * 4 and pod.sidecar.status()["Uid"] == [str(UID)] * 4
        lineages = pod.lineages()
        dead, again = pod.restart_engine()
        assert tokens(again) >= tokens(dead) >= tokens(before)
        assert pod.lineages() == lineages and len(lineages) == 2 * ENGINES


def test_shared_dev_shm():
    """What wipes it takes the segments along: their series begin anew, and the exporter finds the new ones by itself."""
    with playing("shared", wiping_root_engine(sharing_dev_shm(manifest()))) as pod:
        pod.all_up()
        assert "ro" in pod.sidecar.mount_options("/dev/shm") and "rw" in pod.engine.mount_options("/dev/shm")
        lineages = pod.lineages()
        _, again = pod.restart_engine()
        assert again.segments() == {("live", "ok"): 2 * ENGINES}
        renewed = pod.lineages()
        assert renewed.keys() == lineages.keys() and not set(renewed.values()) & set(lineages.values())

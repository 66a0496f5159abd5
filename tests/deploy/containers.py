# SPDX-License-Identifier: Apache-2.0
"""The images and a podman to run them with, apart from the machine's own: its storage is below build/deploy."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from exporter_helpers import BUILD, Page, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = BUILD / "deploy"
BASE = "localhost/wideep-base"
EXPORTER, SIMULATOR = "localhost/wideep-exporter:test", "localhost/wideep-simulator:test"
UID = 65532

# crun cannot start containers on a machine of control groups v1; limits must not exceed the caller's own.
CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[network]
network_backend = "netavark"
"""


def storage_conf():
    below = subprocess.run(["stat", "-f", "-c", "%T", WORK], check=True, capture_output=True, text=True).stdout.strip()
    driver = "vfs" if below == "overlayfs" else "overlay"
    return f'[storage]\ndriver = "{driver}"\ngraphroot = "{WORK}/storage"\nrunroot = "{WORK}/run"\n'


@functools.cache
def environment():
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "containers.conf").write_text(CONTAINERS_CONF)
    (WORK / "storage.conf").write_text(storage_conf())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WIDEEP_", "MAKE", "MFLAGS"))}
    return {**clean, "BUILDAH_ISOLATION": "chroot", "CONTAINERS_CONF": str(WORK / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(WORK / "storage.conf")}


def run(*command, status=0, **kwargs):
    """Standard output; `status` is the exit status that is expected, or None for any."""
    done = subprocess.run([str(x) for x in command], env=environment(), capture_output=True, text=True, **kwargs)
    assert status is None or done.returncode == status, \
        f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def podman(*arguments, **kwargs):
    return run("podman", *arguments, **kwargs)


def podman_status(*arguments):
    done = subprocess.run(["podman", *map(str, arguments)], env=environment(), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def inspect(name):
    return json.loads(podman("inspect", name))[0]


def image_digest(image):
    return podman("image", "inspect", image, "--format", "{{.Digest}}").strip()


def require_tools():
    missing = [x for x in ("buildah", "podman", "runc", "mmdebstrap", "iptables") if not shutil.which(x)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here, which builds and runs containers ('make deps-deploy' installs it)")
    if os.geteuid() != 0:
        pytest.skip("containers are built and run as root here: mmdebstrap, mounts and the network need it")


def packages():
    lines = (ROOT / "tests/deps-build.txt").read_text().splitlines()
    return sorted(x for line in lines if (x := line.partition("#")[0].strip()))


def base_image():
    """Debian with the packages of the build, so that the build itself needs no network. Kept for later runs."""
    image = f"{BASE}:{hashlib.sha256(' '.join(packages()).encode()).hexdigest()[:12]}"
    if podman_status("image", "exists", image)[0] == 0:
        return image
    archive = WORK / "base.tar"
    unneeded = [f"--dpkgopt=path-exclude=/usr/share/{x}/*" for x in ("doc", "man", "locale")]
    run("mmdebstrap", "--variant=minbase", "--dpkgopt=force-unsafe-io", *unneeded,
        f"--include={','.join(packages())}", "bookworm", archive)
    podman("import", archive, image)
    archive.unlink()
    return image


def make_image(image, source=ROOT, target="image", **variables):
    variables = {"BASE_IMAGE": base_image(), **variables}
    variables["IMAGE" if target == "image" else "SIMULATOR_IMAGE"] = image
    run("make", "-C", source, target, *(f"{k}={v}" for k, v in variables.items()))
    return image


def remove_everything():
    """But the base image. The storage is mounted upon itself, in which nothing could be removed."""
    podman("pod", "rm", "-af", status=None)
    podman("rm", "-af", "-t", "0", status=None)
    run("buildah", "rm", "-a", status=None)
    podman("image", "rm", "-f", EXPORTER, SIMULATOR, status=None)
    podman("image", "prune", "-f", status=None)
    run("umount", WORK / "storage/overlay", status=None)


@pytest.fixture(scope="session")
def images():
    require_tools()
    remove_everything()
    try:
        make_image(EXPORTER)
        make_image(SIMULATOR, target="image-simulator")
        yield
    finally:
        remove_everything()


class Container:
    """One that runs; `address` is where it is scraped from outside."""

    def __init__(self, name, address=None):
        self.name, self.address = name, address

    @property
    def state(self):
        return inspect(self.name)["State"]

    @property
    def pid(self):
        return self.state["Pid"]

    def status(self):
        """Of its first process, as the kernel has it."""
        lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {k: v.split() for k, _, v in (line.partition(":") for line in lines)}

    def mount_options(self, point):
        """Of the last mount on that directory."""
        lines = pathlib.Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return [fields[5].split(",") for fields in map(str.split, lines) if fields[4] == point][-1]

    def namespace(self, kind):
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def memory_limit(self):
        """That of its control group, of either version."""
        groups = dict(line.split(":", 2)[1:] for line in pathlib.Path(f"/proc/{self.pid}/cgroup").read_text().splitlines())
        if "memory" in groups:
            file = f"/sys/fs/cgroup/memory{groups['memory']}/memory.limit_in_bytes"
        else:
            file = f"/sys/fs/cgroup{groups['']}/memory.max"
        return int(pathlib.Path(file).read_text())

    def memory(self):
        """Bytes, without what it maps of the segments."""
        status = self.status()
        return sum(int(status[x][0]) for x in ("RssAnon", "RssFile")) * 1024

    def exec(self, *command):
        return podman_status("exec", self.name, *command)

    def log(self):
        done = subprocess.run(["podman", "logs", self.name], env=environment(), capture_output=True, text=True)
        return done.stdout + done.stderr

    def page(self):
        return Page(run("curl", "-sS", "--fail", "--max-time", "20", f"http://{self.address}/metrics"))

    def wait_page(self, condition, seconds=60):
        def attempt():
            page = self.page()
            return condition(page) and page

        return wait_for(attempt, seconds, pause=0.2)


@contextlib.contextmanager
def container(name, *options, image=EXPORTER, arguments=()):
    """A running container of the exporter, whose port is published on a free one of the loopback."""
    name = f"wideep-{name}-{os.getpid()}"
    podman("run", "-d", "--name", name, "-p", "127.0.0.1::9464", *options, image, *arguments)
    try:
        yield Container(name, podman("port", name, "9464/tcp").strip())
    finally:
        podman("rm", "-f", "-t", "0", name, status=None)

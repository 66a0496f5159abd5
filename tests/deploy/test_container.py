# SPDX-License-Identifier: Apache-2.0
"""The container image: what is in it, that it is reproducible, and that it runs locked down and is scraped from outside."""

import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile

import pytest

from containers import (EXPORTER, ROOT, UID, container, image_digest, inspect, make_image, podman, podman_status,
                        run)
from exporter_helpers import shared_directory, simulating, wait_for

LOCKED_DOWN = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=64m", "--memory-swap=64m",
               "--pids-limit=64")
MEGABYTE = 1000 * 1000

pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The image unpacked: its directory and the members of its archive."""
    path = tmp_path_factory.mktemp("image")
    name = f"wideep-files-{os.getpid()}"
    podman("create", "--name", name, EXPORTER)
    try:
        podman("export", "-o", path / "image.tar", name)
    finally:
        podman("rm", name)
    with tarfile.open(path / "image.tar") as archive:
        members = archive.getmembers()
        archive.extractall(path / "root")
    return path / "root", members


@pytest.fixture(scope="module")
def segments():
    with shared_directory() as directory, simulating(directory, "--seconds", 0, "--engines", 2) as sim:
        directory.chmod(0o755)
        yield sim.started().directory


def exporting(name, segments, *arguments, options=LOCKED_DOWN):
    return container(name, *options, "-v", f"{segments}:/run/wideep:ro", "-e", "WIDEEP_SHM_DIR=/run/wideep",
                     arguments=arguments)


def needed(file):
    """The libraries and the loader that a program or a library asks for, by the names of their files."""
    text = run("readelf", "-dl", file)
    return {x.rpartition("/")[2] for x in
            re.findall(r"\(NEEDED\).*\[(.*)\]|Requesting program interpreter: (.*)\]", text) for x in x if x}


def test_contents(files):
    """The programs, what they load, what that loads, and no more."""
    root, members = files
    content = {x.name: x for x in members if not x.isdir()}
    # Made by podman for what it mounts there, in any image.
    for name in ("dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv", "etc/mtab"):
        content.pop(name, None)
    programs = {name for name in content if name.startswith("usr/bin/")}
    assert programs >= {"usr/bin/wideep-exporter", "usr/bin/wideep-dump"} and all("/wideep-" in x for x in programs)
    assert "usr/bin/wideep-sim" not in programs

    by_name = {name.rpartition("/")[2]: name for name in content}
    reached, ahead = set(), set(programs)
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead |= {by_name[x] for x in needed(root / name)} - reached
    assert reached == content.keys()
    for member in content.values():
        assert member.isfile() and member.uid == member.gid == 0, f"{member.name} {member.uid}:{member.gid}"
        assert not member.mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), member.name
        assert member.mtime == 0, member.name
    for name in programs:
        assert ".symtab" not in run("readelf", "-S", root / name), f"{name} is not stripped"


def test_size(files):
    size = sum(x.size for x in files[1])
    print(f"{size / MEGABYTE:.1f} MB in {sum(x.isfile() for x in files[1])} files")
    assert size < 16 * MEGABYTE


def test_configuration():
    image = inspect(EXPORTER)
    config = image["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["wideep-exporter"] and not config.get("Cmd")
    assert config["ExposedPorts"] == {"9464/tcp": {}} and not config.get("Volumes")
    assert config["Env"] == ["PATH=/usr/bin"]
    label = {k.removeprefix("org.opencontainers.image."): v for k, v in config["Labels"].items()}
    assert {"title", "description", "licenses", "version", "revision"} <= label.keys()
    version = podman("run", "--rm", "--network=none", EXPORTER, "--version")
    assert f"{label['version']} " in version and label["revision"] in version


def test_same_digest_twice(tmp_path):
    """Another checkout, with other times and a strict umask, built anew."""
    for name in ("Makefile", "deploy/container", "include", "shm-abi", "src", "tests/deps-build.txt"):
        into = tmp_path / name
        into.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, into)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1, 1))
    image = EXPORTER + "-again"
    revision = inspect(EXPORTER)["Config"]["Labels"]["org.opencontainers.image.revision"]
    try:
        make_image(image, source=tmp_path, COMMIT=revision)
        assert image_digest(image) == image_digest(EXPORTER)
    finally:
        podman("image", "rm", "-f", image, status=None)


def test_locked_down(segments):
    with exporting("locked", segments) as exporter:
        page = exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 2)
        assert {value for _, value in page.of("wideep_rank_up")} == {1}
        assert page.segments() == {("live", "ok"): 4}

        status = exporter.status()
        assert status["Uid"] == status["Gid"] == [str(UID)] * 4
        assert {status[x][0].strip("0") for x in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert status["NoNewPrivs"] == ["1"] and status["Seccomp"] == ["2"]
        assert "ro" in exporter.mount_options("/") and "ro" in exporter.mount_options("/run/wideep")
        assert exporter.memory_limit() == 64 << 20 and exporter.memory() < 32 << 20

        for shell in ("sh", "/bin/sh", "/bin/bash", "busybox", "wideep-sim"):
            assert exporter.exec(shell)[0] == 127
        code, out, _ = exporter.exec("wideep-dump", "--shm.dir=/run/wideep", "--records=0")
        assert code == 0 and "engine 1, front end 0" in out


def test_healthcheck(segments):
    """By the command that a probe runs."""
    with exporting("health", segments) as exporter:
        exporter.wait_page(lambda page: page.one("wideep_rank_up", engine=0))
        code, out, err = exporter.exec("wideep-exporter", "--healthcheck")
        assert code == 0 and "healthy" in out + err
        os.kill(exporter.pid, signal.SIGSTOP)
        try:
            assert exporter.exec("wideep-exporter", "--healthcheck")[0] == 1
        finally:
            os.kill(exporter.pid, signal.SIGCONT)


def test_healthcheck_follows_the_variables(segments):
    """A probe without flags asks where the environment has the daemon listen."""
    options = (*LOCKED_DOWN, "-e", "WIDEEP_WEB_LISTEN_ADDRESS=:9465")
    with exporting("port", segments, options=options) as exporter:
        wait_for(lambda: exporter.exec("wideep-exporter", "--healthcheck")[0] == 0)


def test_sigterm_ends_it_in_order(segments):
    """Being the first process, it gets no signal that it does not handle itself: SIGKILL would leave 137."""
    with exporting("term", segments) as exporter:
        exporter.wait_page(lambda page: page.one("wideep_rank_up", engine=0))
        podman("stop", "-t", "60", exporter.name)
        state = exporter.state
        assert state["ExitCode"] == 0 and not state["OOMKilled"]
        assert "msg=stopping signal=Terminated" in exporter.log()


def test_wrong_flags():
    code, _, error = podman_status("run", "--rm", "--network=none", EXPORTER, "--shm.dri=/run/wideep")
    assert code == 2 and "shm.dir" in error


def test_base_image_is_the_users(segments):
    """Everything comes from BASE_IMAGE: one that is not there ends the build, which asks no other."""
    command = ["make", "-C", ROOT, "image", "BASE_IMAGE=localhost/wideep-no-such-base", "IMAGE=localhost/wideep-none"]
    with pytest.raises(AssertionError, match="wideep-no-such-base"):
        run(*command)

# SPDX-License-Identifier: Apache-2.0
"""systemd/syscalls.txt is what the exporter calls of the kernel: a trace shows all of it and nothing else, and the
exporter runs when it may call nothing else."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from abi_helpers import ROOT, Writer
from exporter_helpers import EXPORTER, Exporter, exporting, shared_directory, simulating, wait_for
from faults_helpers import CONFINE, record, unsanitized
from web_helpers import authority, bcrypt, certificate, curl, web_config

LIST = ROOT / "systemd" / "syscalls.txt"
UNIT = ROOT / "systemd" / "wideep-exporter.service"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


def listed():
    """{system call: whether a trace must show it}"""
    calls, wanted = {}, True
    for line in LIST.read_text(encoding="utf-8").splitlines():
        wanted = wanted and not line.startswith("# Elsewhere")
        if name := line.partition("#")[0].strip():
            assert name not in calls
            calls[name] = wanted
    return calls


# ---- what is traced and confined --------------------------------------------------------------------------------


class Manager(threading.Thread):
    """The end of $NOTIFY_SOCKET that is systemd's. It is read all the time: when it is full, the daemon waits."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.messages = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RD)
        self.join()
        self.socket.close()

    def run(self):
        while message := self.socket.recv(65536):
            self.messages.append(message.strip())


class Workload:
    """All that the daemon does: without encryption first, then with TLS, passwords and a unix socket under systemd, and
    probes of both. `prefix` is the command that each of them is started by."""

    def __init__(self, shm, directory, prefix):
        self.shm, self.directory, self.prefix = shm, directory, prefix
        authority(directory, "ca")
        certificate(directory, "server", "ca")
        self.config = directory / "web.yml"
        self.configure()
        self.unix = directory / "socket"

    def configure(self, **more):
        web_config(self.config, basic_auth_users={"me": bcrypt("secret", 16)}, tls_server_config={
            "cert_file": str(self.directory / "server.pem"), "key_file": str(self.directory / "server.key")}, **more)

    def ask(self, path, *flags, user="me:secret"):
        return self.curl(f"https://127.0.0.1:{self.port}{path}", "-u", user, *flags)

    def curl(self, url, *flags):
        return curl(url, "--cacert", str(self.directory / "ca.pem"), *flags)

    def run(self):
        with simulating(self.shm, "--engines", 2, "--ranks", 2, "--passes-per-second", 50, "--linger", 600) as sim:
            sim.started()
            self.plain()
            self.service()

    def plain(self):
        with exporting(self.shm, prefix=self.prefix) as exporter:
            exporter.wait_page(lambda page: page.of("wideep_rank_up", engine=1))
            for headers in ({"Accept-Encoding": "gzip"}, {"Accept": "application/openmetrics-text;version=1.0.0"}):
                assert exporter.get(headers=headers)[0].status == 200
            self.probe(f"--web.listen-address=127.0.0.1:{exporter.port}")
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(120) == 0, exporter.log

    def service(self):
        env = {"NOTIFY_SOCKET": str(self.directory / "notify"), "WATCHDOG_USEC": "400000"}
        manager = Manager(env["NOTIFY_SOCKET"])
        flags = (f"--web.config.file={self.config}", f"--web.listen-address=unix:{self.unix}?mode=0600",
                 "--web.enable-admin-api", "--debug.per-expert", "--advisor.interval=1s")
        with manager, exporting(self.shm, *flags, prefix=self.prefix, env=env) as exporter:
            self.port = exporter.port
            self.requests()
            self.truncation(exporter)
            for address in (f"127.0.0.1:{self.port}", f"unix:{self.unix}"):
                self.probe(f"--web.config.file={self.config}", f"--web.listen-address={address}")
            self.configure(http_server_config={"headers": {"X-Frame-Options": "deny"}})
            exporter.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "x-frame-options: deny" in self.ask("/-/healthy")[1].lower())
            wait_for(lambda: b"WATCHDOG=1" in manager.messages)
            wait_for(lambda: b"\nwideep_eplb_rearrangement_gain_ratio" in self.ask("/metrics")[2])
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(120) == 0, exporter.log
            wait_for(lambda: any(b"STOPPING=1" in message for message in manager.messages))
            assert not self.unix.exists()

    def requests(self):
        wait_for(lambda: self.ask("/metrics")[0] == 200)
        for path in ("/metrics?name[]=wideep_rank_up", "/api/v1/state", "/lb", "/lb/metrics", "/-/ready", "/"):
            assert self.ask(path)[0] in (200, 503), path
        for accept in ("text/plain", "application/openmetrics-text;version=1.0.0", PROTOBUF):
            assert self.ask("/metrics", "-H", f"Accept: {accept}", "-H", "Accept-Encoding: gzip")[0] == 200
        assert self.ask("/metrics", user="me:wrong")[0] == 401
        assert self.ask("/-/debug/per-expert?duration=5s", "-X", "POST")[0] == 200
        assert self.curl("https://localhost/lb", "-u", "me:secret", "--unix-socket", str(self.unix))[0] in (200, 503)

    def truncation(self, exporter):
        """A segment is cut while it is mapped: its live words are read before the next scan can see it."""
        for engine in range(9, 12):
            with Writer() as writer:
                assert writer.create(self.shm, engine=engine)[0] == 0
                wait_for(lambda: f'engine="{engine}"'.encode() in self.ask("/metrics")[2])
                name = self.shm / f"wideep.default.e{engine}.r0"
                os.truncate(name, 0)
                wait_for(lambda: any("truncated_mapping" in line and name.name in line for line in exporter.log))
                writer.kill()
            name.unlink()

    def probe(self, *flags):
        done = subprocess.run([*self.prefix, EXPORTER, "--healthcheck", *flags], capture_output=True, timeout=120)
        assert done.returncode == 0, done


# ---- the trace --------------------------------------------------------------------------------------------------


def traced(directory):
    """Each line is a call, or what became of one; one file a thread."""
    calls = set()
    for file in directory.glob("trace.*"):
        calls |= set(re.findall(r"^([a-z_0-9]+)\(", file.read_text(errors="replace"), re.M))
    return calls


@unsanitized
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the list's first part is that of this processor")
def test_system_calls_are_those_listed(shm, tmp_path):
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode != 0:
        pytest.skip("no ptrace here")
    # The tracer is not the parent: the exporter's process is the one that is signalled and waited for.
    Workload(shm, tmp_path, ("strace", "-D", "-ff", "-qq", "-e", "signal=none", "-o", str(tmp_path / "trace"))).run()
    calls, known = traced(tmp_path), listed()
    assert sorted(calls - known.keys()) == []
    assert sorted(name for name, wanted in known.items() if wanted and name not in calls) == []
    record("system calls traced", len(calls), listed=len(calls))


# ---- the filter -------------------------------------------------------------------------------------------------


@unsanitized
def test_runs_with_the_listed_system_calls_alone(shm, tmp_path):
    Workload(shm, tmp_path, (CONFINE, str(LIST))).run()
    record("all system calls but the listed denied", 1, right=1)


@unsanitized
def test_unlisted_system_call_ends_the_program(shm, tmp_path):
    """The filter of the other test can fail."""
    short = tmp_path / "short.txt"
    short.write_text("".join(f"{name}\n" for name in listed() if name != "getdents64"))
    exporter = Exporter(shm, prefix=(CONFINE, str(short)))
    try:
        assert exporter.process.wait(60) == -signal.SIGSYS
    finally:
        exporter.stop()


# ---- the unit ---------------------------------------------------------------------------------------------------


@functools.cache
def groups():
    """{@name: its lines}"""
    listing = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    lines = {}
    for line in re.sub(r"\x1b\[[\d;]*m", "", listing).splitlines():
        if line.startswith("@"):
            lines[line] = of_group = []
        elif line.startswith("    ") and line.strip()[0] != "#":
            of_group.append(line.strip())
    return lines


def calls_of(word):
    return set().union(*map(calls_of, groups()[word])) if word.startswith("@") else {word}


def unit_filter():
    """As systemd reads its lines: the first one says that all else is denied, and ~ takes away."""
    allowed = set()
    for line in re.findall(r"^SystemCallFilter=(.*)", UNIT.read_text(encoding="utf-8"), re.M):
        calls = set().union(*map(calls_of, line.lstrip("~").split()))
        allowed = allowed - calls if line[0] == "~" else allowed | calls
    return allowed


# What the unit answers with EPERM, which the exporter takes for an answer: the advisor then runs at the priority of
# the other threads.
DENIED_BY_UNIT = ["setpriority"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_unit_allows_the_listed_system_calls():
    assert sorted(listed().keys() - unit_filter()) == DENIED_BY_UNIT

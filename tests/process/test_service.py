# SPDX-License-Identifier: Apache-2.0
"""The daemon as a service: systemd's notifications, watchdog and sockets, signals, the health probe."""

import contextlib
import crypt
import ctypes
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from exporter_helpers import EXPORTER, Exporter, exporting, free_port, shared_directory, simulating, wait_for
from web_helpers import bcrypt, web_config

HEADERS = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


# ---- notifications ----------------------------------------------------------------------------------------------


class Manager:
    """The end of $NOTIFY_SOCKET that is systemd's."""

    def __init__(self, directory):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = str(directory / "notify.sock")
        self.socket.bind(self.path)
        self.socket.setblocking(False)
        self.messages = []

    def read(self):
        """All that was said so far, one message a dictionary."""
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.socket.recv(65536).decode().splitlines()
                self.messages.append(dict(line.split("=", 1) for line in lines))
        return self.messages

    def wait(self, condition, seconds=60):
        return wait_for(lambda: [m for m in self.read() if condition(m)], seconds)

    def count(self, name):
        return sum(name in message for message in self.read())


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.socket.close()


def test_ready_status_stopping(shm, manager):
    with exporting(shm, env={"NOTIFY_SOCKET": manager.path}) as exporter:
        manager.wait(lambda m: m.get("READY") == "1")
        assert exporter.get("/-/healthy")[0].status == 200
        manager.wait(lambda m: m.get("STATUS") == "unknown; engines: 0, ranks up: 0 of 0")
        with simulating(shm, "--scenario", "steady", "--engines", 2, "--ranks", 2, "--passes", 100000,
                        "--passes-per-second", 20):
            manager.wait(lambda m: m.get("STATUS") == "serving; engines: 2, ranks up: 4 of 4")
        manager.wait(lambda m: m.get("STATUS", "").startswith("dead; engines: 2, ranks up: "))
        assert manager.count("WATCHDOG") == 0
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(60) == 0
        assert "STOPPING" in manager.read()[-1]


def test_reload(shm, manager, tmp_path):
    config = tmp_path / "web.yml"
    config.write_text(HEADERS)
    with exporting(shm, f"--web.config.file={config}", env={"NOTIFY_SOCKET": manager.path}) as exporter:
        manager.wait(lambda m: m.get("READY") == "1")
        assert exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "deny"
        config.write_text(HEADERS.replace("deny", "sameorigin"))
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: manager.count("READY") == 2)
        names = [next(iter(m)) for m in manager.read() if "READY" in m or "RELOADING" in m]
        assert names == ["READY", "RELOADING", "READY"]
        (reloading,) = [m for m in manager.read() if "RELOADING" in m]
        assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        wait_for(lambda: exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "sameorigin")


@contextlib.contextmanager
def stopped_thread(pid, name):
    """That thread stands still, the others of the process go on."""
    (tid,) = [int(task.name) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
              if (task / "comm").read_text().strip() == name]
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes, ptrace.restype = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p], ctypes.c_long
    seize, interrupt, detach, wall = 0x4206, 0x4207, 17, 0x40000000
    if ptrace(seize, tid, None, None) != 0:
        pytest.skip(f"no ptrace here: {os.strerror(ctypes.get_errno())}")
    assert ptrace(interrupt, tid, None, None) == 0
    os.waitpid(tid, wall)
    try:
        yield
    finally:
        ptrace(detach, tid, None, None)


def test_watchdog_follows_the_collector(shm, manager):
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}
    with exporting(shm, env=env) as exporter:
        wait_for(lambda: manager.count("WATCHDOG") >= 5)
        with stopped_thread(exporter.pid, "collector"):
            time.sleep(0.6)  # the main thread has by now seen that nothing turns, if it ran at all
            before = manager.count("WATCHDOG")
            assert exporter.get("/-/healthy")[0].status == 200
            time.sleep(2)
            assert manager.count("WATCHDOG") == before
        wait_for(lambda: manager.count("WATCHDOG") >= before + 5)


def test_watchdog_of_another_process(shm, manager):
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with exporting(shm, env=env):
        manager.wait(lambda m: "STATUS" in m)
        time.sleep(1)
        assert manager.count("WATCHDOG") == 0


@pytest.mark.slow
def test_load_balancers_see_that_the_collector_stands_still(shm):
    with exporting(shm) as exporter:
        assert exporter.get("/lb")[0].status == 200
        with stopped_thread(exporter.pid, "collector"):
            response, body = wait_for(lambda: next((a for a in [exporter.get("/lb")] if a[0].status == 503), None))
            assert b'"reason":"the collector stands still"' in body
            page = exporter.get("/lb/metrics")[1]
            assert b"\nwideep_lb_ready 0\n" in page
        wait_for(lambda: exporter.get("/lb")[0].status == 200)


def test_probe_of_a_stuck_collector_behind_a_password(shm, tmp_path):
    """That it is stuck is said to who has no password too: a probe takes a question for one as a sign of life."""
    path = web_config(tmp_path / "web.yml", basic_auth_users={"alice": bcrypt("one")})
    with exporting(shm, f"--web.config.file={path}") as exporter:
        assert exporter.get("/-/healthy")[0].status == 401
        with stopped_thread(exporter.pid, "collector"):
            wait_for(lambda: exporter.get("/-/healthy")[0].status == 503)
            assert exporter.get("/metrics")[0].status == 401
        wait_for(lambda: exporter.get("/-/healthy")[0].status == 401)


# ---- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_in_under_a_second(shm, number):
    took = []
    for _ in range(3):
        with exporting(shm) as exporter, exporter.connection() as connection:
            connection.request("GET", "/metrics")  # and stays open, idle
            connection.getresponse().read()
            begin = time.monotonic()
            exporter.process.send_signal(number)
            assert exporter.process.wait(60) == 0
            took.append(time.monotonic() - begin)
    assert min(took) < 1


# ---- socket activation ------------------------------------------------------------------------------------------

# Puts the given descriptors at 3 and on, and says so, as systemd does between fork and exec.
ACTIVATE = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(*sockets):
    fds = [s.fileno() for s in sockets]
    return {"prefix": [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds))], "pass_fds": fds}


def test_systemd_sockets(shm, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as inet, socket.socket(socket.AF_UNIX) as local:
        path = str(tmp_path / "activated.sock")
        local.bind(path)
        local.listen()
        with exporting(shm, "--web.systemd-socket", **activated(inet, local)) as exporter:
            assert exporter.port == inet.getsockname()[1]
            assert any("in place of --web.listen-address" in line for line in exporter.log)
            assert exporter.get("/-/healthy")[0].status == 200
            for address in (f"127.0.0.1:{exporter.port}", f"unix:{path}"):
                assert probe("--web.listen-address", address) == (0, "healthy")
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(60) == 0
        assert os.path.exists(path), "systemd's, not ours to remove"
        # The listening sockets outlive the daemon: a restart loses no connection.
        with socket.create_connection(inet.getsockname()) as early:
            early.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            with exporting(shm, "--web.systemd-socket", **activated(inet, local)):
                early.settimeout(60)
                assert early.recv(12).startswith(b"HTTP/1.")


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate")
def test_systemd_socket_activate(shm):
    """systemd's own tool waits for the first connection, and starts the daemon for it."""
    port = free_port()
    exporter = Exporter(shm, "--web.systemd-socket", prefix=["systemd-socket-activate", "-l", f"127.0.0.1:{port}"])
    try:
        wait_for(lambda: any("Listening on" in line for line in exporter.log))
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.settimeout(60)
            first.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert re.match(rb"HTTP/1\.. 200 ", first.recv(100))
        assert exporter.wait().port == port
    finally:
        exporter.stop()


def fails(exporter):
    assert exporter.process.wait(60) == 1
    exporter.stop()
    return "\n".join(exporter.log)


def test_no_systemd_sockets(shm):
    assert "systemd passed no socket" in fails(Exporter(shm, "--web.systemd-socket"))


def test_wrong_systemd_sockets(shm):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.create_server(("127.0.0.1", 0)) as inet:
        assert "descriptor 4 is no listening stream socket" in fails(
            Exporter(shm, "--web.systemd-socket", **activated(inet, datagrams)))
        assert "systemd passed 9 sockets, at most 8" in fails(
            Exporter(shm, "--web.systemd-socket", **activated(*[inet] * 9)))


# ---- the health probe -------------------------------------------------------------------------------------------


def probe(*flags, env=None):
    """(exit status, what it says)"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WIDEEP_")}
    result = subprocess.run([EXPORTER, "--healthcheck", *flags], capture_output=True, timeout=60, text=True,
                            env={**clean, **(env or {})})
    text = result.stdout + result.stderr
    assert text.startswith("wideep-exporter: ") and text.count("\n") == 1
    assert bool(result.stdout) == (result.returncode == 0)
    return result.returncode, text.removeprefix("wideep-exporter: ").rstrip("\n")


def address_of(exporter, host="127.0.0.1"):
    return f"--web.listen-address={host}:{exporter.port}"


def test_probe(shm):
    with exporting(shm) as exporter:
        for host in ("127.0.0.1", "", "0.0.0.0", "[::]", "localhost"):
            assert probe(address_of(exporter, host)) == (0, "healthy")
        assert probe(env={"WIDEEP_WEB_LISTEN_ADDRESS": f":{exporter.port},:1"}) == (0, "healthy")
        # It is asked for by a flag alone: a container's environment holds for the daemon as well.
        with exporting(shm, env={"WIDEEP_HEALTHCHECK": "true"}):
            pass
    assert probe(address_of(exporter))[0] == 1
    assert "Connection refused" in probe(address_of(exporter))[1]


def test_probe_of_a_unix_socket(shm, tmp_path):
    address = f"--web.listen-address=unix:{tmp_path}/w.sock?mode=0600"
    with exporting(shm, address):
        assert probe(address) == (0, "healthy")
    assert probe(address)[0] == 1


def test_probe_of_a_stopped_daemon(shm):
    with exporting(shm) as exporter:
        exporter.process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert probe(address_of(exporter)) == (1, f"127.0.0.1:{exporter.port}: no answer: Connection timed out")
        assert time.monotonic() - begin >= 2.9


def test_probe_of_several_addresses(shm, tmp_path):
    """One that answers is enough, also after one that says nothing; else each is spoken of."""
    closed = f"127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as mute, exporting(shm) as exporter:
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        good = f"127.0.0.1:{exporter.port}"
        for addresses in ([good, closed], [closed, good], [silent, good], [f"unix:{tmp_path}/none", closed, good]):
            assert probe(*(f"--web.listen-address={a}" for a in addresses)) == (0, "healthy")
        assert probe(f"--web.listen-address={closed}", f"--web.listen-address={silent}") == (
            1, f"{closed}: cannot connect: Connection refused; {silent}: no answer: Connection timed out")


def test_probe_without_a_port():
    status, text = probe("--web.listen-address=127.0.0.1:0")
    assert status == 1 and "--web.listen-address" in text


@pytest.mark.parametrize("answer, says", [(b"SSH-2.0-x\r\n", "does not speak HTTP"), (b"", "does not speak HTTP"),
                                          (b"HTTP/1.1 503 X\r\n\r\n", "503"), (b"HTTP/1.1 20", "does not speak HTTP")])
def test_probe_of_somebody_else(answer, says):
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen([EXPORTER, "--healthcheck", f"--web.listen-address=:{server.getsockname()[1]}"],
                                   stderr=subprocess.PIPE, text=True)
        client, _ = server.accept()
        with client:
            client.recv(1000)
            client.sendall(answer)
        assert says in process.communicate(timeout=60)[1]
        assert process.returncode == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                    "2", "-subj", "/CN=somewhere-else", "-keyout", "key.pem", "-out", "cert.pem"],
                   cwd=directory, check=True, capture_output=True)
    return directory


TLS = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"


@pytest.mark.parametrize("more, says", [
    ("", "healthy"),
    ("  max_version: TLS12\n", "healthy"),
    ("  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: cert.pem\n", "alive, and asks for a client certificate"),
    ("  client_auth_type: RequireAnyClientCert\n  max_version: TLS12\n", "alive, and asks for a client certificate"),
    ("basic_auth_users:\n  a: " + crypt.crypt("b", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)) + "\n",
     "alive, and asks for a password")],
    # Workers must agree on the names, and salts differ.
    ids=["tls", "tls12", "verified-client", "any-client", "password"])
def test_probe_by_tls(shm, certificate, more, says):
    config = certificate / "web.yml"
    config.write_text(TLS + more)
    with exporting(shm, f"--web.config.file={config}") as exporter:
        status, text = probe(address_of(exporter), f"--web.config.file={config}")
        assert status == 0 and text.startswith(says)


def test_probe_of_tls_by_plain_http(shm, certificate):
    config = certificate / "tls.yml"
    for more in "", "  client_auth_type: RequireAnyClientCert\n":
        config.write_text(TLS + more)
        with exporting(shm, f"--web.config.file={config}") as exporter:
            assert probe(address_of(exporter)) == (
                1, f"127.0.0.1:{exporter.port}: the port speaks TLS: give --web.config.file")


def test_probe_of_a_web_configuration_without_tls(shm, tmp_path):
    config = tmp_path / "web.yml"
    config.write_text(HEADERS)
    with exporting(shm, f"--web.config.file={config}") as exporter:
        assert probe(address_of(exporter), f"--web.config.file={config}") == (0, "healthy")

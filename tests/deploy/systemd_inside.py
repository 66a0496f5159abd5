# SPDX-License-Identifier: Apache-2.0
"""Runs in the container, as root: drives the service there, and writes what it saw to /run/seen/seen.json."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import traceback
import urllib.request

UNITS = pathlib.Path("/run/systemd/system")
SERVICE = "wideep-exporter.service"
SEEN = {}

PROBE = r"""
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call):
    try:
        call()
        return "done"
    except OSError as e:
        return errno.errorcode[e.errno]
def ptrace():
    if libc.ptrace(16, os.getppid(), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
print(json.dumps({
    "write /dev/shm": attempt(lambda: open("/dev/shm/x", "w")),
    "write /var/tmp/..": attempt(lambda: open("/var/x", "w")),
    "write /etc": attempt(lambda: open("/etc/x", "w")),
    "read secret": attempt(lambda: open("/etc/secret")),
    "list home": attempt(lambda: os.listdir("/root")),
    "ptrace": attempt(ptrace),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
    "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)),
    "chroot": attempt(lambda: os.chroot("/")),
    "inet": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()),
    "read /dev/shm": attempt(lambda: os.listdir("/dev/shm")),
}))
"""


def systemctl(*args, check=True):
    return subprocess.run(["systemctl", *args], check=check, capture_output=True, text=True, timeout=120).stdout.strip()


def show(name, unit=SERVICE):
    return systemctl("show", "--value", "-p", name, unit)


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(condition)


def scrape(path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:9464{path}", timeout=30) as response:
        return response.read().decode(), dict(response.headers)


def records():
    """Of the simulated engine: what is in shared memory, which no restart may change."""
    return sorted(re.findall(r"^wideep_dbo_passes_total\{.*", scrape()[0], re.M))


def start():
    SEEN["sysusers"] = subprocess.run(["systemd-sysusers"], check=False, timeout=60).returncode
    pathlib.Path("/etc/default").mkdir(parents=True, exist_ok=True)
    pathlib.Path("/etc/default/wideep-exporter").write_text("WIDEEP_WEB_CONFIG_FILE=/etc/web.yml\n")
    pathlib.Path("/etc/web.yml").write_text("http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
    drop = UNITS / f"{SERVICE}.d"
    drop.mkdir(parents=True)
    (drop / "short.conf").write_text("[Service]\nWatchdogSec=5s\n")
    systemctl("daemon-reload")
    subprocess.Popen(["/opt/wideep/bin/wideep-sim", "--passes", "100", "--expect", "/run/expect", "--linger", "600"], stdout=subprocess.DEVNULL)
    systemctl("start", SERVICE)
    SEEN["state"], SEEN["user"] = show("ActiveState"), os.stat(f"/proc/{show('MainPID')}").st_uid
    # Written when the passes are done; the collector reads four times a second.
    wait_for(lambda: os.path.exists("/run/expect"))
    time.sleep(2)
    SEEN["page"] = scrape()[0]


def reload():
    SEEN["header before"] = scrape()[1].get("X-Frame-Options")
    path = pathlib.Path("/etc/web.yml")
    path.write_text(path.read_text().replace("deny", "sameorigin"))
    systemctl("reload", SERVICE)
    SEEN["header after"] = wait_for(lambda: scrape()[1].get("X-Frame-Options") == "sameorigin") and "sameorigin"


def watchdog():
    before, pid = records(), int(show("MainPID"))
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: show("NRestarts") == "1" and show("ActiveState") == "active")
    wait_for(lambda: records() == before)
    SEEN["watchdog"] = {"counters": len(before), "another": int(show("MainPID")) != pid}


def forbidden():
    pathlib.Path("/etc/secret").write_text("")
    os.chmod("/etc/secret", 0o600)
    pathlib.Path("/run/probe.py").write_text(PROBE)
    unit = pathlib.Path("/etc/systemd/system", SERVICE).read_text()
    unit = re.sub(r"(?m)^(Type|NotifyAccess|Restart|WatchdogSec|ExecReload|EnvironmentFile)=.*\n", "", unit)
    unit = re.sub(r"(?m)^ExecStart=.*", "Type=oneshot\nStandardOutput=file:/run/probed\n"
                                        "ExecStart=/usr/bin/python3 /run/probe.py", unit)
    (UNITS / "probe.service").write_text(unit)
    systemctl("daemon-reload")
    systemctl("start", "probe.service")
    SEEN["probe"] = json.loads(pathlib.Path("/run/probed").read_text())


def stop():
    systemctl("stop", SERVICE)
    SEEN["stopped"] = [show("ActiveState"), show("Result")]


def activation():
    systemctl("start", "wideep-exporter.socket")
    SEEN["before the first connection"] = show("ActiveState")
    with socket.create_connection(("127.0.0.1", 9464), timeout=60) as first:
        first.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        SEEN["first answer"] = first.recv(15).decode()
    SEEN["after it"] = wait_for(lambda: show("ActiveState") == "active") and "active"
    systemctl("stop", "wideep-exporter.socket", SERVICE)
    systemctl("start", SERVICE)
    SEEN["without the socket"] = wait_for(lambda: scrape("/-/healthy")) and show("ActiveState")


for step in (start, reload, watchdog, forbidden, stop, activation):
    begin = time.monotonic()
    try:
        step()
    except Exception:
        SEEN[f"failed: {step.__name__}"] = traceback.format_exc() + subprocess.run(
            ["systemctl", "status", "-n20", "--no-pager", SERVICE], capture_output=True, text=True, check=False).stdout
    SEEN[f"seconds: {step.__name__}"] = round(time.monotonic() - begin, 1)
pathlib.Path("/run/seen/seen.json").write_text(json.dumps(SEEN))
systemctl("poweroff", check=False)

# SPDX-License-Identifier: Apache-2.0
"""The units: as systemd-analyze judges them, and under a systemd that boots in a container."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from exporter_helpers import BUILD, EXPORTER

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"

analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze: install systemd")
boots = pytest.mark.skipif(not shutil.which("systemd-nspawn") or os.geteuid() != 0,
                           reason="systemd-nspawn (package systemd-container) and root are needed to boot systemd")


def install(directory):
    subprocess.run(["make", "-C", ROOT, "-o", "all", "install", f"B={BUILD}", f"DESTDIR={directory}",
                    "PREFIX=/opt/wideep", "SYSTEMD_UNITDIR=/units", "SYSUSERSDIR=/sysusers"], check=True,
                   capture_output=True, timeout=120)


@analyze
def test_verify_and_security(tmp_path):
    install(tmp_path)
    for name in ("wideep-exporter.service", "wideep-exporter.socket"):
        unit = tmp_path / "units" / name
        unit.write_text(unit.read_text().replace("/opt/wideep/bin/wideep-exporter", EXPORTER))
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", *(tmp_path / "units").iterdir()],
                          capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0 and str(tmp_path) not in said.stderr, said.stderr
    said = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager",
                           UNITS / "wideep-exporter.service"], capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout


def test_settings_are_those_of_the_program():
    usage = subprocess.run([EXPORTER, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    settings = (UNITS / "wideep-exporter.default").read_text()
    assert re.findall(r"^#(WIDEEP_\w+)=", settings, re.M) == re.findall(r"^      (WIDEEP_\w+)$", usage, re.M)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What systemd_inside.py saw. The container has this machine's /usr, and nothing else of it."""
    tmp = tmp_path_factory.mktemp("systemd")
    install(tmp)
    (tmp / "seen").mkdir()
    shutil.copy(pathlib.Path(__file__).with_name("systemd_inside.py"), tmp / "seen")
    (tmp / "units/test.target").write_text("[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=test.service\n"
                                           "AllowIsolate=yes\n")
    (tmp / "units/test.service").write_text("[Service]\nExecStart=/usr/bin/python3 /run/seen/systemd_inside.py\n")
    said = subprocess.run(
        ["systemd-nspawn", "-D", "/", "--volatile=yes", "--boot", "--register=no", "--keep-unit", "--private-network",
         "--link-journal=no", "-q", f"--machine=wideep-{os.getpid()}", f"--bind-ro={tmp}/opt/wideep:/opt/wideep",
         f"--bind-ro={tmp}/units:/etc/systemd/system", f"--bind-ro={tmp}/sysusers:/etc/sysusers.d",
         f"--bind={tmp}/seen:/run/seen", "systemd.unit=test.target", "systemd.firstboot=no"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False)
    file = tmp / "seen/seen.json"
    assert file.exists(), said.stdout[-3000:]
    return json.loads(file.read_text())


@boots
def test_no_step_failed(seen):
    print({k: v for k, v in seen.items() if k.startswith("seconds")})
    assert not [v for k, v in seen.items() if k.startswith("failed")]


@boots
def test_starts_and_sees_the_writers_live(seen):
    assert seen["state"] == "active" and seen["user"] != 0
    alive = re.findall(r"^wideep_rank_up\{.*\} (\d)$", seen["page"], re.M)
    assert alive and set(alive) == {"1"}


@boots
def test_reload_reads_the_web_configuration(seen):
    assert (seen["header before"], seen["header after"]) == ("deny", "sameorigin")


@boots
def test_the_watchdog_restarts_it_and_counters_stay(seen):
    assert seen["watchdog"]["another"] and seen["watchdog"]["counters"] > 0


@boots
def test_what_is_forbidden_is_refused(seen):
    done = {what for what, result in seen["probe"].items() if result == "done"}
    assert done == {"inet", "read /dev/shm"}, seen["probe"]
    assert seen["probe"]["netlink"] == "EAFNOSUPPORT"


@boots
def test_stop_and_socket_activation(seen):
    assert seen["stopped"] == ["inactive", "success"]
    assert seen["before the first connection"] == "inactive"
    assert seen["first answer"] == "HTTP/1.1 200 OK" and seen["after it"] == "active"
    assert seen["without the socket"] == "active"

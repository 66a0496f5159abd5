# SPDX-License-Identifier: Apache-2.0
"""The exporter needs no privilege, and gives up what it could gain."""

import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

from exporter_helpers import EXPORTER, check_equal, exporting, shared_directory, simulating, wait_for
from faults_helpers import record, unsanitized
from test_faults import DONE, FAST
from web_helpers import web_config

NOBODY = 65532
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture
def shm():
    with shared_directory() as path:
        path.chmod(0o755)
        yield path


# ---- privileges -------------------------------------------------------------------------------------------------

UNPRIVILEGED = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all",
                "--inh-caps=-all", "--no-new-privs")


def status(pid):
    return dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())


def readable_program(directory):
    """A copy that other users reach, whatever directories the build lies in."""
    return shutil.copy(EXPORTER, directory / "wideep-exporter")


# Every mount there is, and what lies in it: the mounts are the process' own, nothing of the machine changes.
READ_ONLY = ("unshare", "--mount", "--propagation=private", "sh", "-e", "-c", """
    mount --bind "$1" "$1"
    for at in / /tmp /dev /dev/shm "$1"
    do ! mountpoint -q "$at" || mount -o remount,bind,ro "$at"; done
    for at in / /tmp /dev/shm "$1"
    do if touch "$at/written" 2>/dev/null; then echo "$at can be written to" >&2; exit 1; fi; done
    shift; exec "$@" """, "sh")

# Of strace's line: a path that is opened for more than reading, or is made or taken away.
WRITES = re.compile(r'^(?:\d+ +)?(?:open\w*\(.*O_(?:WRONLY|RDWR|CREAT|TMPFILE|TRUNC)|creat|mkdir|mknod|unlink|rename|'
                    r'link|symlink|f?truncate|f?ch(?:mod|own)|utime|mount)', re.M)
NO_FILES = re.compile(r'"/dev/null"|"/proc/self/task/\d+/comm"')  # the latter names a thread


@AS_ROOT
@unsanitized  # a leak check at the end does not work beside strace
def test_unprivileged_on_read_only_files(shm, tmp_path):
    """By number, without a name in passwd, with no capability, where every file is read-only: it serves, and takes a
    new configuration. It opens no file for writing, and makes and changes none."""
    program = readable_program(shm)
    config = web_config(shm / "web.yml", http_server_config={"headers": {"X-Frame-Options": "deny"}})
    read_only = (*READ_ONLY, str(shm))
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mounts here")
    tracing = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0
    trace = open(tmp_path / "trace", "wb")
    # The tracer cannot open a file either: what it says goes to one that is open.
    strace = ("strace", "-D", "-f", "-qq", "-e", "signal=none", "-e", "trace=%file,ftruncate,fchmod,fchown", "-o",
              "|cat") if tracing else ()
    with trace, simulating(shm, *DONE) as sim:
        books = sim.expected()
        with exporting(shm, FAST, f"--web.config.file={config}", program=program, stdout=trace,
                       prefix=(*read_only, *UNPRIVILEGED, *strace)) as exporter:
            exporter.wait_page(lambda page: check_equal(page, books, joined=False))
            found = status(exporter.pid)
            assert found["Uid"].split() == 4 * [str(NOBODY)] and found["Groups"].strip() == ""
            assert {found[name] for name in found if name.startswith("Cap")} == {16 * "0"}
            web_config(config, http_server_config={"headers": {"X-Frame-Options": "sameorigin"}})
            exporter.process.send_signal(signal.SIGHUP)
            wait_for(lambda: exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "sameorigin")
            exporter.wait_page(lambda page: check_equal(page, books, joined=False))
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(60) == 0
            assert [line for line in exporter.log if "level=warn" in line or "level=error" in line] == []
    if tracing:
        lines = (tmp_path / "trace").read_text(errors="replace").splitlines()
        assert any("web.yml" in line for line in lines)
        assert [line for line in lines if WRITES.search(line) and not NO_FILES.search(line)] == []
    record("no privilege, all files read-only", 1, right=1)


def test_gives_up_new_privileges(shm):
    with exporting(shm) as exporter:
        assert status(exporter.pid)["NoNewPrivs"] == "1"

# SPDX-License-Identifier: Apache-2.0
"""The exporter needs no privilege, and gives up what it could gain."""

import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from exporter_helpers import EXPORTER, check_equal, exporting, shared_directory, simulating
from faults_helpers import record
from test_faults import DONE, FAST

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


@AS_ROOT
def test_unprivileged_on_read_only_segments(shm):
    """By number, without a name in passwd, with no capability, in a mount namespace whose segments are read-only."""
    program = readable_program(shm)
    with simulating(shm, *DONE) as sim:
        books = sim.expected()
        # The mount is the exporter's own; nothing of the machine changes.
        read_only = ("unshare", "--mount", "--propagation=private", "sh", "-e", "-c",
                     f'mount --bind {shm} {shm}; mount -o remount,bind,ro {shm}; ! touch {shm}/written; exec "$@"', "sh")
        if subprocess.run([*read_only, "true"], capture_output=True).returncode != 0:
            pytest.skip("no mounts here")
        with exporting(shm, FAST, program=program, prefix=(*read_only, *UNPRIVILEGED)) as exporter:
            exporter.wait_page(lambda page: check_equal(page, books, joined=False))
            found = status(exporter.pid)
            assert found["Uid"].split() == 4 * [str(NOBODY)] and found["Groups"].strip() == ""
            assert {found[name] for name in found if name.startswith("Cap")} == {16 * "0"}
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(60) == 0
            assert [line for line in exporter.log if "level=warn" in line or "level=error" in line] == []
    record("no privilege, segments read-only", 1, right=1)


def test_gives_up_new_privileges(shm):
    with exporting(shm) as exporter:
        assert status(exporter.pid)["NoNewPrivs"] == "1"

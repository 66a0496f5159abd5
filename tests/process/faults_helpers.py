# SPDX-License-Identifier: Apache-2.0
"""The other end of tests/faults/inject.so, and the table of what became of faults."""

import contextlib
import ctypes
import mmap
import os
import pathlib

import pytest

from abi_helpers import program

INJECT, CONFINE = program("tests/faults/inject.so"), program("tests/faults/confine")
FOREVER = 1 << 62
SANITIZED = bool(os.environ.get("WIDEEP_SAN"))

unsanitized = pytest.mark.skipif(SANITIZED, reason="calls are caught before the sanitizer's own can see them")


class Window(ctypes.Structure):
    """tests/faults/inject.h says what each field is for, here and below."""
    _fields_ = [(name, ctypes.c_uint64) for name in ("calls", "start", "until", "failed")]


class Page(ctypes.Structure):
    _fields_ = [(name, Window) for name in ("memory", "thread", "random", "file")] + [
        ("realtime_shift_s", ctypes.c_int64), ("scan_stall_ms", ctypes.c_uint64), ("stalled_scans", ctypes.c_uint64),
        ("blocks", ctypes.c_int64), ("interruptions", ctypes.c_uint64)]


class Inject:
    def __init__(self, path):
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self.page = Page.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        self.env = {"LD_PRELOAD": INJECT, "FAULTS_INJECT": str(path)}

    def reset(self):
        ctypes.memset(ctypes.addressof(self.page), 0, ctypes.sizeof(self.page))

    @staticmethod
    def arm(window, after=0, count=1):
        """Of the calls from about now on, `after` succeed and the next `count` fail."""
        window.until = 0
        window.failed = 0
        window.start = window.calls + after
        window.until = min(window.start + count, FOREVER)

    @staticmethod
    def disarm(window):
        window.until = 0


def record(fault, tried, **outcomes):
    """A row of the table that `make faults` prints. All that was tried must have come out as one of the outcomes."""
    assert sum(outcomes.values()) == tried > 0, (fault, tried, outcomes)
    line = f"{fault:56} {tried:5}  " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in outcomes.items() if n)
    print(line)
    if os.environ.get("WIDEEP_FAULTS_TABLE"):
        with open(os.environ["WIDEEP_FAULTS_TABLE"], "a", encoding="utf-8") as file:
            file.write(line + "\n")


def threads(pid):
    """{tid: name}"""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(task.name)] = (task / "comm").read_text().strip()
    return found


def interrupt(pid, number):
    """Each thread of a process, once that handles the signal."""
    (handled,) = [line.split()[1] for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
                  if line.startswith("SigCgt:")]
    if not int(handled, 16) >> number - 1 & 1:
        return
    tgkill = 234 if os.uname().machine == "x86_64" else 131
    for tid in threads(pid):
        ctypes.CDLL(None).syscall(ctypes.c_long(tgkill), pid, tid, number)


def problems(log):
    return [line for line in log if "level=info" not in line and "level=debug" not in line]

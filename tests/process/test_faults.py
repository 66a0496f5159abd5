# SPDX-License-Identifier: Apache-2.0
"""What the system below may do to the exporter: no memory, threads, descriptors, random numbers or room for its log,
interrupted calls, a clock that jumps, time that stands still. tests/faults/README.md is the table of the outcomes."""

import contextlib
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time

import pytest

from abi_helpers import ROOT, Writer
from exporter_helpers import (EXPORTER, SIM, Exporter, Page, check_equal, exporting, free_port, gone, shared_directory,
                              simulating, wait_for)
from faults_helpers import FOREVER, SANITIZED, Inject, interrupt, problems, record, unsanitized
from web_helpers import authority, certificate, count_fds, curl, web_config

DONE = ("--passes-per-second", 0, "--passes", 60, "--engines", 1, "--layers", 2, "--linger", 600)
FAST = "--collect.interval=20ms"
# The C library says the last of a thread that it has no memory for.
NO_MEMORY = re.compile(r"[Cc]annot allocate memory|not enough memory|Memory allocation failure|"
                       r"Resource temporarily unavailable")


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


@pytest.fixture
def inject(tmp_path):
    return Inject(tmp_path / "inject")


@pytest.fixture
def books(shm):
    """Segments of living writers that have nothing more to say, and what they hold."""
    with simulating(shm, *DONE) as sim:
        yield sim.expected()


def right(exporter, books):
    return exporter.wait_page(lambda page: check_equal(page, books, joined=False))


def ends_well(exporter):
    exporter.process.send_signal(signal.SIGTERM)
    assert exporter.process.wait(60) == 0


# ---- memory -----------------------------------------------------------------------------------------------------


def start_up(shm, inject, books, after, count, *flags):
    """Either says in one line why it cannot start, with status 1, or starts and is right once there is memory."""
    inject.reset()
    inject.arm(inject.page.memory, after, count)
    exporter = Exporter(shm, FAST, *flags, env=inject.env)
    try:
        with contextlib.suppress(RuntimeError):
            exporter.wait()
        if exporter.port is None:
            assert exporter.process.wait(60) == 1, (after, exporter.log)
            exporter.reader.join()
            lines = problems(exporter.log)
            assert lines and NO_MEMORY.search(lines[-1]), (after, exporter.log)
            assert inject.page.memory.failed > 0
            return "refused"
        inject.disarm(inject.page.memory)
        if books is not None:
            right(exporter, books)
        ends_well(exporter)
        return "went on" if inject.page.memory.failed else "not reached"
    finally:
        exporter.stop()


def every_start_up(shm, inject, books, count, *flags, step=1):
    outcomes = {"refused": 0, "went on": 0}
    for after in itertools.count(0, step):
        outcome = start_up(shm, inject, books, after, count, *flags)
        if outcome == "not reached":
            return outcomes
        outcomes[outcome] += 1


@unsanitized
@pytest.mark.parametrize("count", [1, FOREVER], ids=["one", "all"])
def test_start_up_without_memory(shm, inject, books, count):
    outcomes = every_start_up(shm, inject, books, count)
    assert outcomes["refused"] > 20 and outcomes["went on"] > 5
    record(f"start-up, {'one allocation' if count == 1 else 'all from one on'}", sum(outcomes.values()),
           exits_1=outcomes["refused"], serves_the_right_page=outcomes["went on"])

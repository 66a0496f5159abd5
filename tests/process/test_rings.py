# SPDX-License-Identifier: Apache-2.0
"""Rings in hard times: an exporter that is stopped again and again, and writers of nonsense beside good ones."""

import contextlib
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from abi_helpers import Segment
from exporter_helpers import BUILD, check_equal, exporting, shared_directory, simulating

SANITIZED = BUILD.name not in ("build", "clang")
RING_PASSES = 64
LARGEST_RING = 64 << 20
RING_HEADER = 128
RINGS = {3: "EPLB", 4: "DBO"}


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


def test_stopped_for_a_quarter_of_the_ring_again_and_again(shm):
    per_second = 10
    with exporting(shm) as exporter, simulating(shm, "--passes-per-second", per_second, "--passes", 120, "--ranks", 2,
                                                "--linger", 300) as sim:
        sim.started()
        stops = 0
        while not sim.file.exists():
            os.kill(exporter.pid, signal.SIGSTOP)
            time.sleep(RING_PASSES / per_second / 4)
            os.kill(exporter.pid, signal.SIGCONT)
            stops += 1
            begin = time.time()
            exporter.wait_page(lambda page: page.one("wideep_snapshot_timestamp_seconds") > begin)
        assert stops >= 3
        expected = sim.expected()
        page = exporter.wait_page(lambda page: check_equal(page, expected))
        assert page.incomplete() == {}
        for kind in "eplb", "dbo":
            assert page.one("wideep_records_lost_total", kind=kind, cause="overrun") == 0


# ---- nonsense ---------------------------------------------------------------------------------------------------


def field_at(name):
    names = [field for field, _ in Segment.IDENTITY]
    return struct.calcsize("=" + "".join(kind for _, kind in Segment.IDENTITY[:names.index(name)]))


def forge(path, good, engine):
    """A segment like a good one, of a group of its own, whose rings are the largest that are valid, and empty."""
    data, end = bytearray(good), len(good)
    struct.pack_into("=I", data, field_at("engine"), engine)
    struct.pack_into("=Q", data, field_at("group"), 1000 + engine)
    struct.pack_into("=Q", data, field_at("instance_id"), 1000 + engine)
    heads = []
    for at in range(256, 256 + 32 * struct.unpack_from("=I", data, field_at("section_count"))[0], 32):
        kind, stride, _, _, _, batch = struct.unpack_from("=IIQQII", data, at)
        if kind in RINGS:
            count = LARGEST_RING // stride
            struct.pack_into("=IIQQII", data, at, kind, stride, end, RING_HEADER + count * stride, count, batch)
            heads.append((end, count))
            end += RING_HEADER + count * stride
    assert len(heads) == 2
    struct.pack_into("=Q", data, field_at("total_size"), end)
    with open(path, "wb") as file:
        file.write(data)
        file.truncate(end)
    return heads


def harass(path, heads):
    """Moves the heads for ever: by whole rings, back again, and to where no writer comes."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        fcntl.lockf(file, fcntl.LOCK_EX, 1)
        print("ready", flush=True)
        turn = 0
        while True:
            turn += 1
            for at, count in heads:
                far = (1 << 62) - turn if turn % 1000 == 0 else 0 if turn % 1000 == 1 else turn % 4000 * count
                struct.pack_into("=Q", memory, at, far)


@contextlib.contextmanager
def harassing(path, heads):
    command = [sys.executable, __file__, str(path), *(str(number) for head in heads for number in head)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_writers_of_nonsense_take_a_fair_share(shm):
    flags = ["--layers", 58, "--experts", 64, "--passes-per-second", 20, "--passes", 120, "--linger", 300]
    with exporting(shm) as exporter, contextlib.ExitStack() as stack:
        with shared_directory() as other, simulating(other, "--passes", 1, "--linger", 300) as model:
            model.started()
            good = (other / "wideep.default.e0.r0").read_bytes()
        for engine in range(10, 14):
            path = shm / f"wideep.default.e{engine}.r0"
            stack.enter_context(harassing(path, forge(path, good, engine)))
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4})
        sim = stack.enter_context(simulating(shm, *flags))
        sim.started()
        begin, before = time.monotonic(), exporter.scrape()
        while not sim.file.exists():
            assert exporter.get("/-/healthy")[0].status == 200
            time.sleep(0.05)
        expected = sim.expected()
        page = exporter.wait_page(lambda page: check_equal(page, expected))
        assert sum(v for _, v in page.of("wideep_records_lost_total")) > 10000  # they did what they are here for
        if not SANITIZED:
            seconds = page.one("process_cpu_seconds_total") - before.one("process_cpu_seconds_total")
            assert seconds < 0.5 * (time.monotonic() - begin)


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[2:]]
    harass(sys.argv[1], list(zip(numbers[::2], numbers[1::2])))

# SPDX-License-Identifier: Apache-2.0
"""Hostile files beside good ones, before they are mapped and while they are: each costs itself alone, with its reason."""

import collections
import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

import corruptor
from abi_helpers import Writer, program
from exporter_helpers import (BUILD, EXPORTER, Exporter, check_equal, exporting, shared_directory, simulating, wait_for)
from faults import record_faults
from test_exporter import allowed_lint, promtool
from web_helpers import resident_bytes

SANITIZED = BUILD.name not in ("build", "clang")
MB = 1 << 20
GOOD = ["--passes-per-second", 100, "--passes", 50, "--linger", 600]
PACED = ["--passes-per-second", 40, "--linger", 600]
FAST = "--collect.interval=50ms"
ROOT = os.geteuid() == 0
# Root reads everything; the exporter and wideep-dump run as who does not.
USER = {"user": "nobody"} if ROOT else {}


@pytest.fixture
def shm():
    with shared_directory() as path:
        path.chmod(0o755)
        yield path


@pytest.fixture
def image(tmp_path):
    def take():
        for file in tmp_path.glob("wideep.*"):
            file.unlink()
        return corruptor.take_image(tmp_path)
    return take


@pytest.fixture
def lock():
    """Holds the lock of a file as a writer would, till the test ends. Nothing else may open the file in this process,
    since closing it drops the lock."""
    with contextlib.ExitStack() as stack:
        def hold(path):
            fcntl.lockf(stack.enter_context(open(path, "r+b", buffering=0)), fcntl.LOCK_EX, 1)
        yield hold


@contextlib.contextmanager
def exporting_unprivileged(shm, directory, *flags):
    """The build may lie where nobody can go, so they are copied; yields the exporter and wideep-dump."""
    exporter = Exporter(directory, *flags, program=shutil.copy(EXPORTER, shm / "exporter"), **USER)
    try:
        yield exporter.wait(), shutil.copy(program("wideep-dump"), shm / "dump")
    finally:
        exporter.stop()


def refusals(exporter, at=0):
    """{file: [reasons]} of the log from a line on; each has advice."""
    out = collections.defaultdict(list)
    for line in exporter.log[at:]:
        found = re.search(r'msg="segment rejected" file=("[^"]*"|\S+) reason=(\w+) advice="[^"]{10,}"', line)
        if found:
            out[found[1].strip('"')].append(found[2])
    return out


def check_valid(exporter):
    """By parsers of other people, the strict one of OpenMetrics too."""
    page = exporter.scrape()
    assert not [line for line in promtool(page.text) if not allowed_lint(line)]
    _, body = exporter.get(headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert len(list(openmetrics_families(body.decode()))) > 20
    return page


def dump_reasons(dump, directory):
    """{file: what wideep-dump says of it, None where it shows it}."""
    done = subprocess.run([dump, "--json", "--shm.dir", directory], capture_output=True, timeout=300, text=True, **USER)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    return {os.path.basename(file["file"]): file.get("error") for file in document["segments"]}


def lost(page):
    return {kind: page.one("wideep_records_lost_total", kind=kind, cause="invalid") for kind in ("eplb", "dbo")}


# ---- as they are found ------------------------------------------------------------------------------------------


def place(directory, data, engine, kind, lock=None):
    """Made where no scan looks, so that none sees it half made."""
    image = corruptor.Image(data, engine)
    kind.spoil(image)
    kind.place(directory / "new", image)
    if kind.locked:
        lock(directory / "new")
    return (directory / "new").rename(directory / (kind.name or image.name))


def place_all(directory, data, lock):
    """{path: kind} of all that cost no records."""
    out = {}
    for engine, kind in enumerate(corruptor.KINDS.values(), 1000):
        if kind.lost:
            continue
        path = place(directory, data, engine, kind, lock)
        assert path not in out
        out[path] = kind
    return out


def test_kinds_are_many():
    assert len(corruptor.KINDS) > 150


def test_each_kind_has_its_reason(shm, image, lock):
    directory = shm / "segments"
    directory.mkdir()
    owners = f"--shm.owner={os.geteuid()}"
    with exporting_unprivileged(shm, directory, FAST, owners) as (exporter, dump), simulating(directory, *GOOD) as sim:
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected))
        invalid = lost(exporter.scrape())
        files = place_all(directory, image(), lock)
        counted = collections.Counter((kind.state, kind.reason) for kind in files.values() if kind.reason)
        counted["live", "ok"] = 4 + sum(kind.locked and not kind.reason for kind in files.values())
        # and the hard link's other name, its own
        counted["dead", "ok"] = 1 + sum(not kind.locked and not kind.reason for kind in files.values())
        page = exporter.wait_page(lambda page: counted.total() == sum(page.segments().values()) and page)
        found = refusals(exporter)
        said = {path.name: (found.get(path.name, [None]), [kind.reason if kind.state == "rejected" else None])
                for path, kind in files.items()}
        assert not {name: pair for name, pair in said.items() if pair[0] != pair[1]}
        assert page.segments() == counted
        shown = dump_reasons(dump, directory)
        told = {path.name: (shown.get(path.name), kind.dump) for path, kind in files.items() if kind.reason != "bad_name"
                or kind.name is None}
        assert not {name: pair for name, pair in told.items() if pair[0] != pair[1]}
        for _ in range(5):
            check_equal(exporter.scrape(), expected)
        assert lost(check_valid(exporter)) == invalid
        assert all(len(reasons) == 1 for reasons in refusals(exporter).values()), "one line each"
    record_faults("hostile segment", len(files))


def test_each_record_costs_itself_alone(shm, image):
    """What is wrong within a ring is lost, counted, and no reason to refuse the rest of the segment."""
    with exporting(shm, FAST) as exporter, simulating(shm, *GOOD) as sim:
        expected = sim.expected()
        before = lost(exporter.wait_page(lambda page: check_equal(page, expected)))
        data = image()
        for engine, (name, kind) in enumerate(corruptor.KINDS.items(), 1000):
            if not kind.lost:
                continue
            what, number = kind.lost
            path = place(shm, data, engine, kind)
            page = exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4, ("dead", "ok"): 1})
            now, other = lost(page), "dbo" if what == "eplb" else "eplb"
            assert now[other] == before[other], name
            difference = now[what] - before[what]
            assert difference == number if number else difference > 0, (name, difference)
            check_equal(page, expected)
            path.unlink()
            before = lost(exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4}))
        check_valid(exporter)
        assert not refusals(exporter)


@pytest.mark.parametrize("name", corruptor.PAIRS)
def test_ranks_that_do_not_agree(shm, image, lock, name):
    spoil, reason = corruptor.PAIRS[name]
    with exporting(shm, FAST) as exporter, simulating(shm, *GOOD) as sim:
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected))
        data = image()
        for rank in range(2):
            one = corruptor.Image(data, 1000)
            one.poke("Q", corruptor.GROUP, 77)
            one.poke("I", corruptor.NUMBER, rank)
            if rank == 1:
                spoil(one)
            corruptor.write_file(shm / "new", one)
            lock(shm / "new")
            (shm / "new").rename(shm / one.name)
        counted = {("live", "ok"): 5, ("rejected", reason): 1} if reason else {("live", "ok"): 6}
        exporter.wait_page(lambda page: page.segments() == counted)
        check_equal(check_valid(exporter), expected)


def cpu_seconds(pid):
    user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's scan of so many files takes longer than probes wait")
def test_ten_thousand(shm, image):
    """Names of one bad file each, which take no room. A turn's processor time, health and memory stay bounded."""
    with exporting(shm) as exporter, simulating(shm, *GOOD) as sim:
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected))
        memory, data = resident_bytes(exporter.pid), image()
        kinds = [kind for kind in corruptor.KINDS.values()
                 if kind.reason and kind.place is corruptor.write_file and not kind.locked and not kind.name]
        inodes = shm / "inodes"
        inodes.mkdir()
        for i, kind in enumerate(kinds):
            place(inodes, data, 1000 + i, kind).rename(inodes / str(i))
        for i in range(10000):
            os.link(inodes / str(i % len(kinds)), shm / f"wideep.default.e{1000 + i}.r0")
        counted = collections.Counter(kinds[i % len(kinds)].reason for i in range(10000))
        page = exporter.wait_page(lambda page: sum(page.segments().values()) == 10004, 120)
        assert page.segments() == {("live", "ok"): 4, **{("rejected", reason): n for reason, n in counted.items()}}
        check_equal(page, expected)
        count = "wideep_collect_duration_seconds_count"
        begin, slowest, cpu = exporter.scrape(), 0, cpu_seconds(exporter.pid)
        while page[count] < begin[count] + 8:
            start = time.monotonic()
            assert exporter.get("/-/healthy")[0].status == 200
            slowest = max(slowest, time.monotonic() - start)
            page = exporter.scrape()
            check_equal(page, expected)
        turn = (cpu_seconds(exporter.pid) - cpu) / (page[count] - begin[count])
        print(f"{turn * 1000:.0f} ms a turn, health {slowest * 1000:.0f} ms, "
              f"{(resident_bytes(exporter.pid) - memory) / MB:.1f} MB")
        assert turn < 0.5 and slowest < 5
        assert resident_bytes(exporter.pid) < memory + 24 * MB
        found = refusals(exporter)
        assert len(found) == 10000 and all(len(reasons) == 1 for reasons in found.values()), "one line each"
        check_valid(exporter)
        for i in range(10000):
            (shm / f"wideep.default.e{1000 + i}.r0").unlink()
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4} and check_equal(page, expected))


# ---- while they are mapped --------------------------------------------------------------------------------------


SECONDS = [5, pytest.param(60, marks=pytest.mark.slow)]
VICTIMS = 4


def place_victims(shm, data):
    """Segments whose lock the damaging process is to hold."""
    paths = []
    for engine in range(1000, 1000 + VICTIMS):
        image = corruptor.Image(data, engine)
        corruptor.write_file(shm / "new", image)
        paths.append((shm / "new").rename(shm / image.name))
    return paths


@contextlib.contextmanager
def damaging(code, *arguments):
    """A process of its own that says when it has begun."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
        assert process.poll() is None, "it did not damage to the end"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def watch(exporter, sim, seconds):
    """Scrapes: every page parses, no total of the good ones goes back or beyond what is recorded, and all are exact from
    when they are complete. The exporter is one process all the time. Returns the number of pages."""
    memory, pages = resident_bytes(exporter.pid), []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        complete = sim.file.exists()
        pages.append((complete, exporter.scrape()))
        assert exporter.get("/-/healthy")[0].status == 200
    expected = sim.expected()
    pages.append((True, exporter.wait_page(lambda page: check_equal(page, expected))))
    settled = False
    for (_, one), (complete, two) in itertools.pairwise(pages):
        backward = [name for name, value in expected.items()
                    if not one.get(name, 0) <= two.get(name, 0) <= value * (1 + 1e-12)]
        assert not backward, backward[:5]
        # A snapshot may be older than the books; once one page has them, all later ones do.
        if settled:
            check_equal(two, expected)
        settled = settled or (complete and all(two.get(name) == value for name, value in expected.items()
                                               if isinstance(value, int)))
    assert len({page["process_start_time_seconds"] for _, page in pages}) == 1 and exporter.process.poll() is None
    if not SANITIZED:
        assert resident_bytes(exporter.pid) < memory + 48 * MB
    return len(pages)


FLIP = """
import fcntl, mmap, random, sys
chance = random.Random(int(sys.argv[1]))
maps = []
for path in sys.argv[2:]:
    file = open(path, "r+b", buffering=0)
    fcntl.lockf(file, fcntl.LOCK_EX, 1)
    maps.append((file, memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")))
print("begun", flush=True)
values = [0, 1, 2**64 - 1, 2**63, 2**32, 0x7ff8000000000000, 0xfff0000000000000]
while True:
    _, words = chance.choice(maps)
    # The heads and what is live are a small part of it, and the most rewarding.
    at = chance.randrange(512, 512 + 300) if chance.random() < 0.3 else chance.randrange(len(words))
    how = chance.random()
    words[at] = (words[at] ^ 1 << chance.randrange(64) if how < 0.4 else (words[at] + chance.randrange(1000)) % 2**64
                 if how < 0.7 else chance.choice(values) if how < 0.9 else chance.getrandbits(64))
"""


@pytest.mark.parametrize("seconds", SECONDS)
def test_words_flipped_while_mapped(shm, image, seconds):
    flags = [*PACED, "--passes", int(30 * seconds)]
    with exporting(shm) as exporter, simulating(shm, *flags) as sim:
        sim.started()
        victims = place_victims(shm, image())
        lines = len(exporter.log)
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4, ("dead", "ok"): VICTIMS})
        with damaging(FLIP, seconds, *victims):
            pages = watch(exporter, sim, seconds)
            begin = exporter.scrape()
            exporter.wait_page(lambda page: sum(lost(page).values()) > sum(lost(begin).values()))  # it goes on
        assert pages > seconds
        check_valid(exporter)
        # A change of state at most for each at each scan, of which there are four a second.
        assert len(exporter.log) - lines < VICTIMS * (4 * 2 * (seconds + 60))
        assert not refusals(exporter)


SHRINK = """
import fcntl, os, random, sys, time
chance = random.Random(int(sys.argv[1]))
files = [open(path, "r+b", buffering=0) for path in sys.argv[2:]]
whole = [os.pread(file.fileno(), 1 << 24, 0) for file in files]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX, 1)
print("begun", flush=True)
while True:
    i = chance.randrange(len(files))
    fd, data = files[i].fileno(), whole[i]
    os.ftruncate(fd, chance.choice([0, 1, 4095, 4096, 8192, len(data) - 1, chance.randrange(len(data))]))
    time.sleep(chance.choice([0, 0, 0.001, 0.1]))
    if chance.random() < 0.9:
        os.ftruncate(fd, len(data))
        os.pwrite(fd, data, 0)
    time.sleep(chance.choice([0, 0, 0.001, 0.1]))
"""


@pytest.mark.parametrize("seconds", SECONDS)
def test_truncated_and_extended_while_mapped(shm, image, seconds):
    flags = [*PACED, "--passes", int(30 * seconds)]
    with exporting(shm) as exporter, simulating(shm, *flags) as sim:
        sim.started()
        victims = place_victims(shm, image())
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4, ("dead", "ok"): VICTIMS})
        lines = len(exporter.log)
        with damaging(SHRINK, seconds, *victims):
            watch(exporter, sim, seconds)
            wait_for(lambda: any("truncated_mapping" in reasons for reasons in refusals(exporter).values()))
        check_valid(exporter)
        # Refused and attached again at most, for each at each scan.
        assert len(exporter.log) - lines < VICTIMS * (4 * 4 * (seconds + 60))
        assert refusals(exporter).keys() <= {path.name for path in victims}


LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, PRIVATE = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE


def call(function, *arguments):
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), function.__name__)


@contextlib.contextmanager
def small_tmpfs(directory):
    """A file system of 16 MB that this thread and the processes that it starts see, and nobody else: it goes with the
    last of them. The way into it by /proc would not do, since writers resolve the name of their directory."""
    directory.mkdir()
    where = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call(LIBC.unshare, NEW_MOUNTS)
        call(LIBC.mount, b"none", b"/", None, ctypes.c_ulong(PRIVATE), None)
        call(LIBC.mount, b"wideep", os.fsencode(directory), b"tmpfs", ctypes.c_ulong(0), b"size=16m,mode=755")
        yield directory
    finally:
        call(LIBC.setns, before, NEW_MOUNTS)
        os.close(before)
        os.chdir(where)


FILL = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
size = 0
begun = False
while True:
    try:
        size += os.pwrite(fd, b"x" * 4096, size)
    except OSError:
        if not begun:
            print("begun", flush=True)
        begun = True
        os.ftruncate(fd, size := size - 8192)
"""


@pytest.mark.skipif(not ROOT, reason="mounts a file system")
@pytest.mark.parametrize("seconds", SECONDS)
def test_file_system_filled(shm, tmp_path, seconds):
    """Segments have their room from their creation: who came before loses nothing, who comes then is told."""
    books = tmp_path / "books.json"  # not where there is no room
    flags = [*PACED, "--passes", int(30 * seconds), "--expect", books]
    with small_tmpfs(shm / "small") as small, exporting(small) as exporter, simulating(small, *flags) as sim:
        sim.file = books
        sim.started()
        late = ((b"late", 58, 256, 256),)
        with Writer() as writer:
            with damaging(FILL, small / "filler"):
                assert writer.create(small, late, engine=9)[0] == -errno.ENOSPC
                watch(exporter, sim, seconds)
            (small / "filler").unlink()
            assert writer.create(small, late, engine=9)[0] == 0
            expected = sim.expected()
            exporter.wait_page(lambda page: check_equal(page, expected) and page.segments() == {("live", "ok"): 5})
        check_valid(exporter)

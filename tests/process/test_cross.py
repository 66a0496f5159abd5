"""The product on other processors, under qemu-user: `make check-cross` builds for them and runs these.

The tests of the ABI run again with an aarch64 writer and reader: programs of the same names that start qemu.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from abi_helpers import ROOT, Segment, Writer, alive, program
from exporter_helpers import OWN, exporting, wait_for
from test_abi_stability import SEGMENTS, agrees, kept

CROSS = pathlib.Path(os.environ.get("WIDEEP_TEST_CROSS", ""))
AARCH64 = ROOT / "build" / "aarch64"

if not os.environ.get("WIDEEP_TEST_CROSS"):
    pytest.skip("only under make check-cross", allow_module_level=True)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    """A directory like build/ whose programs are those of aarch64."""
    build = tmp_path_factory.mktemp("aarch64")
    for name in ("wideep-exporter", "wideep-dump", "wideep-sim", "tests/abi/writer", "tests/abi/reader", "tests/abi/layout"):
        path = build / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L "{CROSS}/aarch64/root" "{AARCH64}/{name}" "$@"\n')
        path.chmod(0o755)
    # No C++ compiler for it is asked for: what starts both starts the C one twice.
    (build / "tests/abi/writer_cxx").symlink_to("writer")
    return build


def run(*command):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_layout(aarch64):
    assert run(aarch64 / "tests/abi/layout") == (ROOT / "tests" / "abi" / "layout.golden").read_text()


def engine_series(page):
    return {name: value for name, value in page.items() if not OWN.match(name)}


def write(directory, name):
    """A closed segment and a dead one."""
    for rank, end in ((0, "close"), (1, None)):
        with Writer(command=[str(name)]) as writer:
            assert writer.create(directory, ((b"m", 3, 5, 8),), ep=2, rank=rank, group=9)[0] == 0
            assert writer.ask("pass", 0, 0, 7, 0, 1, 100) == 0
            assert writer.ask("dbo", 1, 1, 0, 2, 100, 50) == 0
            assert writer.ask("tokens", 5, 6) == 0
            assert end is None or writer.ask(end) == 0


@pytest.mark.parametrize("writer", ["aarch64", "x86"])
def test_pages_are_equal(aarch64, tmp_path, writer):
    """Each exporter reads what each writer wrote, and serves the same."""
    write(tmp_path, aarch64 / "tests/abi/writer" if writer == "aarch64" else program("tests/abi/writer"))
    pages = []
    for exporter in (program("wideep-exporter"), str(aarch64 / "wideep-exporter")):
        with exporting(tmp_path, program=exporter) as running:
            page = running.wait_page(lambda page: page.segments() == {("closed", "ok"): 1, ("dead", "ok"): 1})
            pages.append((engine_series(page), sorted(page.families)))
    assert pages[0] == pages[1]
    assert len(pages[0][0]) > 50


def test_live_segment_is_seen(aarch64, tmp_path):
    with Writer(command=[str(aarch64 / "tests/abi/writer")]) as writer, \
            exporting(tmp_path, program=str(aarch64 / "wideep-exporter")) as exporter:
        assert writer.create(tmp_path, ((b"m", 1, 2, 2),), ep=1)[0] == 0
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 1})
        assert writer.ask("pass", 0, 0, 7, 0, 1, 10) == 0
        exporter.wait_page(lambda page: sum(value for _, value in page.of("wideep_eplb_passes_total")) == 10)
        writer.kill()
        exporter.wait_page(lambda page: page.segments() == {("dead", "ok"): 1})


def test_kept_segments_are_read(aarch64, tmp_path):
    for path in sorted(SEGMENTS.glob("v*.json")):
        directory = tmp_path / path.stem
        directory.mkdir()
        expected = kept(path.stem, directory)
        with exporting(directory, program=str(aarch64 / "wideep-exporter")) as exporter:
            page = exporter.wait_page(lambda page: sum(page.segments().values()) == len(expected["dump"]))
        assert agrees(engine_series(page), expected["series"])


def test_tests_of_the_abi(aarch64):
    # Not those of fork(): qemu knows no MADV_WIPEONFORK.
    names = ["takeover", "race", "killed", "deleted", "unreadable", "stopped", "double_open", "umask", "refused", "layout"]
    result = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k",
                             f"({' or '.join(names)}) and not fork", str(ROOT / "tests" / "process" / "test_abi.py")],
                            env=dict(os.environ, WIDEEP_BUILD=str(aarch64)), capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= 8


def test_foreign_endian_is_refused(tmp_path):
    """A big-endian writer's segment: refused with its reason, and good ones beside it are served."""
    with exporting(tmp_path) as exporter, Writer() as own, \
            Writer(command=["qemu-s390x", str(CROSS / "s390x" / "writer")]) as foreign:
        assert foreign.create(tmp_path, ((b"m", 2, 4, 4),), engine=7)[0] == 0
        assert foreign.ask("pass", 0, 0, 7, 0, 1, 10) == 0
        assert own.create(tmp_path, ((b"m", 2, 4, 4),))[0] == 0
        path = tmp_path / "wideep.default.e7.r0"
        assert alive(path) and path.read_bytes()[16:20] == b"\1\2\3\4"
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 1, ("rejected", "bad_endian"): 1})
        result = subprocess.run([program("wideep-dump"), str(path)], capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and "bad_endian" in result.stderr
        assert foreign.ask("pass", 0, 10, 7, 0, 1, 10) == 0
        assert own.ask("pass", 0, 0, 7, 0, 1, 10) == 0
        exporter.wait_page(lambda page: sum(value for _, value in page.of("wideep_eplb_passes_total")) == 20)
        lines = wait_for(lambda: [line for line in exporter.log if "segment rejected" in line])
        assert len(lines) == 1 and "reason=bad_endian" in lines[0]

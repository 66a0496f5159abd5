"""The benchmark runs and its output is well formed. No figure is looked at but for being one: this is no timed test."""

import json
import math
import os
import pathlib
import shutil
import socketserver
import subprocess
import sys
import threading
import zipfile

import pytest

from exporter_helpers import BUILD
from test_python import built  # pylint: disable=unused-import

BENCH = pathlib.Path(__file__).resolve().parents[1] / "bench"
RUN = BENCH / "run.py"
sys.path.insert(0, str(BENCH))
import report  # pylint: disable=wrong-import-position
# Rows that a section has on any machine.
SECTIONS = {
    "writer": ("writer.hot.c.pass", "writer.hot.cxx.work_a", "writer.hot.python.work_b", "writer.paced.c.dbo.p99",
               "writer.brisk.c.pass.scrapes20.p99"),
    "reader": ("reader.ranks72.collect_render", "reader.growth72", "reader.growth9x8", "reader.experts8.render", "reader.drain", "reader.core_share", "reader.start",
               "memory.debug_slow_readers"),
    "server": ("server.aggregated.plain.x1.p50", "server.debug.gzip.first", "server.debug.gzip.x64.p99", "server.debug8.plain.x8.floor.cpu"),
    "peer": ("peer.python.work_a", "peer.multiprocess.pass", "peer.multiprocess.debug.p50"),
    "plugin": ("plugin.recorded",),
    "instructions": ("instructions.record_pass", "instructions.growth72", "instructions.drained_record", "instructions.rendered_double"),
}


def run(*arguments):
    return subprocess.run([sys.executable, RUN, *arguments], capture_output=True, text=True)


@pytest.fixture
def build(tmp_path, request):
    """A build as `make bench` leaves it, with the distribution."""
    if os.environ.get("WIDEEP_SAN"):
        pytest.skip("measures what users run")
    built = request.getfixturevalue("built")
    directory = tmp_path / "build"
    (directory / "bench").mkdir(parents=True)
    for entry in BUILD.resolve().iterdir():
        if entry.name != "bench":
            (directory / entry.name).symlink_to(entry)
    (wheel,) = (built / "sources/build/wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "bench/python")
    return directory


@pytest.mark.parametrize("section", SECTIONS)
def test_smoke(section, tmp_path, build):
    if section == "instructions" and not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    output = tmp_path / "results.jsonl"
    done = run("--build", build, "--form", "smoke", "--only", section, "--output", output)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    head, *rows = map(json.loads, output.read_text().splitlines())
    assert head["form"] == "smoke" and head["cores"] >= 1 and head["commit"] and head["failures"] == []
    assert not any("wideep" in text for text in head["notes"])
    found = {row["row"]: row for row in rows}
    assert len(found) == len(rows) and set(SECTIONS[section]) <= set(found)
    for row in rows:
        figures = [row["min"], row["value"], row["max"], *row["rounds"]]
        assert all(math.isfinite(x) for x in figures) and row["min"] <= row["value"] <= row["max"], row
        assert (row["verdict"] is None) == (row["aim"] is None) and row["relative_to"] in (None, *found), row
        assert row["row"] in done.stdout
    judged = {name for name, row in found.items() if row["aim"] and row["verdict"] != "not measured"}
    assert judged.isdisjoint(head["not_measured"])
    assert f" of {len(judged) + len(head['not_measured'])} aims met" in done.stdout


def test_without_a_build(tmp_path):
    done = run("--build", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "build first: make bench-quick\n")


def test_failure_keeps_earlier_results(tmp_path, build):
    """The load program is away: the section fails in words, and what was measured before stays."""
    programs = tmp_path / "programs"
    shutil.copytree(build / "tests/bench", programs, symlinks=True)
    (build / "tests").unlink()
    (build / "tests").mkdir()
    (build / "tests/bench").symlink_to(programs)
    (programs / "load").write_text("#!/bin/sh\necho no answer >&2\nexit 1\n")
    output = tmp_path / "results.jsonl"
    output.write_text("earlier")
    done = run("--build", build, "--form", "smoke", "--only", "server", "--output", output)
    assert done.returncode == 1 and "FAILED: server: " in done.stdout and "Traceback" not in done.stderr
    head = json.loads((tmp_path / "results.failed.jsonl").read_text().splitlines()[0])
    assert output.read_text() == "earlier" and "no answer" in head["failures"][0]


class Answering(socketserver.StreamRequestHandler):
    """One answer a connection, whatever is asked."""

    def handle(self):
        while self.rfile.readline().strip():
            pass
        self.wfile.write(self.server.answer)


@pytest.mark.parametrize("answer, words", [
    (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nfour", None),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\ntwo", "a body of 3 bytes, expected 4 to 9"),
    (b"HTTP/1.0 200 OK\r\n\r\nten or more", "a body of 11 bytes, expected 4 to 9"),
    (b"HTTP/1.0 503 Busy\r\nContent-Length: 4\r\n\r\nfour", "an answer is not 200"),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nfour", "an answer was cut off")])
def test_load_checks_answers(answer, words):
    with socketserver.TCPServer(("127.0.0.1", 0), Answering) as server:
        server.answer = answer
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run([BUILD / "tests/bench/load", "--requests=2", f"{server.server_address[1]}:4-9"],
                              capture_output=True, text=True, timeout=60)
        server.shutdown()
    if words:
        assert done.returncode == 1 and words in done.stderr, done.stderr
    else:
        assert done.returncode == 0 and json.loads(done.stdout)["ns"], done.stderr


def reported(floor, row, limit=1.1):
    """The report of a row and its floor, each by the samples of its rounds, and of a row that nobody measures."""
    found = report.Report({"row.p99": report.Aim(limit, of="ratio"), "absent": report.Aim(8)})
    for found.round, (below, above) in enumerate(zip(floor, row)):
        found.add_percentiles("floor", below)
        found.add_percentiles("row", above, "floor")
    return found


@pytest.mark.parametrize("floor, row, verdict", [
    ([[100] * 100] * 4, [[109] * 100] * 4, "met"),
    ([[100] * 100] * 4, [[112] * 100] * 4, "not met"),
    # The floor differs from itself by 1.2 from one half of its rounds to the other.
    ([[100] * 100, [100] * 100, [120] * 100, [120] * 100], [[135] * 100] * 4, "within noise"),
    ([[100] * 100, [100] * 100, [120] * 100, [120] * 100], [[170] * 100] * 4, "not met"),
    # One large sample of a round of 60 is its 99th percentile; two of four rounds are beyond theirs.
    ([[100] * 60] * 4, [[100] * 59 + [900], [100] * 60] * 2, "met")])
def test_tails_are_of_all_rounds(floor, row, verdict):
    assert reported(floor, row).verdict("row.p99") == verdict


def test_aims_that_nothing_was_measured_for(tmp_path):
    found = reported([[1] * 10], [[1] * 10])
    table = "\n".join(found.table())
    assert "1 of 2 aims met, 0 within noise, 1 not measured" in table
    assert table.splitlines()[-1].split() == ["absent", "≤", "8", "ns", "not", "measured"]
    found.write(tmp_path / "out", {"form": "smoke"})
    head = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert head == {"form": "smoke", "notes": [], "failures": [], "not_measured": ["absent"]}

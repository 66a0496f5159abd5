"""The benchmark runs and its output is well formed. No figure is looked at but for being one: this is no timed test."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from exporter_helpers import BUILD

RUN = pathlib.Path(__file__).resolve().parents[1] / "bench/run.py"
# Rows that a section has on any machine.
SECTIONS = {
    "writer": ("writer.hot.c.pass", "writer.hot.cxx.work_a", "writer.hot.python.work_b", "writer.paced.c.dbo.p99",
               "writer.brisk.c.pass.scrapes20.p99"),
    "reader": ("reader.ranks72.collect", "reader.experts8.render", "reader.drain", "reader.core_share", "reader.start",
               "memory.debug_slow_readers"),
    "server": ("server.aggregated.plain.x1.p50", "server.debug.gzip.x64.p99", "server.debug8.plain.x8.floor.cpu"),
    "peer": ("peer.python.work_a", "peer.multiprocess.debug.p50"),
    "instructions": ("instructions.record_pass", "instructions.drained_record", "instructions.rendered_double"),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_smoke(section, tmp_path):
    if os.environ.get("WIDEEP_SAN"):
        pytest.skip("measures what users run")
    if section == "instructions" and not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    output = tmp_path / "results.jsonl"
    done = subprocess.run([sys.executable, RUN, "--build", BUILD, "--form", "smoke",
                           "--only", section, "--output", output], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    head, *rows = map(json.loads, output.read_text().splitlines())
    assert head["form"] == "smoke" and head["cores"] >= 1 and head["commit"]
    found = {row["row"]: row for row in rows}
    assert len(found) == len(rows) and set(SECTIONS[section]) <= set(found)
    for row in rows:
        figures = [row["min"], row["median"], row["max"], *row["rounds"]]
        assert all(math.isfinite(x) for x in figures) and row["min"] <= row["median"] <= row["max"], row
        assert row["met"] in (True, False, None) and (row["aim"] or row["met"] is None), row
        assert row["row"] in done.stdout

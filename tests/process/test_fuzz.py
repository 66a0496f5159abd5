"""The fuzz targets of tests/fuzz, briefly: what once was wrong, or took an odd path, and a pass with a fixed seed.

`make fuzz` runs them for longer.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))
import run as fuzz_run  # noqa: E402
from faults import record_faults

pytestmark = pytest.mark.skipif(bool(os.environ.get("WIDEEP_SAN")),
                                reason="the fuzz targets are built with sanitizers of their own, once")

# Runs of libFuzzer that take a second or two each.
RUNS = {"segment": 100, "request": 2000, "accept": 5000, "options": 3000, "web_config": 2000}
HELPERS = {"fuzz", "page"}


def program(name):
    return pathlib.Path(os.environ["WIDEEP_BUILD"]) / "fuzz" / name


def run(command, **kwargs):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300, **kwargs)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text[-4000:]
    return text


def committed():
    return [pytest.param(path, id=f"{path.parent.name}-{path.name[:12]}")
            for path in sorted((FUZZ / "corpus").glob("*/*"))]


def test_every_target_is_here():
    assert {path.stem for path in FUZZ.glob("*.c")} - HELPERS == set(RUNS)
    assert {path.name for path in (FUZZ / "corpus").iterdir()} == set(RUNS)


@pytest.mark.parametrize("path", committed())
def test_committed_input(path):
    run([program(path.parent.name), *fuzz_run.LIMITS, path])


@pytest.mark.parametrize("name", sorted(RUNS))
def test_short_pass(name, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = fuzz_run.seed_directories(program(name), tmp_path / "seeds")
    text = run([program(name), *fuzz_run.arguments(name, f"-runs={RUNS[name]}", "-seed=1"), corpus, *seeds], cwd=tmp_path)
    executions, edges, _, _, wrong = fuzz_run.read_log(text)
    assert executions >= RUNS[name] and edges > 50 and not wrong, text[-4000:]
    record_faults(f"fuzzed input: {name}", executions)

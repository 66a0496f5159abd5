# SPDX-License-Identifier: Apache-2.0
"""Writers that are killed after each of their stores and of the calls by which they change files (tests/crash)."""

import concurrent.futures
import os
import re
import shutil
import subprocess

import pytest

from abi_helpers import OUTCOMES, PHASES, ROOT, Segment, program
from exporter_helpers import exporting, shared_directory
from faults import record_faults

HEADER = ROOT / "shm-abi" / "wideep_shm.h"
CRASH = program("tests/crash/crash")
MODELS = ("pairs", "fours")

# What the header may ask of the C library: calls that change nothing which another process can see, and those that
# tests/crash/point.h intercepts. A call that is missing here belongs into one of the two.
HARMLESS = set("""__errno_location __snprintf_chk __stack_chk_fail access clock_gettime closedir dirfd free fstat getenv
    getpid getrandom lstat madvise malloc memcpy memset nanosleep opendir pread read readdir realpath stat strchr strcmp
    strerror strlen strncmp strrchr strtol strtoull snprintf memcmp atoi memmove _GLOBAL_OFFSET_TABLE_""".split())
INTERCEPTED = {"open", "close", "fcntl", "fchmod", "posix_fallocate", "link", "rename", "unlink", "mmap", "munmap"}


def crash(*words, good=(0,)):
    done = subprocess.run([CRASH, *map(str, words)], capture_output=True, text=True)
    assert done.returncode in good, f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done


RUNS = crash("list").stdout.split() if os.path.exists(CRASH) else []


def test_there_are_runs():
    assert len(RUNS) > 50


def slow(run):
    """Those that add little: neither first nor late, or a takeover once more."""
    return [pytest.mark.slow] if run.endswith(".2") or run == "create_raced" else []


@pytest.mark.parametrize("run", [pytest.param(run, marks=slow(run)) for run in RUNS])
def test_killed_at_every_point(run):
    deaths = int(re.search(r"(\d+) deaths, 0 faults", crash("run", run).stdout)[1])
    assert deaths > 0
    record_faults("writer killed after a store", deaths)


def test_every_change_is_followed_by_a_point():
    done = crash("marks", good=(0, 2))
    if done.returncode == 2:
        pytest.skip("stores cannot be watched in this build or on this processor")
    assert int(re.match(r"(\d+) changes", done.stdout)[1]) > 1000


def points_of(run):
    return [line.split(" ", 1)[1] for line in crash("points", run).stdout.splitlines()]


def test_every_point_of_the_header_is_passed():
    names = re.findall(r'^ *WIDEEP_I_POINT\("([^"]+)", [^;]+\);$', HEADER.read_text(), re.M)
    assert len(names) == len(set(names)) == HEADER.read_text().count("WIDEEP_I_POINT(") - 1
    passed = set()
    for run in RUNS:
        if not run.endswith((".2", ".71")):
            passed |= set(points_of(run))
    # On other processors, and with ThreadSanitizer, an addition is a load and a store.
    assert set(names) - passed <= {"added"} and passed <= set(names)


def test_every_call_that_changes_files_is_intercepted(tmp_path):
    unit = tmp_path / "unit.o"
    subprocess.run(["gcc", "-O0", "-DWIDEEP_API=", "-c", "-x", "c", HEADER, "-o", unit], check=True)
    undefined = subprocess.run(["nm", "-u", unit], check=True, capture_output=True, text=True).stdout.split()[1::2]
    assert INTERCEPTED <= set(undefined) <= INTERCEPTED | HARMLESS


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
@pytest.mark.parametrize("compiler,language", [("gcc", "c"), ("clang", "c"), ("g++", "c++"), ("clang++", "c++")])
def test_points_cost_nothing(tmp_path, compiler, language, optimise):
    """The object is the same, byte by byte, without the lines of the points."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    text = HEADER.read_text()
    without, removed = re.subn(r"^ *WIDEEP_I_POINT\(.*\);\n", "", text, flags=re.M)
    assert removed > 20
    objects = []
    for part, content in ("with", text), ("without", without):
        (tmp_path / part).mkdir()
        (tmp_path / part / "unit.h").write_text(content)
        subprocess.run([compiler, optimise, "-D_GNU_SOURCE", "-DWIDEEP_API=", "-c", "-x", language, "unit.h", "-o", "unit.o"],
                       cwd=tmp_path / part, check=True)
        objects.append((tmp_path / part / "unit.o").read_bytes())
    assert objects[0] == objects[1]


# ---- the exporter beside dying writers ---------------------------------------------------------------------------


def totals_of(path):
    """The exporter's series that a segment's words alone decide, as (name, labels, value)."""
    segment = Segment(path)
    totals, engine = segment.totals(), str(segment.identity["engine"])
    labels = {"model_name": MODELS[0], "engine": engine}
    for phase in PHASES:
        for outcome in OUTCOMES:
            yield "wideep_dbo_passes_total", dict(labels, phase=phase, outcome=outcome), totals["dbo_passes"][phase][outcome]
    for i, index in enumerate(("first", "second", "third", "fourth")):
        if i > 1 and totals["ubatch_sum"][i] == 0 and not any(totals["ubatch_bucket"][i]):
            continue  # shown where the engine has them
        where = dict(labels, ubatch_index=index)
        yield "vllm:ubatch_token_count_sum", where, totals["ubatch_sum"][i]
        yield "vllm:ubatch_token_count_count", where, sum(totals["ubatch_bucket"][i])
        yield "vllm:ubatch_token_count_bucket", dict(where, le="+Inf"), sum(totals["ubatch_bucket"][i])
    for m, model in enumerate(MODELS):
        for mode in "sync", "async":
            yield ("wideep_eplb_rearrangements_by_mode_total", {"model_name": model, "engine": engine, "mode": mode},
                   sum(totals["models"][m]["rearrangement_bucket"][mode]))
        for layer, ranks in enumerate(segment.rank_tokens(m)):
            for rank, tokens in enumerate(ranks):
                yield ("wideep_eplb_rank_tokens_total",
                       {"model_name": model, "group": engine, "layer": str(layer), "ep_rank": str(rank)}, tokens)


def sample_of_deaths():
    """(run, point): of each run the first, a middle and the last point."""
    for run in RUNS:
        if not (run.endswith((".1", ".71")) or run == "create") or "front_end" in run:
            continue
        points = len(points_of(run))
        for point in sorted({1, (points + 1) // 2, points}):
            yield run, point


def differing(page, directory):
    return [(name, labels, value, page.of(name, **labels)) for path in sorted(directory.glob("wideep.*"))
            for name, labels, value in totals_of(path) if [found for _, found in page.of(name, **labels)] != [value]]


def test_exporter_beside_dying_writers():
    deaths = list(sample_of_deaths())
    with shared_directory() as directory, exporting(directory, "--shm.instance=crash") as exporter:
        # Each identity dies twice, at different points, so that the second takes over what the first left.
        engines = [n // 2 for n in range(len(deaths))]
        for turn in 0, 1:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda n: crash("die", *deaths[n], directory, engines[n]), range(turn, len(deaths), 2)))
            page = exporter.wait_page(lambda page: not differing(page, directory))
            assert sum(n for (state, _), n in page.segments().items() if state in ("dead", "closed")) == len(
                list(directory.glob("wideep.*")))
            assert not any(n for (state, _), n in page.segments().items() if state == "rejected")
            for cause in "torn", "invalid":
                assert all(n == 0 for _, n in page.of("wideep_records_lost_total", cause=cause))
            assert exporter.get("/-/healthy")[0].status == 200

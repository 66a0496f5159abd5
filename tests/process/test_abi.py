"""The shared-memory ABI with separate processes: layout, builds, other languages, takeover and liveness."""

import ctypes
import errno
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from abi_helpers import (BUILD, FRESH, PHASES, REPLACED, ROOT, TAKEOVER, U64, Config, ModelConfig, Pass, Refused, Segment,
                         Writer, alive, expert, library, load,
                         program, sum_of_loads)

HEADER = ROOT / "shm-abi" / "wideep_shm.h"
README = (ROOT / "shm-abi" / "README.md").read_text()
MANUAL = (ROOT / "deploy" / "man" / "wideep_shm.3").read_text()
GOLDEN = ROOT / "tests" / "abi" / "layout.golden"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
C_COMPILERS = ["gcc", "clang"]
CXX_COMPILERS = ["g++", "clang++"]


def have(compiler):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    return compiler


def run(*command, **kwargs):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **kwargs)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def is_alive_within(path, want, seconds=20):
    """A killed process drops its lock a moment before or after it is waited for; a living one never does."""
    end = time.monotonic() + seconds
    while alive(path) != want:
        assert time.monotonic() < end
        time.sleep(0.005)
    return True


# ---- layout -------------------------------------------------------------------------------------------------------


def golden():
    fields, sizes, constants = {}, {}, {}
    for line in GOLDEN.read_text().splitlines():
        words = line.split()
        if words[0] == "struct":
            sizes[words[1]] = int(words[3])
        elif words[0] == "field":
            fields[words[1]] = (int(words[3]), int(words[5]))
        elif words[0] == "constant":
            constants[words[1]] = words[2]
    return fields, sizes, constants


def test_layout_is_the_golden_one():
    assert run(program("tests/abi/layout")) == GOLDEN.read_text()


def test_readme_agrees_with_the_layout():
    fields, sizes, constants = golden()
    seen, seen_sizes = {}, {}
    for name, size, table in re.findall(r"<!-- struct (\w+) size (\d+) -->\n\n((?:\|.*\n)+)", README):
        seen_sizes[name] = int(size)
        end = 0
        for row in table.splitlines()[2:]:
            offset, length, field = (cell.strip() for cell in row.split("|")[1:4])
            seen[f"{name}.{field}"] = (int(offset), int(length))
            assert int(offset) == end, f"{name}.{field}: a gap in the table"
            end = int(offset) + int(length)
        assert end == int(size)
    assert seen == fields
    assert seen_sizes == sizes
    assert dict(re.findall(r"^\| (WIDEEP_\w+) \| (\w+) \|", README, re.M)) == constants


def test_readme_has_the_bounds_and_reasons_of_the_header():
    text = GOLDEN.read_text()
    bounds = [int(ns) / 1e9 for ns in re.findall(r"duration_bound_ns \d+ (\d+)", text)][:-1]
    listed = re.search(r"The bounds are\s+([^+]*?) and \+Inf for durations", README).group(1)
    assert [float(x) for x in listed.replace(" s", "").split(",")] == bounds
    reasons = set(re.findall(r"reason \d+ (\w+)", text)) - {"ok"}
    table = README[README.index("| reason | when |") :]
    assert set(re.findall(r"^\| (\w+) \| ", table[: table.index("\n\n")], re.M)) - {"reason"} == reasons


def test_every_error_of_the_header_is_explained():
    named = set(re.findall(r"case (E[A-Z]+):", HEADER.read_text()))
    assert named <= set(re.findall(r"-(E[A-Z]+)", README))
    assert named <= set(re.findall(r"^\.It Bq Er (E[A-Z]+)$", MANUAL, re.M))


def test_every_function_of_the_header_is_in_the_manual():
    public = set(re.findall(r"^WIDEEP_API [\w ]+[ *](wideep_(?!i_)\w+)\(", HEADER.read_text(), re.M))
    assert len(public) > 25
    assert public == set(re.findall(r"^\.Nm (wideep_\w+)", MANUAL, re.M))
    synopsis = MANUAL[MANUAL.index(".Sh SYNOPSIS"): MANUAL.index(".Sh DESCRIPTION")]
    assert public == set(re.findall(r"^\.Fn (wideep_\w+)", synopsis, re.M))


def readme_example(language):
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return text


@pytest.mark.parametrize("command", [["gcc", "-std=gnu11"], ["g++", "-xc++", "-std=gnu++20", "-Wno-missing-field-initializers"]])
def test_the_readmes_example_in_c(tmp_path, command):
    have(command[0])
    source = tmp_path / "example.c"
    # Its twenty seconds are for who looks at the page.
    source.write_text(readme_example("c").replace("usleep(20000)", "usleep(20)"))
    run(*command, "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{HEADER.parent}", source, "-o", tmp_path / "example")
    run(tmp_path / "example", env=dict(os.environ, WIDEEP_SHM_DIR=str(tmp_path)))
    totals = Segment(tmp_path / "wideep.default.e0.r0").totals()
    assert (totals["models"][0]["recorded_passes"], totals["generation_tokens"]) == (1000, 187000)


# ---- builds -------------------------------------------------------------------------------------------------------

ONE = '#include "wideep_shm.h"\n'
# Every public function is used, so that warnings in any of them show.
C_UNIT = ONE + """
int NAME(struct wideep_writer **w, const struct wideep_config *config, struct wideep_view *view, const int32_t *loads);
int NAME(struct wideep_writer **w, const struct wideep_config *config, struct wideep_view *view, const int32_t *loads)
{
    struct wideep_pass pass;
    struct wideep_eplb_record record;
    memset(&pass, 0, sizeof pass);
    if (wideep_create(w, config) != 0 || wideep_check(*w) != 0)
        return 1;
    int error = wideep_record_pass(*w, &pass, loads, loads);
    wideep_close(w);
    if (!error)
        error = wideep_open(view, "/nonexistent", NULL);
    if (!error)
        error = (int)wideep_eplb_read(view, 0, &record, NULL);
    return error;
}
"""


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
@pytest.mark.parametrize("compiler,standard", [(c, s) for c in C_COMPILERS for s in ("c11", "gnu11", "c17")]
                         + [(c, s) for c in CXX_COMPILERS for s in ("c++17", "gnu++17", "c++20")])
def test_header_compiles_without_a_warning(tmp_path, compiler, standard, optimise):
    have(compiler)
    source = tmp_path / ("unit.cc" if "+" in compiler else "unit.c")
    source.write_text(C_UNIT.replace("NAME", "unit"))
    run(compiler, f"-std={standard}", optimise, *WARNINGS, "-Wshadow", f"-I{HEADER.parent}", "-c", source, "-o",
        tmp_path / "unit.o")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the instructions of x86-64 alone")
@pytest.mark.parametrize("optimise", ["-O2", "-O3"])
@pytest.mark.parametrize("compiler", C_COMPILERS + CXX_COMPILERS)
def test_loads_are_added_up_by_vectors(tmp_path, compiler, optimise):
    have(compiler), have("objdump")
    source = tmp_path / ("unit.cc" if "+" in compiler else "unit.c")
    source.write_text(C_UNIT.replace("NAME", "unit"))
    run(compiler, optimise, f"-I{HEADER.parent}", "-c", source, "-o", tmp_path / "unit.o")
    text = run("objdump", "-d", "--no-show-raw-insn", tmp_path / "unit.o")
    code = [(int(at, 16), name, operands) for at, name, operands in
            re.findall(r"^ +([0-9a-f]+):\t(\w+) *([^\n]*)$", text, re.M)]
    # Innermost loops: jumps backwards over no other.
    loops = []
    for i, (at, name, operands) in enumerate(code):
        target = re.match(r"([0-9a-f]+) <", operands)
        if name[0] == "j" and target and int(target[1], 16) < at:
            body = [line for line in code[:i] if line[0] >= int(target[1], 16)]
            if not any(line[1][0] == "j" for line in body):
                loops.append([line[1] for line in body])
    assert any(sum(name in ("paddd", "vpaddd") for name in loop) >= 4 for loop in loops)
    # Each token count is stored by the instruction that adds to it.
    assert len(re.findall(r"\tadd +%r\w+,[-0x0-9a-f]*\(%r\w+,%r\w+,8\)$", text, re.M)) >= 4


@pytest.mark.parametrize("compiler", C_COMPILERS + CXX_COMPILERS)
def test_two_units_link(tmp_path, compiler):
    have(compiler)
    end = ".cc" if "+" in compiler else ".c"
    standard = "-std=c++17" if "+" in compiler else "-std=c11"
    for name in ("first", "second"):
        (tmp_path / (name + end)).write_text(C_UNIT.replace("NAME", name))
    (tmp_path / ("main" + end)).write_text(ONE + "int main(void) { return wideep_ubatch_bucket(1) != 0; }\n")
    run(compiler, standard, *WARNINGS, f"-I{HEADER.parent}", *(tmp_path / (n + end) for n in ("first", "second", "main")),
        "-o", tmp_path / "program")
    run(tmp_path / "program")


def test_c_and_cxx_units_link(tmp_path):
    have("gcc"), have("g++")
    (tmp_path / "c.c").write_text(C_UNIT.replace("NAME", "from_c"))
    (tmp_path / "cxx.cc").write_text(C_UNIT.replace("NAME", "from_cxx") + "int main() { return 0; }\n")
    run("gcc", "-std=c11", f"-I{HEADER.parent}", "-c", tmp_path / "c.c", "-o", tmp_path / "c.o")
    run("g++", "-std=c++17", f"-I{HEADER.parent}", tmp_path / "cxx.cc", tmp_path / "c.o", "-o", tmp_path / "program")
    run(tmp_path / "program")


@pytest.mark.parametrize("compiler", C_COMPILERS + CXX_COMPILERS)
def test_32_bit_builds_refuse_and_say_so(tmp_path, compiler):
    have(compiler)
    source = tmp_path / ("unit.cc" if "+" in compiler else "unit.c")
    source.write_text(ONE)
    result = subprocess.run([compiler, "-m32", "-fsyntax-only", f"-I{HEADER.parent}", str(source)], capture_output=True,
                            text=True, timeout=60)
    if "wideep_shm.h" not in result.stderr and result.returncode != 0:
        pytest.skip(f"{compiler} knows no -m32 on this machine: {result.stderr.splitlines()[0]}")
    assert result.returncode != 0
    assert "wideep_shm.h refuses 32-bit targets" in result.stderr


def test_late_inclusion_says_what_to_do(tmp_path):
    have("gcc")
    source = tmp_path / "unit.c"
    source.write_text("#include <stdio.h>\n" + ONE)
    result = subprocess.run(["gcc", "-std=c11", "-fsyntax-only", f"-I{HEADER.parent}", str(source)], capture_output=True,
                            text=True, timeout=60)
    assert result.returncode != 0
    assert "compile with -D_GNU_SOURCE" in result.stderr


def test_pkg_config(tmp_path):
    have("pkg-config"), have("gcc")
    prefix = tmp_path / "prefix"
    (prefix / "include").mkdir(parents=True)
    (prefix / "lib" / "pkgconfig").mkdir(parents=True)
    shutil.copy(HEADER, prefix / "include")
    text = (ROOT / "shm-abi" / "wideep_shm.pc.in").read_text()
    for name, value in (("PREFIX", prefix), ("INCLUDEDIR", "${prefix}/include"), ("LIBDIR", "${prefix}/lib"),
                        ("VERSION", "1.2.3")):
        text = text.replace(f"@{name}@", str(value))
    assert "@" not in text
    (prefix / "lib" / "pkgconfig" / "wideep_shm.pc").write_text(text)
    env = dict(os.environ, PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    assert run("pkg-config", "--modversion", "wideep_shm", env=env).strip() == "1.2.3"
    flags = run("pkg-config", "--cflags", "--libs", "wideep_shm", env=env).split()
    source = tmp_path / "unit.c"
    source.write_text(ONE + "int main(void) { return wideep_ubatch_bucket(1) != 0; }\n")
    run("gcc", source, "-o", tmp_path / "unit", *flags)
    run(tmp_path / "unit")


# ---- the same segment through every reader ------------------------------------------------------------------------

MODELS = ((b"target/\xff\"\n", 3, 5, 8), (b"draft", 1, 4, 4), (b"dense", 0, 0, 0))
EP, RANK = 4, 3


def write_everything(writer, directory):
    error, origin, lineage, instance_id = writer.create(
        directory, MODELS, instance="every.field", engine=7, rank=RANK, ep=EP, tp_rank=1, tp_size=2, dp_rank=3, dp_size=5,
        flags=1, group=0xDEADBEEFCAFEF00D, interval=3000)
    assert (error, origin) == (0, FRESH)
    ask = writer.ask
    assert ask("pass", 0, 0, 100, 0, 1, 60) == 0  # passes 0 … 59 of the target
    assert ask("begin", 0, 0) == 0
    assert ask("pass", 0, 60, 160, 0, 0) == 0  # no map, while a rearrangement is under way
    assert ask("end", 0) == 0
    assert ask("pass", 0, 61, 0, 12345, 1, 40) == 0  # so that the ring has gone round
    assert ask("begin", 1, 1) == 0
    assert ask("end", 1) == 0
    assert ask("begin", 1, 1) == 0
    assert ask("abort", 1) == 0
    assert ask("eplb", 1, 5, 1) == 0
    assert ask("eplb", 0, 200, 2) == 0
    assert ask("pass", 1, 6, 0xFFFFFFFF, 0, 1) == 0
    assert ask("skip", 1, 9) == 0
    for number in range(600):
        phase, outcome = number % 2, number % 6
        assert ask("dbo", number, phase, outcome, 2, number, 1, 7, 7) == 0
    assert ask("dbo", 600, 1, 0, 4, 1, 2, 70000, 0xFFFFFFFF) == 0
    assert ask("tokens", 11, 22) == 0
    assert ask("tokens", 2**40, 2**41) == 0
    assert ask("begin", 0, 1) == 0
    return lineage, instance_id


def expected_planes():
    ranks = [[[0] * EP for _ in range(layers)] for _, layers, _, _ in MODELS]
    experts = [[[0] * logical for _ in range(layers)] for _, layers, logical, _ in MODELS]
    for m, number, mapped in [(0, n, n != 60) for n in range(101)] + [(1, 6, True)]:
        _, layers, logical, physical = MODELS[m]
        for layer in range(layers):
            for p in range(physical):
                tokens = load(m, number, layer, p, RANK)
                ranks[m][layer][p // (physical // EP)] += tokens
                at = expert(number, layer, p, logical)
                if mapped and at >= 0:
                    experts[m][layer][at] += tokens
    return ranks, experts


def expected_partial(m, number, layer):
    _, layers, _, physical = MODELS[m]
    tokens = [0] * EP
    for p in range(physical):
        tokens[p // (physical // EP)] += load(m, number, layer, p, RANK)
    return {"pass": number, "model": m, "layer": layer, "rank_tokens": tokens, "avg": sum(tokens) / EP, "max": max(tokens),
            "balancedness": sum(tokens) / (EP * max(tokens)), "flags": 2 + 8 * (layer == 0) + 16 * (layer == layers - 1)}


@pytest.mark.parametrize("name", ["writer", "writer_cxx"])
def test_every_field_reads_back(tmp_path, name):
    realtime, boottime = time.clock_gettime_ns(time.CLOCK_REALTIME), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    path = tmp_path / "wideep.every.field.e7.r3"
    with Writer(name) as writer:
        lineage, instance_id = write_everything(writer, tmp_path)
        segment = Segment(path)
        end_boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert os.listdir(tmp_path) == [path.name]

        identity = dict(segment.identity)
        pid = writer.process.pid
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        assert realtime <= identity.pop("start_realtime_ns") <= time.clock_gettime_ns(time.CLOCK_REALTIME)
        assert boottime <= identity.pop("start_boottime_ns") <= end_boottime
        assert identity == {
            "magic": b"WIDEEPSM", "abi_major": 1, "abi_minor": 0, "endian": 0x01020304, "word_bits": 64,
            "total_size": os.stat(path).st_size, "identity_size": 1920, "section_count": 6, "section_size": 32,
            "model_count": 3, "model_size": 288, "role": 1, "engine": 7, "rank": RANK, "ep_size": EP, "tp_rank": 1,
            "tp_size": 2, "dp_rank": 3, "dp_size": 5, "flags": 1, "group": 0xDEADBEEFCAFEF00D, "instance_id": instance_id,
            "lineage": lineage,
            "boot_id": bytes.fromhex(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")),
            "pid_namespace": os.stat(f"/proc/{pid}/ns/pid").st_ino,
            "process_start_ticks": int(stat[stat.rindex(")") + 2 :].split()[19]), "pid": pid, "instance_length": 11,
            "instance": b"every.field".ljust(64, b"\0"), "reserved": bytes(24),
        }
        assert segment.models == [{"name": n, "layers": a, "logical": b, "physical": c, "ep_ranks": EP}
                                  for n, a, b, c in MODELS]
        assert sorted(segment.sections) == [1, 2, 3, 4, 5, 6]
        assert segment.sections[3]["stride"] == 128 and segment.sections[3]["batch"] == 3
        assert segment.sections[5]["stride"] == 8 * EP and segment.sections[5]["count"] == 4

        live = segment.live()
        models = live.pop("models")
        assert boottime < live.pop("dbo_time_ns") <= end_boottime
        assert live == {"activity": 60 + 1 + 1 + 1 + 40 + 4 + 2 + 1 + 1 + 601 + 2 + 1, "closed_ns": 0, "dbo_active": 2,
                        "dbo_passes": 601, "rearrangement_interval": 3000}
        for model in models[:2]:
            assert boottime < model.pop("pass_time_ns") <= end_boottime
            assert boottime < model.pop("recorded_time_ns") <= end_boottime
        assert boottime < models[0].pop("rebalancing_since_ns") <= end_boottime
        # Its last two are reduced, with no step of their own.
        assert models[0] == {"passes": 201, "rebalancing_mode": 1, "since_rearrangement": 1, "recording": 1}
        assert models[1] == {"passes": 10, "rebalancing_since_ns": 0, "rebalancing_mode": 1, "since_rearrangement": 3,
                             "recording": 2}
        assert set(models[2].values()) == {0}

        totals = segment.totals()
        passes = {phase: dict.fromkeys(totals["dbo_passes"]["prefill"], 0) for phase in PHASES}
        for number in range(600):
            passes[PHASES[number % 2]][list(passes["prefill"])[number % 6]] += 1
        passes["decode"]["engaged"] += 1
        assert totals["dbo_passes"] == passes
        engaged = [n for n in range(600) if n % 6 == 0]
        assert totals["ubatch_sum"] == [sum(engaged) + 1, len(engaged) + 2, 70000, 0xFFFFFFFF]
        for i, sizes in enumerate((engaged + [1], [1] * 100 + [2], [70000], [0xFFFFFFFF])):
            buckets = [0] * 15
            for size in sizes:
                buckets[next((b for b in range(14) if size <= 2**b), 14)] += 1
            assert totals["ubatch_bucket"][i] == buckets
        assert (totals["prompt_tokens"], totals["generation_tokens"]) == (11 + 2**40, 22 + 2**41)
        assert [model["recorded_passes"] for model in totals["models"]] == [101, 1, 0]
        assert [sum(model["rearrangement_bucket"]["sync"]) for model in totals["models"]] == [1, 0, 0]
        assert [sum(model["rearrangement_bucket"]["async"]) for model in totals["models"]] == [0, 1, 0]
        assert 0 < totals["models"][0]["rearrangement_sum_ns"] < end_boottime - boottime

        ranks, experts = expected_planes()
        for m in range(3):
            assert segment.rank_tokens(m) == ranks[m]
            assert segment.expert_tokens(m) == experts[m]

        written = [(0, n, layer) for n in range(101) for layer in range(3)]
        records = segment.eplb()
        assert segment.head(3) == len(written) + 1 + 2 + 1
        assert [r["n"] for r in records] == list(range(segment.head(3) - 64 * 4, segment.head(3)))
        assert all(boottime < r["time_ns"] <= end_boottime for r in records)
        for r in records:
            n = r.pop("n")
            del r["time_ns"]
            step, duration = r.pop("step"), r.pop("duration_ns")
            if n < len(written):
                want = expected_partial(*written[n])
                number = written[n][1]
                assert step == (100 if number < 60 else 160 if number == 60 else 0)
                assert duration == (12345 if number == 61 else 0)
                want["flags"] += 4 * (number == 60)
                assert r == want
            elif n == len(written) + 3:
                assert step == 0xFFFFFFFF
                assert r == expected_partial(1, 6, 0)
            else:
                i = n - len(written) - 1
                assert step == 0xFFFFFFFF
                flags = [1 + 8 + 16, 1 + 8, 1 + 16][i + 1]
                at = max(i, 0)
                assert r == {"pass": 5 if i < 0 else 200, "model": 1 if i < 0 else 0, "layer": 2 * at, "flags": flags,
                             "avg": 10 + 2 * at, "max": 20 + 4 * at, "balancedness": 0.5, "rank_tokens": [0] * EP}

        records = segment.dbo()
        assert segment.head(4) == 601
        assert [r["n"] for r in records] == list(range(601 - 511, 601))
        for r in records[:-1]:
            n = r["n"]
            outcome = list(passes["prefill"])[n % 6]
            assert r == {"n": n, "pass": n, "time_ns": r["time_ns"], "phase": PHASES[n % 2], "outcome": outcome,
                         "prefill_active": int(n % 6 == 0), "decode_active": 0,
                         "fallout_reason": outcome if n % 6 >= 3 else None, "ubatches": 2, "tokens": [n, 1, 0, 0]}
        assert records[-1]["decode_active"] == 1
        assert records[-1]["tokens"] == [1, 2, 70000, 0xFFFFFFFF]

        assert alive(path)
        assert writer.ask("close") == 0
        assert not alive(path)
        assert segment.live()["closed_ns"] >= end_boottime
        assert segment.live()["models"][0]["rebalancing_since_ns"] == 0


@pytest.mark.parametrize("name", ["writer", "writer_cxx"])
def test_the_c_reader_agrees_with_the_tables(tmp_path, name):
    path = tmp_path / "wideep.every.field.e7.r3"
    with Writer(name) as writer:
        lineage, instance_id = write_everything(writer, tmp_path)
        segment = Segment(path)
        lines = [line.split() for line in run(program("tests/abi/reader"), path).splitlines()]
        assert ["alive", "1"] in lines
    first = {words[0]: words[1:] for words in reversed(lines)}
    identity = segment.identity
    assert first["identity"] == ["every.field"] + [str(identity[key]) for key in (
        "role", "engine", "rank", "ep_size", "tp_rank", "tp_size", "dp_rank", "dp_size", "flags", "model_count", "group",
        "instance_id", "lineage")]
    eplb = [[str(r["n"]), str(r["pass"]), str(r["time_ns"]), str(r["model"]), str(r["layer"]), str(r["flags"]), str(r["step"]),
             r["avg"], r["max"], r["balancedness"], str(r["duration_ns"]), *map(str, r["rank_tokens"])]
            for r in segment.eplb()]
    assert [w[1:8] + [float(x) for x in w[8:11]] + w[11:] for w in lines if w[0] == "eplb"] == eplb
    dbo = [[r["n"], r["pass"], r["time_ns"], PHASES.index(r["phase"]), r["prefill_active"], r["decode_active"],
            list(segment.totals()["dbo_passes"]["prefill"]).index(r["outcome"]),
            list(segment.totals()["dbo_passes"]["prefill"]).index(r["fallout_reason"]) if r["fallout_reason"] else 0,
            r["ubatches"], *r["tokens"]] for r in segment.dbo()]
    assert [[int(x) for x in w[1:]] for w in lines if w[0] == "dbo"] == dbo
    for kind, planes in (("rank_tokens", segment.rank_tokens), ("expert_tokens", segment.expert_tokens)):
        want = [[m, layer, i, tokens] for m in range(3) for layer, row in enumerate(planes(m)) for i, tokens in enumerate(row)]
        assert sorted([int(x) for x in w[1:]] for w in lines if w[0] == kind) == want
    totals = [int(x) for x in first["totals"]]
    assert totals[:2] == [segment.totals()["prompt_tokens"], segment.totals()["generation_tokens"]]
    assert [w[6] for w in lines if w[0] == "model"] == [m[0].hex() for m in MODELS]


def test_a_front_end_segment(tmp_path):
    with Writer() as writer:
        assert writer.create(tmp_path, ((b"m", 0, 0, 0),), role=2, engine=1, rank=9)[0] == 0
        assert writer.ask("tokens", 5, 6) == 0
        segment = Segment(tmp_path / "wideep.default.e1.fe9")
        assert sorted(segment.sections) == [1, 2]
        assert (segment.identity["role"], segment.identity["rank"], segment.identity["ep_size"]) == (2, 9, 1)
        assert segment.totals()["prompt_tokens"] == 5


# ---- the shared library -------------------------------------------------------------------------------------------

def test_library_exports_every_public_function():
    public = set(re.findall(r"^WIDEEP_API [^\n;{]*?\b(wideep_(?!i_)\w+)\(", HEADER.read_text(), re.M))
    assert {"wideep_create", "wideep_record_pass", "wideep_open", "wideep_eplb_read", "wideep_check"} <= public
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", program("libwideep_shm.so")).splitlines()}
    assert exported == public


def test_library_from_python(tmp_path):
    lib = library()
    config = Config(directory=os.fsencode(tmp_path), instance=b"py", ep_size=2, rank=1, model_count=1)
    config.models[0] = ModelConfig(b"m", 2, 4, 4)
    writer = ctypes.c_void_p()
    assert lib.wideep_create(ctypes.byref(writer), ctypes.byref(config)) == 0
    again = ctypes.c_void_p()
    assert lib.wideep_create(ctypes.byref(again), ctypes.byref(config)) == -errno.EBUSY
    lib.wideep_error_text.restype = ctypes.c_char_p
    assert b"instance" in lib.wideep_error_text(-errno.EBUSY)
    loads = (ctypes.c_int32 * 8)(1, 2, 3, 4, 5, 6, 7, 8)
    experts = (ctypes.c_int32 * 8)(3, 2, 1, 0, 0, 1, 2, -1)
    assert lib.wideep_record_pass(writer, ctypes.byref(Pass(0, 0, 0xFFFFFFFF, 0)), loads, experts) == 0
    assert lib.wideep_record_tokens(writer, U64(2**33), U64(7)) == 0
    path = tmp_path / "wideep.py.e0.r1"
    # Opening it here and closing it again would drop the lock: that is what wideep_open() is for.
    report = run("/usr/bin/python3", "-c", """
import sys
from abi_helpers import Segment, alive
s = Segment(sys.argv[1])
print(s.rank_tokens(0), s.expert_tokens(0), s.totals()["prompt_tokens"], alive(sys.argv[1]))
""", path, cwd=pathlib.Path(__file__).parent)
    assert report.strip() == f"[[3, 7], [11, 15]] [[4, 3, 2, 1], [5, 6, 7, 0]] {2**33} True"
    lib.wideep_close(ctypes.byref(writer))
    assert writer.value is None
    assert not alive(path)


# ---- the record path ----------------------------------------------------------------------------------------------


def test_no_system_call_on_the_record_path(tmp_path):
    quiet = program("tests/abi/quiet")
    probe = subprocess.run([quiet, "probe"], capture_output=True, text=True, timeout=60)
    if probe.returncode != 0:
        pytest.skip(f"cannot be tried here: {probe.stdout.strip() or 'this clock needs a system call'}")
    result = subprocess.run([quiet, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n")
    segment = Segment(tmp_path / "wideep.default.e0.r0")
    assert segment.totals()["models"][0]["recorded_passes"] == 1000
    assert segment.totals()["prompt_tokens"] == sum(range(1000))


# ---- takeover -----------------------------------------------------------------------------------------------------


def test_killed_and_restarted_50_times(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    path = tmp_path / "wideep.default.e0.r1"
    models = ((b"m", 2, 3, 4),)
    prompt = generation = dbo = passes = 0
    lineage = None
    tokens = [[0, 0], [0, 0]]
    for life in range(51):
        with Writer(rng.choice(["writer", "writer_cxx"])) as writer:
            error, origin, found, _ = writer.create(tmp_path, models, ep=2, rank=1)
            assert (error, origin) == (0, TAKEOVER if life else FRESH)
            lineage = lineage or found
            assert found == lineage
            segment = Segment(path)
            totals = segment.totals()
            assert (totals["prompt_tokens"], totals["generation_tokens"]) == (prompt, generation)
            assert sum(sum(p.values()) for p in totals["dbo_passes"].values()) == dbo
            assert totals["models"][0]["recorded_passes"] == passes
            assert segment.rank_tokens(0) == tokens
            assert segment.head(3) == 0
            for _ in range(rng.randrange(8)):
                what = rng.randrange(3)
                if what == 0:
                    a, b = rng.randrange(2**40), rng.randrange(2**40)
                    assert writer.ask("tokens", a, b) == 0
                    prompt, generation = prompt + a, generation + b
                elif what == 1:
                    assert writer.ask("dbo", 1, rng.randrange(2), rng.randrange(6), 2, 5, 6) == 0
                    dbo += 1
                else:
                    number = rng.randrange(1000)
                    assert writer.ask("pass", 0, number, 0, 0, 1) == 0
                    passes += 1
                    for layer in range(2):
                        for p in range(4):
                            tokens[layer][p // 2] += load(0, number, layer, p, 1)
            if rng.randrange(4) == 0:
                assert writer.ask("close") == 0
    assert os.listdir(tmp_path) == [path.name]


def test_killed_in_the_middle_of_passes(tmp_path):
    """The planes then hold what recorded_passes says, and a part of one pass more at most."""
    path = tmp_path / "wideep.default.e0.r0"
    seen = 0
    for _ in range(10):
        with Writer() as writer:
            assert writer.create(tmp_path, ((b"m", 3, 4, 8),), ep=2, instance="default")[0] == 0
            segment = Segment(path)
            writer.say("pass", 0, 0, 0, 0, 0, 10**9)
            while segment.totals()["models"][0]["recorded_passes"] < 2000:
                time.sleep(0.001)
        passes = segment.totals()["models"][0]["recorded_passes"]
        seen += passes
        planes = segment.rank_tokens(0)
        for layer in range(3):
            for rank in range(2):
                low = sum(sum_of_loads(0, layer, p, 0, passes) for p in range(4 * rank, 4 * rank + 4))
                high = low + sum(load(0, passes, layer, p, 0) for p in range(4 * rank, 4 * rank + 4))
                assert planes[layer][rank] in (low, high)
        os.unlink(path)
    assert seen >= 20000


@pytest.mark.parametrize("content", ["empty", "garbage", "short", "newer major", "huge hole"])
def test_unreadable_file_is_replaced(tmp_path, content):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
        assert writer.ask("tokens", 9, 9) == 0
    data = bytearray(path.read_bytes())
    if content == "empty":
        data = b""
    elif content == "garbage":
        data = random.Random(1).randbytes(len(data))
    elif content == "short":
        data = data[:1000]
    elif content == "newer major":
        data[8] = 2
    path.write_bytes(data)
    if content == "huge hole":
        os.truncate(path, 2**31)
        with open(path, "r+b") as file:
            file.write(b"x")
    with Writer() as writer:
        assert writer.create(tmp_path)[:2] == (0, REPLACED)
        assert Segment(path).totals()["prompt_tokens"] == 0
    assert os.listdir(tmp_path) == [path.name]


def test_deleted_and_linked_again(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        _, _, lineage, instance_id = writer.create(tmp_path)
        assert writer.ask("tokens", 3, 4) == 0
        assert writer.ask("pass", 0, 0, 0, 0, 1, 5) == 0
        before = Segment(path)
        inode = os.stat(path).st_ino
        os.unlink(path)
        assert writer.ask("check") == 0
        after = Segment(path)
        assert os.stat(path).st_ino != inode and alive(path)
        assert (after.identity["lineage"], after.identity["instance_id"]) == (lineage, instance_id)
        assert after.identity == before.identity
        assert (after.totals(), after.eplb(), after.rank_tokens(0), after.expert_tokens(0)) == (
            before.totals(), before.eplb(), before.rank_tokens(0), before.expert_tokens(0))
        assert writer.ask("tokens", 1, 1) == 0
        assert after.totals()["prompt_tokens"] == 4
    with Writer() as writer:
        assert writer.create(tmp_path)[1:3] == (TAKEOVER, lineage)


def test_deleted_and_taken_by_another(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as first, Writer() as second:
        assert first.create(tmp_path)[0] == 0
        assert first.ask("tokens", 1, 1) == 0
        mapped = Segment(path)
        os.unlink(path)
        assert second.create(tmp_path)[:2] == (0, FRESH)
        assert first.ask("check") == -errno.ESTALE
        before = bytes(mapped.map)
        assert first.ask("tokens", 1, 1) == -errno.ESTALE
        assert first.ask("pass", 0, 1) == -errno.ESTALE
        assert bytes(mapped.map) == before
        assert first.ask("close") == 0
        assert alive(path)
        assert second.ask("check") == 0


def test_dead_foreigner_is_reclaimed(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as first:
        lineage = first.create(tmp_path)[2]
        assert first.ask("tokens", 5, 5) == 0
        os.unlink(path)
        with Writer() as second:
            assert second.create(tmp_path)[:2] == (0, FRESH)
        assert first.ask("check") == 0
        assert Segment(path).identity["lineage"] == lineage
        assert Segment(path).totals()["prompt_tokens"] == 5
        assert alive(path)


# ---- liveness -----------------------------------------------------------------------------------------------------


def test_forked_child_outlives_its_rank(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
        writer.say("fork")
        child, *results, gone = writer.hear()
        try:
            assert results == [-errno.ECHILD] * 9
            assert gone == 1  # wideep_close() took the pointer
            assert alive(path)
            assert Segment(path).live()["activity"] == 0
            writer.kill()
            os.kill(child, 0)
            assert is_alive_within(path, False)
            with Writer() as successor:
                assert successor.create(tmp_path)[1] == TAKEOVER
        finally:
            os.kill(child, signal.SIGKILL)


def test_reading_ones_own_segment_keeps_the_lock(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
        for _ in range(3):
            assert writer.ask("open", path) == 0
            assert alive(path)


def test_stopped_writer_is_alive(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer, Writer() as other:
        assert writer.create(tmp_path)[0] == 0
        writer.process.send_signal(signal.SIGSTOP)
        assert os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED | os.WNOWAIT) is not None
        assert alive(path)
        assert other.create(tmp_path) == (-errno.EBUSY,)
        writer.process.send_signal(signal.SIGCONT)
        writer.kill()
        assert is_alive_within(path, False)


def test_double_open_is_refused(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
        descriptors = writer.ask("descriptors")
        for _ in range(10):
            assert writer.create(tmp_path) == (-errno.EBUSY,)
            assert alive(path)
        assert writer.ask("descriptors") == descriptors
        assert writer.ask("tokens", 1, 1) == 0
        assert writer.ask("close") == 0
        assert not alive(path)
        assert writer.create(tmp_path)[:2] == (0, TAKEOVER)
        assert alive(path)


def test_exec_may_take_over(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        lineage = writer.create(tmp_path)[2]
        assert writer.ask("tokens", 8, 8) == 0
        writer.say("exec")
        assert writer.create(tmp_path)[:3] == (0, TAKEOVER, lineage)
        assert alive(path)
        assert Segment(path).totals()["prompt_tokens"] == 8


def test_mode_whatever_the_umask(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.ask("umask", 0o077) == 0
        assert writer.create(tmp_path)[0] == 0
        assert os.stat(path).st_mode & 0o7777 == 0o644
        os.unlink(path)
        assert writer.ask("check") == 0
        assert os.stat(path).st_mode & 0o7777 == 0o644


# ---- a full file system, other users ------------------------------------------------------------------------------


def needs_root(what):
    if os.geteuid() != 0:
        pytest.skip(f"{what} needs root")


@pytest.fixture
def small_tmpfs(tmp_path):
    needs_root("mounting a tmpfs")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(directory)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_full_tmpfs(small_tmpfs):
    path = small_tmpfs / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(small_tmpfs, ((b"m", 8, 64, 64),)) == (-errno.ENOSPC,)
        assert os.listdir(small_tmpfs) == []
        # A small one fits once; its successor does not fit beside it, and it keeps what it has.
        assert writer.create(small_tmpfs, ((b"m", 0, 0, 0),), role=2)[0] == 0
        frontend = small_tmpfs / "wideep.default.e0.fe0"
        assert writer.ask("tokens", 7, 7) == 0
        with open(small_tmpfs / "ballast", "wb") as file:
            file.write(bytes(os.statvfs(small_tmpfs).f_bavail * os.statvfs(small_tmpfs).f_bsize))
        with Writer() as other:
            assert other.create(small_tmpfs) == (-errno.ENOSPC,)
            assert not path.exists()
        # A deleted segment cannot be linked again yet; the writer goes on.
        held = Segment(frontend)
        os.unlink(frontend)
        assert writer.ask("check") == -errno.ENOSPC
        assert writer.ask("tokens", 1, 1) == 0
        assert held.totals()["prompt_tokens"] == 8
        assert sorted(os.listdir(small_tmpfs)) == ["ballast"]
        os.unlink(small_tmpfs / "ballast")
        assert writer.ask("check") == 0
        assert Segment(frontend).totals()["prompt_tokens"] == 8
    with open(small_tmpfs / "ballast", "wb") as file:
        del held
        file.write(bytes(os.statvfs(small_tmpfs).f_bavail * os.statvfs(small_tmpfs).f_bsize))
    with Writer() as writer:
        assert writer.create(small_tmpfs, ((b"m", 0, 0, 0),), role=2) == (-errno.ENOSPC,)
        assert sorted(os.listdir(small_tmpfs)) == ["ballast", frontend.name]
        os.unlink(small_tmpfs / "ballast")
        assert writer.create(small_tmpfs, ((b"m", 0, 0, 0),), role=2)[:2] == (0, TAKEOVER)
        assert Segment(frontend).totals()["prompt_tokens"] == 8


@pytest.fixture
def sticky(tmp_path_factory):
    """A directory like /dev/shm: everybody's, and sticky. Not below tmp_path, which is its owner's alone."""
    needs_root("being another user")
    directory = pathlib.Path(subprocess.run(["mktemp", "-d", "/tmp/wideep-sticky.XXXXXX"], check=True, capture_output=True,
                                            text=True).stdout.strip())
    os.chmod(directory, 0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o600])
def test_dead_segment_of_another_user(sticky, mode):
    path = sticky / "wideep.default.e0.r0"
    with Writer() as first:
        assert first.create(sticky)[0] == 0
        assert first.ask("tokens", 3, 3) == 0
        os.chmod(path, mode)
        with Writer() as other:
            assert other.ask("setuid", 65534) == 0
            # Unreadable, nothing can be known of it.
            assert other.create(sticky) == (-errno.EPERM if mode == 0o600 else -errno.EBUSY,)
    with Writer() as other:
        assert other.ask("setuid", 65534) == 0
        assert other.create(sticky) == (-errno.EPERM,)
    assert os.listdir(sticky) == [path.name]
    assert Segment(path).totals()["prompt_tokens"] == 3
    os.unlink(path)
    with Writer() as other:
        assert other.ask("setuid", 65534) == 0
        assert other.create(sticky)[:2] == (0, FRESH)
    # The super-user may.
    with Writer() as first:
        assert first.create(sticky)[:2] == (0, TAKEOVER)


def test_double_open_after_privileges_are_dropped(sticky):
    """The file is now another user's, and /proc/self/fd no longer readable: still nothing may drop the lock."""
    path = sticky / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(sticky)[0] == 0
        assert writer.ask("setuid", 65534) == 0
        assert writer.create(sticky) == (-errno.EBUSY,)
        assert alive(path)
        assert writer.ask("open", path) == 0
        assert alive(path)
        assert writer.ask("tokens", 1, 1) == 0
        assert writer.ask("check") == 0


def test_directory_without_permission(tmp_path_factory):
    needs_root("being another user")
    directory = pathlib.Path(subprocess.run(["mktemp", "-d", "/tmp/wideep-locked.XXXXXX"], check=True, capture_output=True,
                                            text=True).stdout.strip())
    os.chmod(directory, 0o755)
    try:
        with Writer() as writer:
            assert writer.ask("setuid", 65534) == 0
            assert writer.create(directory) == (-errno.EACCES,)
            assert writer.create(directory / "missing") == (-errno.ENOENT,)
    finally:
        shutil.rmtree(directory)


def test_refused_files(tmp_path):
    """The Python reader and the C reader refuse alike."""
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
    good = path.read_bytes()
    cases = {"empty": b"", "truncated": good[:-4096], "bad_magic": b"x" + good[1:], "bad_version": good[:8] + b"\2" + good[9:],
             "bad_endian": good[:16] + b"\1" + good[17:], "bad_word_size": good[:20] + b"\x20" + good[21:],
             "bad_size": good[:32] + b"\1" + good[33:]}
    for reason, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(Refused) as refused:
            Segment(path)
        assert str(refused.value) == reason
        result = subprocess.run([program("tests/abi/reader"), str(path)], capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (1, f"error {-errno.EBADMSG} {reason}\n")

# SPDX-License-Identifier: Apache-2.0
"""wideep-sim as a program: flags, books against segments, kills, seeds, scenarios.

The segments are read by their documented layout, so that simulator, ABI header and this reader are three opinions on
what was recorded.
"""
import contextlib
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from segment_reader import OUTCOMES, PHASES, REDUCED, ranks_of, segments

BUILD = pathlib.Path(os.environ.get("WIDEEP_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
SIM = BUILD / "wideep-sim"

UBATCH_LES = [f"{1 << i}.0" for i in range(14)] + ["+Inf"]
DURATION_LES = ["0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "+Inf"]
BALANCE_LES = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "1.0", "+Inf"]
DURATION = "vllm:eplb_rearrangement_duration_seconds"


# ---- keys -------------------------------------------------------------------------------------------------------


def escape(name):
    text = name.decode("utf-8", errors="replace")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def key(family, **labels):
    return family + "{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "}"


def cumulate(buckets):
    total = 0
    for value in buckets:
        total += value
        yield total


def expected_from_segments(directory, engines, replicated=False):
    """What FILE should hold but for the joined families, from the segments alone."""
    out = {}
    for s in segments(directory):
        name = escape(s.models[0][0])
        if s.role == 2 or (s.tp_rank == 0 and sum(s.tokens)):
            front = s.rank if s.role == 2 else "rank"
            out[key("wideep_prompt_tokens_total", engine=s.engine, frontend=front, model_name=name)] = s.tokens[0]
            out[key("wideep_generation_tokens_total", engine=s.engine, frontend=front, model_name=name)] = s.tokens[1]
        if s.role == 2:
            continue
        for m, (raw, layers, _, _) in enumerate(s.models):
            group = s.engine // engines * engines
            if not replicated or s.tp_rank == 0:
                for layer, row in enumerate(s.plane(5, m) if layers else []):
                    for to, tokens in enumerate(row):
                        k = key("wideep_eplb_rank_tokens_total", ep_rank=to, group=group, layer=layer,
                                model_name=escape(raw))
                        out[k] = out.get(k, 0) + tokens
            if s.tp_rank == 0 and layers:
                labels = {"engine": s.engine, "model_name": escape(raw)}
                _, total_ns, sync, asynchronous = s.model_totals(m)
                count = sum(sync) + sum(asynchronous)
                out[key("wideep_eplb_rearrangements_by_mode_total", mode="sync", **labels)] = sum(sync)
                out[key("wideep_eplb_rearrangements_by_mode_total", mode="async", **labels)] = sum(asynchronous)
                out[key("vllm:eplb_rearrangements_total", **labels)] = count
                out[key(DURATION + "_count", **labels)] = count
                out[key(DURATION + "_sum", **labels)] = total_ns / 1e9
                for le, value in zip(DURATION_LES, cumulate(a + b for a, b in zip(sync, asynchronous))):
                    out[key(DURATION + "_bucket", le=le, **labels)] = value
        if s.tp_rank == 0:
            dbo_from_segment(s, name, out)
    return out


def dbo_from_segment(s, name, out):
    labels = {"engine": s.engine, "model_name": name}
    dbo = s.dbo()
    for (phase, outcome), value in dbo.items():
        out[key("wideep_dbo_passes_total", phase=phase, outcome=outcome, **labels)] = value
    for reason in OUTCOMES[3:]:
        out[key("vllm:dbo_fallout_total", reason=reason, **labels)] = sum(dbo[p, reason] for p in PHASES)
    for index, (total, buckets) in zip(("first", "second", "third", "fourth"), s.ubatches()):
        if index in ("third", "fourth") and not sum(buckets):
            continue
        family = "vllm:ubatch_token_count"
        out[key(family + "_sum", ubatch_index=index, **labels)] = total
        out[key(family + "_count", ubatch_index=index, **labels)] = sum(buckets)
        for le, value in zip(UBATCH_LES, cumulate(buckets)):
            out[key(family + "_bucket", ubatch_index=index, le=le, **labels)] = value


def joined_from_records(directory, engines, replicated=False):
    """The joined families from the rings, of a run that they hold whole."""
    sums, reduced, layers_of, names, sizes = {}, {}, {}, {}, {}
    for s in ranks_of(directory):
        group = s.engine // engines * engines
        for m, model in enumerate(s.models):
            names[group, m], layers_of[group, m], sizes[group] = escape(model[0]), model[1], s.ep_size
        for r in s.records():
            at = (group, r["model"], r["pass"], r["layer"])
            if r["flags"] & REDUCED:
                if at not in reduced or s.rank < reduced[at][0]:
                    reduced[at] = (s.rank, r["avg"], r["max"])
            elif not replicated or s.tp_rank == 0:
                row = sums.setdefault(at, [0] * s.ep_size)
                for i, tokens in enumerate(r["tokens"]):
                    row[i] += tokens
    out = {}
    for (group, m), layers in layers_of.items():
        if not layers:
            continue
        label = {"group": group, "model_name": names[group, m]}
        size, ratios = sizes[group], {}
        for layer in range(layers):
            tokens = avg = top = passes = 0
            for at in sorted(set(k for k in [*sums, *reduced] if k[:2] == (group, m) and k[3] == layer)):
                passes += 1
                if at in reduced:
                    _, a, b = reduced[at]
                    avg, top = avg + a, top + b
                    ratio = a / b if b else None
                else:
                    row = sums[at]
                    tokens, top = tokens + sum(row), top + max(row)
                    ratio = sum(row) / (size * max(row)) if max(row) else None
                if ratio is not None:
                    ratios[at[2], layer] = ratio
            out[key("wideep_eplb_avg_tokens_total", layer=layer, **label)] = tokens / size + avg
            out[key("wideep_eplb_max_tokens_total", layer=layer, **label)] = top
            out[key("wideep_eplb_passes_total", layer=layer, **label)] = passes
        family, total = "wideep_eplb_pass_balancedness", 0.0
        for at in sorted(ratios):
            total += ratios[at]
        out[key(family + "_sum", **label)] = total
        out[key(family + "_count", **label)] = len(ratios)
        for le in BALANCE_LES:
            below = sum(1 for r in ratios.values() if r <= float(le))
            out[key(family + "_bucket", le=le, **label)] = below
    return out


def is_joined(name):
    return re.match(r"wideep_eplb_(avg_tokens_total|max_tokens_total|passes_total|pass_balancedness_)", name) is not None


def differences(got, want):
    return {k: (got.get(k), want.get(k)) for k in sorted({*got, *want}) if got.get(k) != want.get(k)}


# ---- running ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shm():
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = pathlib.Path(tempfile.mkdtemp(prefix="wideep-sim-test.", dir=base))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def run(*flags, timeout=60, env=None):
    return subprocess.run([SIM, *map(str, flags)], capture_output=True, timeout=timeout, env=env)


def simulate(shm, *flags, timeout=60):
    """Runs to the end and returns FILE."""
    expect = shm / "expect.json"
    done = run("--shm.dir", shm, "--expect", expect, *flags, timeout=timeout)
    assert done.returncode == 0, done.stderr
    assert re.search(rb"^done passes=\d+$", done.stdout, re.M), done.stdout
    return json.loads(expect.read_bytes())


class Process:
    """A simulator in the background, its lines read as they come."""

    def __init__(self, shm, *flags):
        self.expect = shm / "expect.json"
        self.process = subprocess.Popen(
            [SIM, "--shm.dir", shm, "--expect", self.expect, *map(str, flags)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0)
        self.pids, self.lines, self.rest = {}, [], b""

    def poll(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return
        self.rest += os.read(self.process.stdout.fileno(), 65536)
        *whole, self.rest = self.rest.split(b"\n")
        for line in whole:
            self.lines.append(line.decode())
            match = re.match(r"(rank|frontend) engine=(\d+) (?:rank|frontend)=(\d+) pid=(\d+)$", self.lines[-1])
            if match:
                self.pids[match[1], int(match[2]), int(match[3])] = int(match[4])

    def until(self, start, seconds=30):
        deadline = time.monotonic() + seconds
        while not any(line.startswith(start) for line in self.lines):
            assert time.monotonic() < deadline, (start, self.lines)
            self.poll(0.1)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def simulating(shm, *flags):
    process = Process(shm, *flags)
    try:
        yield process
    finally:
        process.stop()


def gone(pid, seconds=3):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


# ---- flags ------------------------------------------------------------------------------------------------------


def test_help_names_every_flag_and_scenario():
    done = run("--help")
    assert done.returncode == 0 and not done.stderr
    assert run("-h").stdout == done.stdout
    for word in ("--shm.dir --instance --model --groups --engines --ranks --frontends --layers --experts --redundant "
                 "--passes-per-second --seconds --passes --scenario --seed --expect --linger --restart --version "
                 "default steady hot stall async fallout idle sparse reduced reduced-all mixed death").split():
        assert word.encode() in done.stdout, word


def test_version():
    done = run("--version")
    assert done.returncode == 0 and re.fullmatch(rb"wideep-sim \S+ \(commit \S+\)\n", done.stdout)


@pytest.mark.parametrize("flags, words", [
    (["--enginez", "3"], ["--enginez", "--engines", "--help"]),
    (["--passes-per-secnd=3"], ["--passes-per-secnd", "--passes-per-second"]),
    (["--utterly-different"], ["--utterly-different", "--help"]),
    (["stray"], ["stray"]),
    (["--engines"], ["--engines", "value"]),
    (["--engines", "0"], ["--engines", "from 1"]),
    (["--engines", "two"], ["--engines", "two"]),
    (["--ranks", "-1"], ["--ranks", "-1"]),
    (["--restart=yes"], ["--restart"]),
    (["--seconds", "nan"], ["--seconds"]),
    (["--scenario", "chaos"], ["chaos", "default", "death"]),
    (["--instance", ".x"], ["--instance"]),
    (["--model", ""], ["--model"]),
    (["--model", "m" * 256], ["--model", "255"]),
    (["--model", "a", "--model", "a"], ["twice"]),
    (["--model=a", "--model=b", "--model=c", "--model=d", "--model=e"], ["--model", "4"]),
    (["--engines", "3", "--experts", "32"], ["divide", "--redundant 1"]),
    (["--model", "a", "--model", "d:1:7:0"], ["d", "divide", "1 redundant"]),
    (["--engines", "1024", "--ranks", "2"], ["1024"]),
])
def test_wrong_flags(flags, words):
    done = run(*flags)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"wideep-sim: ")
    for word in words:
        assert word.encode() in done.stderr, done.stderr


def test_missing_directory_is_a_runtime_failure(tmp_path):
    done = run("--shm.dir", tmp_path / "none")
    assert done.returncode == 1 and b"none" in done.stderr and done.stderr.count(b"\n") == 1


def test_unwritable_expectation_is_refused_at_once(shm):
    done = run("--shm.dir", shm, "--expect", shm / "none" / "file")
    assert done.returncode == 1 and b"--expect" in done.stderr and not list(shm.iterdir())


def test_second_simulator_on_the_same_names_is_refused(shm):
    with simulating(shm, "--seconds", 30) as first:
        first.until("started")
        done = run("--shm.dir", shm)
        assert done.returncode == 1 and b"WIDEEP_INSTANCE" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_directory_and_instance_from_the_environment(shm):
    env = dict(os.environ, WIDEEP_SHM_DIR=str(shm), WIDEEP_INSTANCE="blue")
    assert run("--passes", 2, env=env).returncode == 0
    names = {p.name for p in shm.iterdir()}
    assert names == {f"wideep.blue.e{e}.{what}" for e, what in ((0, "r0"), (1, "r1"), (0, "fe0"), (1, "fe0"))}


# ---- books ------------------------------------------------------------------------------------------------------

SHAPES = {
    "default": [],
    "ranks": ["--engines", 2, "--ranks", 2, "--frontends", 2, "--redundant", 4],
    "groups": ["--groups", 2, "--engines", 3, "--experts", 30, "--redundant", 3],
    "models": ["--model", "target", "--model", "draft", "--model", "dense:0:0:0", "--model", "a:b:2:16:2",
               "--engines", 2],
    "no front end": ["--frontends", 0, "--ranks", 2],
    "ubatches": ["--ubatches", 4],
    "replicated": ["--replicated", "--ranks", 2],
    "dense": ["--layers", 0],
    "odd size": ["--engines", 7, "--experts", 40, "--redundant", 2],
}
FAST = ["--passes-per-second", 200]


@pytest.mark.parametrize("shape", SHAPES)
def test_file_equals_segments(shm, shape):
    flags = SHAPES[shape]
    engines = int(flags[flags.index("--engines") + 1]) if "--engines" in flags else 2
    got = simulate(shm, *flags, *FAST, "--passes", 60)
    replicated = "--replicated" in flags
    want = expected_from_segments(shm, engines, replicated) | joined_from_records(shm, engines, replicated)
    assert not differences(got, want)


@pytest.mark.parametrize("scenario", ["steady", "hot", "fallout", "sparse", "reduced", "reduced-all", "mixed", "async"])
def test_scenario_file_equals_segments(shm, scenario):
    got = simulate(shm, "--scenario", scenario, "--engines", 3, "--experts", 30, *FAST, "--passes", 60)
    want = expected_from_segments(shm, 3) | joined_from_records(shm, 3)
    assert not differences(got, want)


def test_default_scenario_has_everything_within_500_passes(shm):
    got = simulate(shm, *FAST, "--passes", 500)
    assert not differences({k: v for k, v in got.items() if not is_joined(k)}, expected_from_segments(shm, 2))
    for engine in (0, 1):
        for mode in ("sync", "async"):
            assert got[key("wideep_eplb_rearrangements_by_mode_total", engine=engine, mode=mode, model_name="sim")] == 1
        for outcome in OUTCOMES:
            for phase in PHASES:
                assert got[key("wideep_dbo_passes_total", engine=engine, model_name="sim", outcome=outcome,
                               phase=phase)] > 0
        assert got[key("wideep_prompt_tokens_total", engine=engine, frontend=0, model_name="sim")] > 0
        assert got[key(DURATION + "_sum", engine=engine, model_name="sim")] < 0.4
    for layer in range(4):
        assert got[key("wideep_eplb_passes_total", group=0, layer=layer, model_name="sim")] == 500
        avg = got[key("wideep_eplb_avg_tokens_total", group=0, layer=layer, model_name="sim")]
        assert 0 < avg < got[key("wideep_eplb_max_tokens_total", group=0, layer=layer, model_name="sim")] < 2 * avg


def test_unpaced_run_stops_all_ranks_after_the_same_pass(shm):
    got = simulate(shm, "--passes-per-second", 0, "--seconds", 1, "--engines", 3, "--experts", 33)
    want = expected_from_segments(shm, 3)
    assert not differences({k: v for k, v in got.items() if not is_joined(k)}, want)
    done = {s.live_model(0)[0] for s in ranks_of(shm)}
    assert len(done) == 1
    assert got[key("wideep_eplb_passes_total", group=0, layer=0, model_name="sim")] == done.pop() > 100


def test_expert_tokens_are_rank_tokens_across_rearrangements(shm):
    simulate(shm, *FAST, "--passes", 450, "--redundant", 8, "--ranks", 2)
    for s in ranks_of(shm):
        assert [sum(row) for row in s.plane(5, 0)] == [sum(row) for row in s.plane(6, 0)]
        assert len(s.plane(6, 0)[0]) == 32 and all(all(row) for row in s.plane(6, 0))


def test_identities(shm):
    simulate(shm, "--groups", 2, "--engines", 2, "--ranks", 2, "--passes", 2, *FAST)
    found = {(s.engine, s.rank, s.ep_size, s.tp_rank, s.tp_size, s.dp_rank, s.dp_size) for s in ranks_of(shm)}
    assert found == {(2 * g + e, 2 * e + t, 4, t, 2, e, 2) for g in (0, 1) for e in (0, 1) for t in (0, 1)}
    groups = {s.engine: s.group for s in segments(shm)}
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert all(s.closed for s in segments(shm))


@pytest.mark.parametrize("name", [
    b'quote" back\\slash new\nline', b"tab\tand \x01", "größe/模型".encode(), b"bad \xff\xfe", b"cut \xe6\xa8",
    b"\xed\xa0\x80 surrogate", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe0\x80\x80x", b"\xf0\x9f\x98\x80",
    b"a,b{c}=%s%n", b"\xff" * 255, b"\\" * 255,
])
def test_model_names(shm, name):
    expect = shm / "expect.json"
    done = subprocess.run([SIM, "--shm.dir", shm, "--expect", expect, "--passes", "1", "--model", name],
                          capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    got = json.loads(expect.read_bytes().decode("utf-8", errors="strict"))
    assert all(s.models[0][0] == name for s in segments(shm))
    assert not differences(got, expected_from_segments(shm, 2) | joined_from_records(shm, 2))


def test_labels_are_sorted_and_keys_unique(shm):
    simulate(shm, "--passes", 3, *FAST)
    pairs = json.loads((shm / "expect.json").read_bytes(), object_pairs_hook=list)
    assert len({k for k, _ in pairs}) == len(pairs)
    for name, value in pairs:
        labels = re.findall(r'(\w+)="', name)
        assert labels == sorted(labels) and isinstance(value, (int, float)) and value >= 0


def test_same_seed_same_totals(shm):
    runs = []
    for seed in (7, 7, 8):
        runs.append(simulate(shm, "--seed", seed, *FAST, "--passes", 120, "--instance", f"i{len(runs)}"))
    same = lambda a, b: not {k for k in differences(a, b) if not k.startswith(DURATION)}
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_more_ranks_than_one_process_agree_on_dbo(shm):
    simulate(shm, *FAST, "--passes", 150, "--ranks", 2)
    assert len({tuple(s.dbo().values()) for s in ranks_of(shm)}) == 1


# ---- scenarios --------------------------------------------------------------------------------------------------


def balance(got):
    return [got[key("wideep_eplb_avg_tokens_total", group=0, layer=i, model_name="sim")] /
            got[key("wideep_eplb_max_tokens_total", group=0, layer=i, model_name="sim")] for i in range(4)]


def test_steady_is_balanced_and_hot_is_not(shm):
    size = ["--engines", 4, *FAST, "--passes", 100]
    assert all(r > 0.95 for r in balance(simulate(shm, "--scenario", "steady", "--instance", "s", *size)))
    assert all(r < 0.7 for r in balance(simulate(shm, "--scenario", "hot", "--instance", "h", *size)))


def test_sparse_records_a_third(shm):
    got = simulate(shm, "--scenario", "sparse", *FAST, "--passes", 120)
    assert got[key("wideep_eplb_passes_total", group=0, layer=0, model_name="sim")] == 40
    for s in ranks_of(shm):
        assert s.live_model(0)[0] == 120 and s.model_totals(0)[0] == 40


def test_stall_blocks_every_rank(shm):
    got = simulate(shm, "--scenario", "stall", *FAST, "--passes", 60)
    for engine in (0, 1):
        assert got[key(DURATION + "_bucket", engine=engine, le="1.0", model_name="sim")] == 0
        assert got[key(DURATION + "_bucket", engine=engine, le="2.5", model_name="sim")] == 1


def test_stall_shows_its_flag_first(shm):
    with simulating(shm, "--scenario", "stall", *FAST, "--passes", 100) as process:
        process.until("started")
        deadline = time.monotonic() + 60
        while not all(s.live_model(0)[2] for s in ranks_of(shm)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert all(s.live_model(0)[3] == 0 for s in ranks_of(shm))


def test_fallout_is_a_storm(shm):
    got = simulate(shm, "--scenario", "fallout", *FAST, "--passes", 200)
    assert got[key("vllm:dbo_fallout_total", engine=0, model_name="sim", reason="empty_second_ubatch")] > 120


def test_idle_pauses_with_everybody_alive(shm):
    started = time.monotonic()
    got = simulate(shm, "--scenario", "idle", *FAST, "--passes", 120)
    assert time.monotonic() - started > 3.6
    assert got[key("wideep_eplb_passes_total", group=0, layer=0, model_name="sim")] == 120


def test_ring_steps_follow_rearrangements(shm):
    simulate(shm, "--scenario", "async", *FAST, "--passes", 100)
    for s in ranks_of(shm):
        records = [r for r in s.records() if r["layer"] == 0]
        assert all(r["step"] == (r["pass"] if r["pass"] < 90 else r["pass"] - 90) for r in records)
        assert [r["pass"] for r in records if r["duration"]] == [90]


def test_death_is_one_rank(shm):
    expect = shm / "expect.json"
    done = run("--shm.dir", shm, "--expect", expect, "--scenario", "death", "--ranks", 2, *FAST, "--passes", 200)
    assert done.returncode == 0 and b"done passes=200" in done.stdout
    assert b"engine 1 rank 3" in done.stderr and b"signal 9" in done.stderr
    got, most = json.loads(expect.read_bytes()), json.loads((shm / "expect.json.intended").read_bytes())
    assert got.keys() == most.keys() and not any(map(is_joined, got))
    ran = {s.rank: s.live_model(0)[0] for s in ranks_of(shm)}
    assert ran[0] == ran[1] == ran[2] == 200 and 90 < ran[3] < 190
    assert not ranks_of(shm)[3].closed


# ---- life and death ---------------------------------------------------------------------------------------------


def test_segments_are_there_half_a_second_before_the_first_pass(shm):
    simulate(shm, *FAST, "--passes", 20, "--ranks", 2)
    found = segments(shm)
    made = max(s.word(136) for s in found)
    first = min(r["time"] for s in found for r in s.records())
    assert len(found) == 6 and first - made >= 500_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_and_leaves_a_file(shm, number):
    with simulating(shm, *FAST, "--seconds", 0) as process:
        process.until("started")
        time.sleep(1.2)
        process.process.send_signal(number)
        assert process.process.wait(20) == 0
        process.until("stopped passes=")
        assert all(gone(pid) for pid in process.pids.values())
        done = json.loads(process.expect.read_bytes())
        most = json.loads((shm / "expect.json.intended").read_bytes())
        check_between(done, expected_from_segments(shm, 2), most)


def test_killed_parent_takes_its_children_along(shm):
    with simulating(shm, *FAST, "--seconds", 0) as process:
        process.until("started")
        process.process.kill()
        process.process.wait()
        assert len(process.pids) == 4 and all(gone(pid) for pid in process.pids.values())


def test_linger_keeps_ranks_alive_after_the_file(shm):
    with simulating(shm, *FAST, "--passes", 20, "--linger", 30) as process:
        process.until("done passes=20")
        assert process.expect.exists()
        time.sleep(0.3)
        assert process.process.poll() is None and not any(gone(pid, 0.05) for pid in process.pids.values())
        assert not any(s.closed for s in segments(shm))
        process.process.terminate()
        assert process.process.wait(20) == 0
        assert all(gone(pid) for pid in process.pids.values())


def test_stale_files_of_a_run_before_are_removed(shm):
    for name in ("expect.json", "expect.json.intended"):
        (shm / name).write_text("old")
    with simulating(shm, *FAST, "--seconds", 5) as process:
        process.until("started")
        assert not process.expect.exists() and not (shm / "expect.json.intended").exists()


def check_between(done, real, most):
    assert done.keys() == most.keys()
    for name, low in done.items():
        if not is_joined(name):
            assert low <= real[name] <= most[name], (name, low, real[name], most[name])


def test_killed_rank_does_not_hold_the_others(shm):
    with simulating(shm, *FAST, "--passes", 600) as process:
        process.until("started")
        time.sleep(1)
        os.kill(process.pids["rank", 1, 1], signal.SIGKILL)
        process.until("done passes=600", 60)
        process.process.wait(20)
        done = json.loads(process.expect.read_bytes())
        most = json.loads((shm / "expect.json.intended").read_bytes())
        assert not any(map(is_joined, done))
        check_between(done, expected_from_segments(shm, 2), most)
        assert b"engine 1 rank 1" in process.process.stderr.read()


def test_killed_front_end_leaves_the_joined_families(shm):
    with simulating(shm, *FAST, "--passes", 400) as process:
        process.until("started")
        time.sleep(0.9)
        os.kill(process.pids["frontend", 0, 0], signal.SIGKILL)
        process.until("done passes=400", 60)
        process.process.wait(20)
        done = json.loads(process.expect.read_bytes())
        assert done[key("wideep_eplb_passes_total", group=0, layer=0, model_name="sim")] == 400
        check_between(done, expected_from_segments(shm, 2),
                      json.loads((shm / "expect.json.intended").read_bytes()))


def test_restarted_ranks_go_on_where_their_totals_were(shm):
    flags = ["--passes-per-second", 1000, "--seconds", 0, "--restart", "--ranks", 2, "--layers", 16]
    with simulating(shm, *flags) as process:
        process.until("started")
        time.sleep(0.7)
        lineages = {(s.role, s.engine, s.rank): s.lineage for s in segments(shm)}
        for i in range(50):
            who = [("rank", 1, 3), ("frontend", 0, 0), ("rank", 0, 0)][i % 3]
            before = process.pids[who]
            os.kill(before, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while process.pids[who] == before:
                assert time.monotonic() < deadline
                process.poll(0.1)
            time.sleep(0.01 * (i % 5))
        time.sleep(0.5)
        assert {(s.role, s.engine, s.rank): s.lineage for s in segments(shm)} == lineages
        process.process.terminate()
        assert process.process.wait(20) == 0
        done = json.loads(process.expect.read_bytes())
        most = json.loads((shm / "expect.json.intended").read_bytes())
        check_between(done, expected_from_segments(shm, 2), most)
        for s in ranks_of(shm):
            passes = [r["pass"] for r in s.records() if r["layer"] == 0]
            assert passes == sorted(set(passes))


def test_pace_is_kept(shm):
    with simulating(shm, "--passes-per-second", 100, "--seconds", 2) as process:
        process.until("started")
        began = time.monotonic()
        process.until("done passes=")
        assert 2.3 < time.monotonic() - began
    # A stall moves all that follows, so the pass numbers are a matter of flags alone.
    assert int(process.lines[-1].split("=")[1]) in range(175, 200)

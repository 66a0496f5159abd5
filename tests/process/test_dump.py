"""wideep-dump: what it shows, that it agrees with the tables of shm-abi/README.md, and what it does with bad files."""

import json
import os
import random
import re
import shutil
import subprocess
import threading
import time

import pytest

from abi_helpers import DURATION_BOUNDS, PHASES, UBATCH_BOUNDS, Segment, Writer, program
from exporter_helpers import exporting

UBATCHES = ("first", "second", "third", "fourth")


def dump(*arguments, code=0, env=None, text=True):
    result = subprocess.run([program("wideep-dump"), *map(str, arguments)], capture_output=True, text=text, timeout=120,
                            env=env)
    assert result.returncode == code, f"{result.returncode}: {result.stdout}{result.stderr}"
    return result


def dump_json(*arguments, code=0):
    result = dump("--json", *arguments, code=code)
    if shutil.which("jq"):
        subprocess.run(["jq", "-e", "."], input=result.stdout, text=True, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(result.stdout, parse_constant=no_constant), result.stderr


def fill(writer, directory, **fields):
    assert writer.create(directory, ((b"target", 3, 5, 8), (b"draft", 1, 4, 4)), ep=4, group=0xFEDCBA9876543210, interval=500,
                         **fields)[0] == 0
    assert writer.ask("pass", 0, 0, 7, 0, 1, 20) == 0
    assert writer.ask("begin", 0, 0) == 0
    assert writer.ask("end", 0) == 0
    assert writer.ask("pass", 0, 20, 0, 999, 1) == 0
    assert writer.ask("eplb", 1, 4, 1) == 0
    for number in range(30):
        assert writer.ask("dbo", number, number % 2, number % 6, 2, 10 * number, 3) == 0
    assert writer.ask("tokens", 2**60, 5) == 0
    assert writer.ask("begin", 1, 1) == 0


def histogram(buckets, bounds):
    cumulative, total = {}, 0
    for bound, count in zip([*map(float, bounds), None], buckets):
        total += count
        cumulative["+Inf" if bound is None else f"{bound:g}"] = total
    return cumulative


def test_json_agrees_with_the_tables(tmp_path):
    with Writer() as writer:
        fill(writer, tmp_path)
        document, errors = dump_json("--shm.dir", tmp_path)
        segment = Segment(tmp_path / "wideep.default.e0.r0")
    assert errors == ""
    assert document["directory"] == str(tmp_path)
    (shown,) = document["segments"]
    assert (shown["file"], shown["state"], shown["name_matches"]) == (str(tmp_path / "wideep.default.e0.r0"), "alive", True)
    identity = segment.identity
    for key in ("abi_major", "abi_minor", "total_size", "engine", "rank", "ep_size", "tp_rank", "tp_size", "dp_rank", "dp_size",
                "start_realtime_ns", "start_boottime_ns", "pid", "pid_namespace", "process_start_ticks"):
        assert shown["identity"][key] == identity[key]
    for key in ("group", "instance_id", "lineage"):
        assert int(shown["identity"][key], 16) == identity[key]
    assert bytes.fromhex(shown["identity"]["boot_id"]) == identity["boot_id"]
    assert (shown["identity"]["role"], shown["identity"]["this_boot"], shown["identity"]["loads_replicated"]) == (
        "rank", True, False)
    live, totals = segment.live(), segment.totals()
    assert shown["live"] == {"activity": live["activity"], "closed_ns": 0, "dbo_prefill_active": False,
                             "dbo_decode_active": False, "dbo_pass": 29, "dbo_time_ns": live["dbo_time_ns"],
                             "rearrangement_interval": 500}
    assert shown["totals"]["prompt_tokens"] == 2**60
    assert shown["totals"]["dbo_passes"] == totals["dbo_passes"]
    for reason in ("empty_second_ubatch", "coordination_failure", "other"):
        assert shown["totals"]["dbo_fallouts"][reason] == sum(totals["dbo_passes"][phase][reason] for phase in PHASES)
    assert len(shown["totals"]["dbo_fallouts"]) == 3
    assert shown["totals"]["ubatch_token_sum"] == totals["ubatch_sum"]
    for i, name in enumerate(UBATCHES):
        assert shown["totals"]["ubatch_tokens"][name] == histogram(totals["ubatch_bucket"][i], UBATCH_BOUNDS)
    for m, model in enumerate(shown["models"]):
        want = totals["models"][m]
        assert model["totals"]["recorded_passes"] == want["recorded_passes"]
        assert model["totals"]["rank_tokens"] == sum(map(sum, segment.rank_tokens(m)))
        assert model["totals"]["expert_tokens"] == sum(map(sum, segment.expert_tokens(m)))
        assert model["totals"]["rearrangement_sum_ns"] == want["rearrangement_sum_ns"]
        for mode in ("sync", "async"):
            assert model["totals"]["rearrangements"][mode] == sum(want["rearrangement_bucket"][mode])
            assert model["totals"]["rearrangement_seconds"][mode] == histogram(want["rearrangement_bucket"][mode],
                                                                               DURATION_BOUNDS)
        assert model["live"]["pass"] == live["models"][m]["passes"] - 1
        assert model["live"]["rebalancing_since_ns"] == live["models"][m]["rebalancing_since_ns"]
        assert model["live"]["recording"] == "yes"
    assert [model["name"] for model in shown["models"]] == ["target", "draft"]
    assert shown["models"][1]["live"]["rebalancing_mode"] == "async"
    eplb = segment.eplb()
    assert (shown["eplb_ring"]["written"], len(shown["eplb_ring"]["records"])) == (64, 10)
    for record, want in zip(shown["eplb_ring"]["records"], eplb[-10:]):
        assert record == {
            "record": want["n"], "pass": want["pass"], "time_ns": want["time_ns"], "model": want["model"],
            "layer": want["layer"], "reduced": bool(want["flags"] & 1), "partial": bool(want["flags"] & 2),
            "rebalancing": bool(want["flags"] & 4), "first": bool(want["flags"] & 8), "last": bool(want["flags"] & 16),
            "step": None if want["step"] == 0xFFFFFFFF else want["step"], "avg_tokens_per_rank": want["avg"],
            "max_tokens_per_rank": want["max"], "balancedness": want["balancedness"],
            "rearrangement_duration_ns": want["duration_ns"], "rank_tokens": want["rank_tokens"]}
    for record, want in zip(shown["dbo_ring"]["records"], segment.dbo()[-10:]):
        assert record == {
            "record": want["n"], "pass": want["pass"], "time_ns": want["time_ns"], "phase": want["phase"],
            "prefill_active": bool(want["prefill_active"]), "decode_active": bool(want["decode_active"]),
            "outcome": want["outcome"], "fallout_reason": want["fallout_reason"],
            "ubatch_tokens": want["tokens"][: want["ubatches"]]}


def test_text_for_humans(tmp_path):
    with Writer() as writer, Writer() as closed:
        fill(writer, tmp_path)
        assert closed.create(tmp_path, ((b"target", 0, 0, 0),), role=2, engine=3)[0] == 0
        assert closed.ask("close") == 0
        out = dump("--shm.dir", tmp_path).stdout
        assert "wideep.default.e0.r0: alive" in out
        assert "wideep.default.e3.fe0: closed" in out
        assert '"target": 3 MoE layers, 5 logical and 8 physical experts per layer' in out
        assert "group fedcba9876543210" in out
        assert f"{2**60} prompt, 5 generation" in out
        assert "REARRANGING (async)" in out
        assert "21 recorded passes" in out
        assert "1 sync rearrangements;  <=0.05s: 1" in out
        assert "64 ever written" in out and "30 ever written" in out
        assert len(re.findall(r"^ +\d+ +\d+ +[01] +[012] ", out, re.M)) == 10
    assert "wideep.default.e0.r0: dead" in dump("--shm.dir", tmp_path).stdout


def test_records_option(tmp_path):
    with Writer() as writer:
        fill(writer, tmp_path)
        for count, eplb, dbo in ((0, 0, 0), (3, 3, 3), (50, 50, 30), (1000000, 64, 30)):
            document, _ = dump_json("--shm.dir", tmp_path, f"--records={count}")
            ring = document["segments"][0]
            assert (len(ring["eplb_ring"]["records"]), len(ring["dbo_ring"]["records"])) == (eplb, dbo)
        assert "newest records" not in dump("--shm.dir", tmp_path, "--records", 0).stdout


def test_which_segments(tmp_path):
    with Writer() as a, Writer() as b, Writer() as c:
        for writer, instance, engine in ((a, "one", 10), (b, "one", 9), (c, "two.x", 0)):
            assert writer.create(tmp_path, instance=instance, engine=engine)[0] == 0
        (tmp_path / "other").write_text("not ours")
        (tmp_path / ".wideep.one.e0.r0.0123456789abcdef").write_text("being built")
        (tmp_path / "wideep.two.x.e5.r0").write_text("bad")

        def engines(*arguments, code=0):
            return [(s["identity"]["instance"], s["identity"]["engine"]) for s in dump_json(*arguments, code=code)[0]["segments"]
                    if "identity" in s]

        # In the order of their numbers.
        assert engines("--shm.dir", tmp_path, code=1) == [("one", 9), ("one", 10), ("two.x", 0)]
        assert engines("--shm.dir", tmp_path, "--instance", "one") == [("one", 9), ("one", 10)]
        assert engines("--shm.dir", tmp_path, "--instance=two.x", code=1) == [("two.x", 0)]
        assert engines("--shm.dir", tmp_path, "--instance", "*", code=1) == [("one", 9), ("one", 10), ("two.x", 0)]
        assert engines("--shm.dir", tmp_path, "--instance", "three") == []
        assert engines(tmp_path / "wideep.one.e9.r0") == [("one", 9)]
        env = dict(os.environ, WIDEEP_SHM_DIR=str(tmp_path))
        assert "wideep.one.e9.r0: alive" in dump("--instance", "one", env=env).stdout


def test_empty_and_missing_directories(tmp_path):
    assert dump("--shm.dir", tmp_path).stdout == f"no segments in {tmp_path}\n"
    assert dump_json("--shm.dir", tmp_path)[0]["segments"] == []
    result = dump("--shm.dir", tmp_path / "missing", code=1)
    assert (result.stdout, result.stderr) == ("", f"wideep-dump: {tmp_path}/missing: No such file or directory\n")
    document, errors = dump_json("--shm.dir", tmp_path / "missing", code=1)
    assert document["segments"] == [] and "No such file" in errors and "No such file" in document["error"]


def test_bad_files_beside_good_ones(tmp_path):
    with Writer() as writer:
        assert writer.create(tmp_path, engine=5)[0] == 0
        good = (tmp_path / "wideep.default.e5.r0").read_bytes()
        bad = {"e0": (b"", "empty"), "e1": (b"short", "truncated"), "e2": (os.urandom(9000), "bad_magic"),
               "e3": (good[:8] + b"\7" + good[9:], "bad_version"), "e4": (good[:-1], "truncated")}
        for name, (data, _) in bad.items():
            (tmp_path / f"wideep.default.{name}.r0").write_bytes(data)
        (tmp_path / "wideep.default.e6.r0").mkdir()
        (tmp_path / "wideep.default.e7.r0").symlink_to("/etc/passwd")
        os.mkfifo(tmp_path / "wideep.default.e8.r0")
        (tmp_path / "wideep.default.e9.r0").write_bytes(good)
        with open(tmp_path / "wideep.default.e10.r0", "wb") as file:
            file.truncate(2**40)
        reasons = [reason for _, reason in bad.values()] + [None] + ["not_regular"] * 3 + [None, "bad_size"]
        document, errors = dump_json("--shm.dir", tmp_path, code=1)
        assert [segment.get("error") for segment in document["segments"]] == reasons
        assert errors.splitlines() == [f"wideep-dump: {tmp_path}/wideep.default.e{i}.r0: {reason}"
                                       for i, reason in enumerate(reasons) if reason]
        assert [s["name_matches"] for s in document["segments"] if "state" in s] == [True, False]
        text = dump("--shm.dir", tmp_path, code=1)
        assert text.stderr == errors
        assert "wideep.default.e5.r0: alive" in text.stdout
        assert "wideep.default.e9.r0: dead\n  NOTE: the file's name is not" in text.stdout
        # A named file is shown under any name, and through a link.
        (tmp_path / "link").symlink_to(tmp_path / "wideep.default.e5.r0")
        assert "link: alive" in dump(tmp_path / "link").stdout
        assert dump(tmp_path / "nothing", tmp_path / "link", code=1).stderr.endswith("/nothing: No such file or directory\n")


def test_bad_files_have_the_exporters_reasons(tmp_path):
    """A name that is no segment's comes first, and a link is one wherever it leads."""
    (tmp_path / "wideep.hello").write_bytes(b"hello")
    (tmp_path / "wideep.x.e0.r").mkdir()
    (tmp_path / "wideep.a.b.e0.r0").symlink_to("nowhere")
    document, _ = dump_json("--shm.dir", tmp_path, code=1)
    shown = {os.path.basename(segment["file"]): segment["error"] for segment in document["segments"]}
    assert shown == {"wideep.hello": "bad_name", "wideep.x.e0.r": "bad_name", "wideep.a.b.e0.r0": "not_regular"}
    assert document["error"] is None
    with exporting(tmp_path) as exporter:
        reasons = {l["reason"]: v for l, v in exporter.scrape().of("wideep_segments", state="rejected") if v}
    assert reasons == {"bad_name": 2}
    with exporting(tmp_path, "--shm.instance=a.b") as exporter:
        reasons = {l["reason"]: v for l, v in exporter.scrape().of("wideep_segments", state="rejected") if v}
    assert reasons == {"bad_name": 2, "not_regular": 1}
    assert dump("--shm.dir", tmp_path, "--instance", "a.b", code=1).stderr.endswith("e0.r0: not_regular\n")
    assert dump("--shm.dir", tmp_path, "--instance", "b").stdout == f"no segments of instance b in {tmp_path}\n"


NAMES = [b"plain", b'quote " backslash \\ slash /', b"new\nline\ttab\rreturn", b"\x1b]0;owned\x07\x1b[31mred", b"\x7f\x01",
         b"\xff\xfe\xc3\x28", b"\xe2\x82", b"\xed\xa0\x80\xf4\x90\x80\x80", "ümlaut 漢字 🙂".encode(), b"\xc2\x9b31m",
         "\u202eevil\u2066\u200f".encode(), b"\xf0\x9f\x99" * 60, b"\x80" * 255, ("é" * 127).encode() + b"x",
         b"x" + ("é" * 127).encode(), ("漢" * 85).encode(), b"xy" + ("🙂" * 63).encode()]


@pytest.mark.parametrize("name", NAMES)
def test_model_names_of_any_bytes(tmp_path, name):
    with Writer() as writer:
        assert writer.create(tmp_path, ((name, 1, 2, 2),))[0] == 0
        document, _ = dump_json("--shm.dir", tmp_path)
        assert document["segments"][0]["models"][0]["name"] == name.decode("utf-8", "replace")
        for arguments in ((), ("--json",)):
            out = dump("--shm.dir", tmp_path, *arguments, text=False).stdout
            decoded = out.decode("utf-8")  # valid, whatever went in
            for character in decoded:
                assert character == "\n" or (ord(character) >= 0x20 and not 0x7F <= ord(character) < 0xA0)
            if not arguments:
                assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", decoded)
        # What was escaped for the terminal can be told apart from text that looks like it.
        if name == b"plain":
            assert '"plain"' in decoded


def test_names_of_random_bytes(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    alphabet = [b"\xf0", b"\x9f", b"\x80", b"\xc2", b"\xe2", b"\xed", b"\xa0", b"\xf4", b"\x90", b"a", b'"', b"\\", b"\x1b"]
    names = {b"".join(rng.choices(alphabet, k=rng.randrange(1, 256))) for _ in range(60)}
    for i, name in enumerate(names):
        with Writer() as writer:
            assert writer.create(tmp_path, ((name, 0, 0, 0),), engine=i)[0] == 0
    document, _ = dump_json("--shm.dir", tmp_path)
    shown = {s["identity"]["engine"]: s["models"][0]["name"] for s in document["segments"]}
    assert shown == {i: name.decode("utf-8", "replace") for i, name in enumerate(names)}


def test_hostile_file_names(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"wideep.\x1b[2J\xff.e0.r0")
    with open(path, "wb") as file:
        file.write(b"x")
    result = dump("--shm.dir", tmp_path, code=1)
    assert result.stderr == f"wideep-dump: {tmp_path}/wideep.\\x1b[2J\\xff.e0.r0: bad_name\n"
    document, errors = dump_json("--shm.dir", tmp_path, code=1)
    assert document["segments"][0]["file"] == path.decode("utf-8", "replace")
    assert "\x1b" not in errors


def test_random_contents_never_hurt(tmp_path):
    """Bytes of a good segment changed at random: always one valid document, and no death by a signal."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    with Writer() as writer:
        fill(writer, tmp_path)
    path = tmp_path / "wideep.default.e0.r0"
    good = path.read_bytes()
    shown = 0
    for round_ in range(60):
        data = bytearray(good)
        area = (2048, 12288, len(data))[round_ % 3]
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(0 if round_ % 2 else 4096, max(area, 4097))] = rng.randrange(256)
        path.write_bytes(data)
        for arguments in (["--json"], []):
            result = subprocess.run([program("wideep-dump"), "--shm.dir", str(tmp_path), *arguments], capture_output=True,
                                    timeout=60)
            assert result.returncode in (0, 1)
            assert all(line.startswith(b"wideep-dump: ") for line in result.stderr.splitlines()), result.stderr
            if arguments:
                document = json.loads(result.stdout.decode("utf-8"))
                shown += "state" in document["segments"][0]
            else:
                result.stdout.decode("utf-8")
    assert shown >= 20


def test_while_the_writer_writes_and_the_file_shrinks(tmp_path):
    path = tmp_path / "wideep.default.e0.r0"
    with Writer() as writer:
        assert writer.create(tmp_path, ((b"m", 4, 16, 16),), ep=8)[0] == 0
        writer.say("pass", 0, 0, 0, 0, 0, 10**9)
        segment = Segment(path)
        while segment.head(3) < 1000:
            time.sleep(0.001)
        whole = 0
        for _ in range(30):
            document, _ = dump_json("--shm.dir", tmp_path, "--records", 200)
            for record in document["segments"][0]["eplb_ring"]["records"]:
                if "lost" in record:
                    continue
                whole += 1
                # The relation of the words holds, so no record is put together from two.
                assert (record["pass"], record["layer"]) == divmod(record["record"], 4)
                tokens = [0] * 8
                for p in range(16):
                    tokens[p // 2] += (31 * record["pass"] + 7 * record["layer"] + 13 * p) % 97
                assert record["rank_tokens"] == tokens
                assert record["max_tokens_per_rank"] == max(tokens)
    # Truncated and grown again as fast as can be, while it is read over and over.
    copy = tmp_path / "copy"
    data = path.read_bytes()
    copy.write_bytes(data)
    stop = threading.Event()

    def shrink():
        while not stop.is_set():
            os.truncate(copy, 5000)
            with open(copy, "r+b") as file:
                file.write(data)

    thread = threading.Thread(target=shrink)
    thread.start()
    try:
        for _ in range(60):
            result = subprocess.run([program("wideep-dump"), "--json", str(copy)], capture_output=True, text=True, timeout=60)
            assert result.returncode in (0, 1)
            json.loads(result.stdout)
    finally:
        stop.set()
        thread.join()


def test_usage(tmp_path):
    assert re.fullmatch(r"wideep-dump \S+ \(commit \S+\)\n", dump("--version").stdout)
    out = dump("--help").stdout
    assert dump("-h").stdout == out
    for flag in ("--shm.dir", "--instance", "--records", "--json", "--version", "--help"):
        assert flag in out
    for arguments, part in ((["--frob"], "unknown flag --frob; try --help"),
                            (["--recrods", "5"], "did you mean --records?"), (["--frob=1"], "unknown flag --frob=1"),
                            (["--help=1"], "takes no value: --help=1"),
                            (["-x"], "unknown flag -x"), (["--json", "-xy"], "unknown flag -x"), (["-d"], "unknown flag -d"), (["--json=1"], "takes no value: --json=1"),
                            (["--records", "-1"], "not -1"), (["--records", "ten"], "not ten"), (["--records="], "not "),
                            (["--records", "1e3"], "not 1e3"), (["--records", "99999999999999999999"], "not 9"),
                            (["--shm.dir"], "missing after --shm.dir"), (["--instance", "a/b"], "unlike a/b"),
                            (["--instance", "\x1b[2J"], "\\x1b[2J")):
        result = dump(*arguments, code=2)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and part in result.stderr, result.stderr
        assert result.stderr.startswith("wideep-dump: ")


def test_full_output(tmp_path):
    with Writer() as writer:
        assert writer.create(tmp_path)[0] == 0
        with open("/dev/full", "w") as full:
            result = subprocess.run([program("wideep-dump"), "--shm.dir", str(tmp_path)], stdout=full, stderr=subprocess.PIPE,
                                    text=True, timeout=60)
        assert result.returncode == 1
        assert result.stderr == "wideep-dump: standard output: No space left on device\n"

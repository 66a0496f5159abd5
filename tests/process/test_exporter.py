# SPDX-License-Identifier: Apache-2.0
"""wideep-exporter as a program, fed by wideep-sim: totals to the last unit, kills, deletions, liveness, bad input."""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

import pytest

from exporter_helpers import (EXPORTER, JOINED, Exporter, Page, check_equal, exporting, gone, key, shared_directory,
                              simulating, wait_for)

PACED = ["--passes-per-second", 40, "--passes", 130, "--linger", 300]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


# ---- totals -----------------------------------------------------------------------------------------------------

RUNS = {
    "one": ["--engines", 1],
    "two": ["--engines", 2],
    "eight": ["--engines", 8],
    "two-by-four": ["--engines", 2, "--ranks", 4],
    "two-models": ["--model", "t", "--model", "d:1:32:0"],
    "steady": ["--scenario", "steady"],
    "reduced": ["--scenario", "reduced", "--engines", 4],
    "reduced-all": ["--scenario", "reduced-all", "--engines", 4],
    "mixed": ["--scenario", "mixed", "--engines", 4],
    "sparse": ["--scenario", "sparse", "--engines", 4],
    "async": ["--scenario", "async", "--ranks", 2],
    "redundant": ["--redundant", 8, "--experts", 24, "--engines", 4],
    "groups": ["--groups", 2],
    "no-frontends": ["--frontends", 0],
    "two-frontends": ["--frontends", 2],
    "replicated": ["--replicated", "--ranks", 2],
    "ubatches": ["--ubatches", 3],
}


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS.keys())
def test_totals_are_what_was_recorded(shm, flags):
    with exporting(shm) as exporter, simulating(shm, *PACED, *flags) as sim:
        expected = sim.expected()
        assert sum(expected.values()) > 0
        page = exporter.wait_page(lambda page: check_equal(page, expected))
        assert page.incomplete() == {}
        lost = {tuple(labels.values()): value for labels, value in page.of("wideep_records_lost_total") if value}
        assert lost == {}
        time.sleep(0.6)
        assert check_equal(exporter.scrape(), expected)


def test_totals_survive_the_writers(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED[:4]) as sim:
        expected = sim.expected()
        sim.process.wait()
        page = exporter.wait_page(lambda page: check_equal(page, expected) and page.segments() == {("closed", "ok"): 4})
        assert not page.of("wideep_rank_up")


# ---- the page ---------------------------------------------------------------------------------------------------


COLONS = ["dbo_active", "dbo_fallout_total", "ubatch_token_count", "eplb_avg_tokens_per_rank",
          "eplb_balancedness_ratio", "eplb_max_tokens_per_rank", "eplb_rearrangement_duration_seconds",
          "eplb_rearrangements_total", "eplb_rebalancing", "expert_load_per_expert_tokens_DEBUG",
          "generation_throughput_toks_per_s", "prompt_throughput_toks_per_s"]
LINTS = {f"vllm:{name} metric names should not contain ':'" for name in COLONS} | {
    f"vllm:{kind}_throughput_toks_per_s metric names should not contain abbreviated units"
    for kind in ("prompt", "generation")}


def allowed_lint(line):
    """Names that vLLM gave, which are not ours to choose."""
    return line in LINTS


def promtool(text):
    result = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, timeout=60)
    lines = (result.stdout + result.stderr).decode().splitlines()
    assert result.returncode in (0, 3), lines
    return lines


def test_page_is_valid(shm):
    with exporting(shm, "--debug.per-expert") as exporter, simulating(shm, *PACED, "--ranks", 2) as sim:
        pages = [exporter.scrape()]
        sim.started()
        while not sim.file.exists():
            pages.append(exporter.scrape())
            time.sleep(0.2)
        pages.append(exporter.wait_page(lambda page: page.of("vllm:expert_load_per_expert_tokens_DEBUG")))
        for page in pages:
            lines = page.text.splitlines()
            for kind in ("HELP", "TYPE"):
                names = [line.split(" ", 3)[2] for line in lines if line.startswith(f"# {kind} ")]
                assert len(names) == len(set(names))
            typed = {line.split(" ")[2]: line.split(" ")[3] for line in lines if line.startswith("# TYPE ")}
            assert {line.split(" ")[2] for line in lines if line.startswith("# HELP ")} == typed.keys()
            assert "" not in lines and page.text.endswith("\n")
            for sample in page.samples:
                assert sample.timestamp is None
                base = re.sub("_(bucket|sum|count)$", "", sample.name)
                assert sample.name in typed or typed[base] == "histogram"
            assert not [name for name, value in page.items() if value != value], "NaN"
        for page in (pages[0], pages[len(pages) // 2], pages[-1]):
            bad = [line for line in promtool(page.text) if not allowed_lint(line)]
            assert not bad


def test_http(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED[:4], "--linger", 60) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4})
        response, body = exporter.get()
        assert response.status == 200 and response.getheader("Content-Type") == CONTENT_TYPE
        assert int(response.getheader("Content-Length")) == len(body)
        response, body = exporter.get(method="HEAD")
        assert (response.status, body) == (200, b"") and response.getheader("Content-Type") == CONTENT_TYPE
        assert int(response.getheader("Content-Length")) > 1000
        with exporter.connection() as connection:
            connection.connect()
            connection.auto_open = 0  # a closed connection is an error rather than opened again
            for path in ("/metrics", "/-/healthy", "/metrics"):
                connection.request("GET", path)
                response = connection.getresponse()
                assert response.status == 200 and response.read()
        response, body = exporter.get("/-/healthy")
        assert (response.status, body) == (200, b"ok\n")
        response, body = exporter.get("/-/ready")
        assert (response.status, body) == (200, b"ready\n")
        response, body = exporter.get("/")
        assert response.status == 200 and response.getheader("Content-Type").startswith("text/html")
        assert b'href="/metrics"' in body
        for path in ("/nothing", "/metrics/", "/metricsx", "/-/", "//"):
            response, body = exporter.get(path)
            assert response.status == 404 and body.count(b"\n") == 1, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            response, body = exporter.get("/metrics", method)
            assert response.status == 405 and response.getheader("Allow") == "GET, HEAD", method
        response, _ = exporter.get("/metrics", "GET", body=b"x" * 10000)
        assert response.status == 200
        response, body = exporter.get("/metrics", "POST", body=b"x" * 100000)
        assert response.status == 413 and b"body" in body
        answered = lambda page, handler, code: sum(
            value for _, value in page.of("wideep_http_requests_total", handler=handler, code=code))
        page = exporter.wait_page(lambda page: answered(page, "metrics", 413) == 1)
        assert answered(page, "metrics", 405) == 5 and answered(page, "other", 404) == 5


def test_telemetry_path(shm):
    with exporting(shm, "--web.telemetry-path=/m") as exporter:
        assert wait_for(lambda: exporter.get("/m")[0].status == 200)
        assert exporter.get("/metrics")[0].status == 404 and b'href="/m"' in exporter.get("/")[1]


HOSTILE = {
    "quotes": b'a"b"',
    "newline": b"a\nb\n",
    "backslash": b"\\a\\n\\\\",
    "invalid": b"a\xff\xc3(\xe2\x82b\xed\xa0\x80\xf0\x9f",
    "overlong": b"\xc0\xaf\xf5\x80\x80\x80\x80",
    "good": "Größe 模型 😀".encode(),
    "markup": b"} 1\n# TYPE x gauge\nx{a=\"",
    "long": b"m" * 255,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_model_name(shm, name):
    run = ["--passes-per-second", 100, "--passes", 50, "--linger", 300, "--engines", 1, "--model", name]
    with exporting(shm) as exporter, simulating(shm, *run) as sim:
        expected = sim.expected()
        page = exporter.wait_page(lambda page: check_equal(page, expected))
        text = name.decode("utf-8", errors="replace")
        assert {s.labels["model_name"] for s in page.samples if "model_name" in s.labels} == {text}
        assert key("vllm:eplb_rearrangements_total", engine=0, model_name=text) in expected
        assert not [line for line in promtool(page.text) if not allowed_lint(line)]


# ---- kills ------------------------------------------------------------------------------------------------------


def kill_exporter(shm, times):
    chance = random.Random(times)
    flags = ["--passes-per-second", 1000, "--seconds", 2 * times, "--linger", 300, "--ranks", 2, "--frontends", 2]
    with simulating(shm, *flags) as sim:
        sim.started()
        for _ in range(times):
            exporter = Exporter(shm, "--collect.interval=25ms")
            try:
                if chance.random() < 0.7:
                    exporter.wait()
                if exporter.port and chance.random() < 0.5:
                    exporter.scrape()
                time.sleep(chance.random() * 0.1)
            finally:
                exporter.stop()
        assert not sim.file.exists(), "the ranks were done before the last kill"
        with exporting(shm) as exporter:
            expected = sim.expected()
            exporter.wait_page(lambda page: check_equal(page, expected, joined=False))


def test_killed_exporter_loses_nothing(shm):
    kill_exporter(shm, 10)


@pytest.mark.slow
def test_exporter_killed_50_times_loses_nothing(shm):
    kill_exporter(shm, 50)


def counters(page):
    """Those that ranks wrote."""
    return {name: value for name, value in page.items()
            if re.match(r"(vllm:\w+(_total|_bucket|_sum|_count)|wideep_(dbo|eplb|prompt|generation)_\w+_total)\{", name)
            and not JOINED.match(name) and "incomplete" not in name}


def check_between(page, low, high):
    bad = [(name, value, page.get(name), high[name]) for name, value in low.items()
           if not JOINED.match(name) and not (name in page and value * (1 - 1e-12) <= page[name] <= high[name] * (1 + 1e-12))]
    assert not bad, f"{len(bad)}: {bad[:5]}"
    return True


def kill_ranks(shm, times):
    flags = ["--passes-per-second", 500, "--seconds", 0, "--restart", "--ranks", 2]
    chance = random.Random(times)
    with exporting(shm) as exporter, simulating(shm, *flags) as sim:
        sim.started()
        page = exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 6})
        last = counters(page)
        assert len(last) > 100
        for i in range(times):
            who = chance.choice(sorted(sim.pids))
            before = sim.pids[who]
            os.kill(before, signal.SIGKILL)
            while True:
                now = counters(exporter.scrape())
                fallen = [(name, value, now.get(name)) for name, value in last.items() if now.get(name, -1) < value]
                assert not fallen, (i, who, fallen[:5])
                last = now
                if sim.pids[who] != before:
                    break
                time.sleep(0.02)
            time.sleep(chance.random() * 0.2)
        sim.process.terminate()
        low = sim.expected()
        sim.process.wait()
        exporter.wait_page(lambda page: check_between(page, low, sim.intended()))


def test_killed_ranks_lose_nothing(shm):
    kill_ranks(shm, 10)


@pytest.mark.slow
def test_ranks_killed_50_times_lose_nothing(shm):
    kill_ranks(shm, 50)


# ---- deletions --------------------------------------------------------------------------------------------------


def test_files_deleted_under_live_writers_come_back(shm):
    with exporting(shm) as exporter:
        with simulating(shm, "--passes-per-second", 40, "--passes", 250, "--linger", 300, "--ranks", 2) as sim:
            sim.started()
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 6})
            last = {}
            for _ in range(3):
                files = sim.files()
                assert len(files) == 6
                for file in files:
                    file.unlink()

                def back():
                    nonlocal last
                    now = counters(exporter.scrape())
                    assert all(now.get(name, -1) >= value for name, value in last.items()), "a counter went down"
                    last = now
                    return len(sim.files()) == 6

                end = time.monotonic() + 30
                while not back():
                    assert time.monotonic() < end, "the files did not come back"
                    time.sleep(0.05)
                time.sleep(0.6)
            expected = sim.expected()
            page = exporter.wait_page(lambda page: check_equal(page, expected))
            assert page.incomplete() == {}
        # The new files hold it all, for an exporter that never saw the old ones.
        with exporting(shm) as other:
            other.wait_page(lambda page: check_equal(page, expected, joined=False))


def test_all_deleted_vanish_together(shm):
    flags = ["--passes-per-second", 40, "--passes", 60, "--linger", 300, "--ranks", 2]
    with exporting(shm) as exporter, simulating(shm, *flags) as sim:
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected))
        sim.kill_all()
        page = exporter.wait_page(lambda page: page.segments() == {("dead", "ok"): 6})
        full = page.engine_series()
        check_equal(page, expected)
        for file in sim.files():
            file.unlink()
            time.sleep(0.01)

        def vanished():
            page = exporter.scrape()
            left = page.engine_series()
            if left != full:
                assert not left, sorted(left)[:5]
                return True
            check_equal(page, expected)
            return False

        end = time.monotonic() + 60
        while not vanished():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert exporter.scrape().segments() == {}


def test_part_deleted_resets_the_sum_once(shm):
    flags = ["--passes-per-second", 40, "--seconds", 0, "--ranks", 2]
    total = lambda page: sum(v for _, v in page.of("wideep_eplb_rank_tokens_total", layer=0))
    with exporting(shm) as exporter, simulating(shm, *flags) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 6} and total(page) > 100000)
        for who in ("rank", 1, 2), ("rank", 1, 3), ("frontend", 1, 0):
            os.kill(sim.pids[who], signal.SIGKILL)
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 3, ("dead", "ok"): 3})
        # Stopped, those who live count nothing while the others are withdrawn: the sum begins at exactly 0.
        living = [sim.pids[who] for who in (("rank", 0, 0), ("rank", 0, 1), ("frontend", 0, 0))]
        for pid in living:
            os.kill(pid, signal.SIGSTOP)
        for name in "e1.r2", "e1.r3", "e1.fe0":
            (shm / f"wideep.default.{name}").unlink()
        values, end = [], None
        while end is None or time.monotonic() < end:
            page = exporter.scrape()
            values.append(total(page))
            here = {labels["engine"] for name in ("wideep_rank_up", "wideep_prompt_tokens_total")
                    for labels, _ in page.of(name)}
            if here == {"0"}:
                end = end or time.monotonic() + 1.5
            else:
                assert end is None and here == {"0", "1"}
                assert len(values) < 2000
            time.sleep(0.02)
        falls = [(a, b) for a, b in zip(values, values[1:]) if b < a]
        assert len(falls) == 1, values
        assert falls[0][0] > 100000 and falls[0][1] == 0 and values[-1] == 0, values
        assert page.segments() == {("live", "ok"): 3}
        assert not page.of("vllm:eplb_rearrangements_total", engine=1)
        for pid in living:
            os.kill(pid, signal.SIGCONT)
        exporter.wait_page(lambda page: total(page) > 0)


# ---- liveness ---------------------------------------------------------------------------------------------------

GAUGES = ["vllm:eplb_balancedness_ratio", "vllm:eplb_max_tokens_per_rank", "vllm:eplb_avg_tokens_per_rank",
          "vllm:eplb_rebalancing", "vllm:dbo_active", "wideep_eplb_blocked", "wideep_eplb_recording"]


def test_dead_ranks_gauges_vanish_and_counters_stay(shm):
    with exporting(shm) as exporter, simulating(shm, "--passes-per-second", 40, "--seconds", 0) as sim:
        sim.started()
        page = exporter.wait_page(lambda page: all(page.of(name, engine=1) for name in GAUGES))
        assert page.one("wideep_rank_up", engine=1, rank=1) == 1 and page.one("wideep_ep_ranks_seen") == 2
        before = counters(page)
        os.kill(sim.pids["rank", 1, 1], signal.SIGKILL)
        wait_for(lambda: gone(sim.pids["rank", 1, 1]), pause=0.01)
        collections = lambda page: page.one("wideep_collect_duration_seconds_count")
        began = collections(exporter.scrape())
        page = exporter.wait_page(lambda page: collections(page) >= began + 2, pause=0.01)
        assert page.one("wideep_rank_up", engine=1, rank=1) == 0
        assert not any(page.of(name, engine=1) for name in GAUGES)
        assert page.one("wideep_rank_up", engine=0, rank=0) == 1 and page.one("wideep_ep_ranks_seen") == 1
        assert all(page.of(name, engine=0) for name in GAUGES)
        now = counters(page)
        assert all(now[name] >= value for name, value in before.items())


def test_idle_ranks_gauges_stay(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED[:2], "--passes", 60, "--linger", 300) as sim:
        expected = sim.expected()
        first = exporter.wait_page(lambda page: check_equal(page, expected))
        time.sleep(3)
        page = exporter.scrape()
        for name in GAUGES:
            assert page.of(name) == first.of(name) and len(page.of(name)) > 0
        assert [v for _, v in page.of("wideep_rank_up")] == [1, 1]


def test_stopped_rank_is_alive(shm):
    with exporting(shm) as exporter, simulating(shm, "--passes-per-second", 40, "--seconds", 0) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.of("vllm:eplb_balancedness_ratio"))
        os.kill(sim.pids["rank", 1, 1], signal.SIGSTOP)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            page = exporter.scrape()
            assert page.one("wideep_rank_up", engine=1, rank=1) == 1
            assert page.of("vllm:eplb_rebalancing", engine=1)
            time.sleep(0.1)
        os.kill(sim.pids["rank", 1, 1], signal.SIGCONT)


# ---- instances --------------------------------------------------------------------------------------------------


def with_instance(name, instance):
    return re.sub(r'(,wideep_instance="[^"]*")?\}$', f',wideep_instance="{instance}"}}', name)


def test_two_instances(shm):
    flags = [*PACED[:2], "--passes", 80, "--linger", 300]
    with exporting(shm) as one, exporting(shm, "--shm.instance=*") as both:
        with simulating(shm, *flags) as sim:
            with simulating(shm, *flags, "--instance", "other", "--seed", 7, "--engines", 4, name="other") as other:
                mine, others = sim.expected(), other.expected()
                page = one.wait_page(lambda page: check_equal(page, mine))
                assert page.segments() == {("live", "ok"): 4, ("ignored", "other_instance"): 8}
                assert not any("wideep_instance" in sample.labels for sample in page.samples)
                wanted = {with_instance(name, "default"): value for name, value in mine.items()}
                wanted |= {with_instance(name, "other"): value for name, value in others.items()}
                page = both.wait_page(lambda page: check_equal(page, wanted))
                assert page.segments() == {("live", "ok"): 12}
                for sample in page.samples:
                    assert ("wideep_instance" in sample.labels) == (key(sample.name, **sample.labels) in page.engine_series())
                assert not [line for line in promtool(page.text) if not allowed_lint(line)]


# ---- bad input --------------------------------------------------------------------------------------------------


def refused(*flags, env=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WIDEEP_")}
    done = subprocess.run([EXPORTER, *flags], capture_output=True, text=True, timeout=60, env={**clean, **(env or {})})
    assert done.stdout == "" and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.returncode, done.stderr


@pytest.mark.parametrize("flag, says", [
    ("--shm.dri=/tmp", "did you mean --shm.dir?"),
    ("--colect.interval=1s", "did you mean --collect.interval?"),
    ("--zzzzzzzzzzzzzzzzzzzzzzz", "try --help"),
    ("stray", "flags begin with --"),
    ("--collect.interval=fast", "a duration from"),
    ("--collect.interval=0s", "a duration from"),
    ("--eplb.engine-label=some", "each or first"),
    ("--limit.series=-1", "a whole number from"),
    ("--shm.owner=root", "numeric user ids"),
    ("--shm.instance=../x", "characters"),
    ("--web.telemetry-path=metrics", "begins with /"),
    ("--shm.dir", "needs a value"),
    ("--log.format=xml", "logfmt or json"),
    ("--web.listen-address=9464", ":PORT"),
    ("--web.listen-address=:99999", "up to 65535"),
])
def test_bad_flag(flag, says):
    status, text = refused(flag)
    assert status == 2 and says in text, text


def test_manual_has_every_flag_variable_and_reason(shm):
    manual = (pathlib.Path(__file__).parents[2] / "deploy" / "man" / "wideep-exporter.8").read_text()
    text = subprocess.run([EXPORTER, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    flags = re.findall(r"^  --([a-z.-]+)", text, re.M)
    assert len(flags) > 15 and subprocess.run([EXPORTER, "-h"], capture_output=True, text=True, timeout=60).stdout == text
    for flag in flags:
        assert f"Fl -{flag} " in manual.replace("\n", " "), flag
    for variable in re.findall(r"^      (WIDEEP_\w+)$", text, re.M):
        assert variable in manual, variable
    with exporting(shm) as exporter:
        for labels, _ in exporter.scrape().of("wideep_segments"):
            assert re.search(rf"\b{labels['state']}\b", manual) and re.search(rf"\b{labels['reason']}\b", manual), labels


def test_environment(shm):
    status, text = refused(env={"WIDEEP_COLLECT_INTERVAL": "fast"})
    assert status == 2 and "WIDEEP_COLLECT_INTERVAL" in text
    status, text = refused(env={"WIDEEP_WEB_LISTEN_ADDRESS": "127.0.0.1:0,:99999"})
    assert status == 2 and "WIDEEP_WEB_LISTEN_ADDRESS: ':99999'" in text
    with exporting(shm, env={"WIDEEP_WEB_TELEMETRY_PATH": "/m", "WIDEEP_SHM_INSTANCE": "x"}) as exporter:
        assert wait_for(lambda: exporter.get("/m")[0].status == 200)
    with exporting(shm, "--web.telemetry-path=/n", env={"WIDEEP_WEB_TELEMETRY_PATH": "/m"}) as exporter:
        assert wait_for(lambda: exporter.get("/n")[0].status == 200)
        assert exporter.get("/m")[0].status == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_no_permission(shm):
    """A directory and a file that the exporter's user may not read: each is said once, and neither is the end."""
    program = shutil.copy(EXPORTER, shm / "exporter")  # the build may lie where nobody can go
    directory = shm / "closed"
    directory.mkdir(mode=0o700)
    shm.chmod(0o755)
    with simulating(directory, "--engines", 1, "--linger", 300, "--passes", 1) as sim:
        sim.started()
        exporter = Exporter(directory, program=program, user="nobody")
        try:
            exporter.wait()
            assert exporter.scrape().one("wideep_shm_directory_readable") == 0
            (line,) = [line for line in exporter.log if "cannot read the shared-memory directory" in line]
            assert "Permission denied" in line and "let this user read it" in line
            file = directory / "wideep.default.e0.r0"
            file.chmod(0o600)
            directory.chmod(0o755)
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 1, ("rejected", "unreadable"): 1})
            (line,) = [line for line in exporter.log if "reason=unreadable" in line]
            assert "0644" in line
        finally:
            exporter.stop()


def test_misspelt_variable(shm):
    with exporting(shm, env={"WIDEEP_LOGLEVEL": "debug", "WIDEEP_INSTANCE": "x", "WIDEEP_LOG_LEVEL": ""}) as exporter:
        exporter.scrape()
        (line,) = [line for line in exporter.log if "unknown variable" in line]
        assert "level=warn" in line and "did_you_mean=WIDEEP_LOG_LEVEL" in line


def test_an_empty_page_is_explained_in_the_log(shm):
    def lines(exporter, text):
        return [line for line in exporter.log if text in line]

    with exporting(shm) as exporter:
        (line,) = lines(exporter, "waiting for segments")
        assert "level=info" in line and f"directory={shm}" in line and "instance=default" in line
        with simulating(shm, "--instance", "blue", "--engines", 1, "--linger", 300, "--passes", 1) as sim:
            sim.started()
            wait_for(lambda: lines(exporter, "segments of other instances"))
            exporter.wait_page(lambda page: page.segments() == {("ignored", "other_instance"): 2})
            with simulating(shm, "--engines", 1, "--linger", 300, "--passes", 1, name="mine") as mine:
                mine.started()
                exporter.wait_page(lambda page: page.segments().get(("live", "ok")) == 2)
        (line,) = lines(exporter, "segments of other instances")
        assert "level=warn" in line and "WIDEEP_INSTANCE" in line
    with exporting(shm) as exporter:
        assert not lines(exporter, "waiting for segments") and not lines(exporter, "segments of other instances")


def test_directory_as_long_as_writers_take(shm):
    directory = shm / ("a" * 200) / ("b" * 200)
    directory = directory / ("c" * (512 - 1 - len(str(directory))))
    directory.mkdir(parents=True)
    with exporting(directory) as exporter, simulating(directory, "--engines", 1, "--passes", 1, "--linger", 300) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 2})


def test_missing_directory_is_waited_for(shm):
    directory = shm / "later"
    with exporting(directory) as exporter:
        page = exporter.scrape()
        assert page.one("wideep_shm_directory_readable") == 0 and not page.engine_series()
        time.sleep(1)
        warnings = [line for line in exporter.log if "cannot read the shared-memory directory" in line]
        assert len(warnings) == 1 and "advice=" in warnings[0]
        directory.mkdir()
        with simulating(directory, *PACED[:2], "--passes", 40, "--linger", 300) as sim:
            expected = sim.expected()
            page = exporter.wait_page(lambda page: check_equal(page, expected))
            assert page.one("wideep_shm_directory_readable") == 1


def test_port_in_use(shm):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, text = refused(f"--shm.dir={shm}", "--web.listen-address=127.0.0.1:%d" % taken.getsockname()[1])
    assert status == 1 and "another process listens there" in text


def test_several_addresses(shm):
    with exporting(shm, "--web.listen-address=127.0.0.1:0") as exporter:
        ports = wait_for(lambda: [m for m in (re.search(r"address=127.0.0.1:(\d+)", x) for x in exporter.log) if m][1:]
                         and [int(re.search(r"address=127.0.0.1:(\d+)", x).group(1)) for x in exporter.log if "listening" in x])
        assert len(set(ports)) == 2
        for exporter.port in ports:
            exporter.scrape()


def test_corrupt_segments_cost_themselves_alone(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED) as sim:
        sim.started()
        good = (shm / "wideep.default.e0.r0").read_bytes()
        number = iter(range(10, 100))
        patched = lambda at, form, value: good[:at] + struct.pack(form, value) + good[at + struct.calcsize(form):]
        put = lambda data: (shm / f"wideep.default.e{next(number)}.r0").write_bytes(data)
        put(b"")
        put(os.urandom(1) * 8192)
        put(b"WIDEEPSM")
        put(good[: len(good) // 2])
        put(patched(8, "I", 2))
        put(patched(16, "I", 0x04030201))
        put(patched(20, "I", 32))
        put(good)
        put(patched(24, "Q", 1 << 62))
        put(patched(44 - 8, "I", 0xFFFFFFFF))
        put(patched(256 + 8, "Q", 1 << 40))
        (shm / "wideep.default.e90.r0").mkdir()
        (shm / "wideep.default.e91.r0").symlink_to("wideep.default.e0.r0")
        os.mkfifo(shm / "wideep.default.e92.r0")
        (shm / "wideep.nonsense").write_bytes(good)
        expected = sim.expected()
        page = exporter.wait_page(lambda page: check_equal(page, expected))
        assert page.incomplete() == {}
        found = page.segments()
        assert found.pop(("live", "ok")) == 4
        least = {"empty": 1, "bad_magic": 1, "truncated": 2, "bad_version": 1, "bad_endian": 1, "bad_word_size": 1,
                 "name_mismatch": 1, "bad_section": 1, "not_regular": 3, "bad_name": 1}
        for reason, count in least.items():
            assert found.get(("rejected", reason), 0) >= count, (reason, found)
        assert sum(found.values()) == 15 and all(state == "rejected" for state, _ in found)
        lines = [line for line in exporter.log if "segment rejected" in line]
        assert len(lines) == 15 and all("reason=" in line and "advice=" in line for line in lines)
        for path in shm.glob("wideep.default.e[1-9][0-9].r0"):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (shm / "wideep.nonsense").unlink()
        page = exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4})
        assert check_equal(page, expected)


def test_truncated_while_mapped(shm, monkeypatch):
    with exporting(shm) as exporter:
        # The rank itself dies of SIGBUS at its next store; only the exporter has to survive, so a sanitizer is not to
        # report that.
        for name in ("ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"):
            monkeypatch.setenv(name, os.environ.get(name, "") + ":handle_sigbus=0")
        with simulating(shm, "--passes-per-second", 40, "--passes", 160, "--linger", 300) as sim:
            sim.started()
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4} and page.of("vllm:eplb_balancedness_ratio"))
            os.truncate(shm / "wideep.default.e1.r1", 4096)
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 3, ("rejected", "truncated_mapping"): 1})
            assert exporter.process.poll() is None
            expected = sim.expected()
            mine = {name: value for name, value in expected.items() if 'engine="0"' in name}
            assert len(mine) > 50
            exporter.wait_page(lambda page: check_equal(page, mine))
            wait_for(lambda: any("reason=truncated_mapping" in line and "file=wideep.default.e1.r1" in line for line in exporter.log))


def test_truncated_while_idle(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED[:2], "--passes", 40) as sim:
        expected = sim.expected()
        sim.process.wait()
        exporter.wait_page(lambda page: check_equal(page, expected) and page.segments() == {("closed", "ok"): 4})
        os.truncate(shm / "wideep.default.e1.r1", 0)
        exporter.wait_page(lambda page: page.segments() == {("closed", "ok"): 3, ("rejected", "truncated_mapping"): 1})
        mine = {name: value for name, value in expected.items() if 'engine="0"' in name}
        check_equal(exporter.scrape(), mine)


def test_series_limit(shm):
    with exporting(shm) as whole, simulating(shm, *PACED[:2], "--passes", 40, "--linger", 300, "--layers", 58) as sim:
        expected = sim.expected()
        page = whole.wait_page(lambda page: check_equal(page, expected))
        assert page.one("wideep_series_dropped") == 0
        with exporting(shm) as late:  # which has not joined a pass, so it has no windows to show
            limit = len(late.wait_page(lambda page: check_equal(page, expected, joined=False))) - 50
        with exporting(shm, "--limit.series=300") as exporter:
            # What says that series are missing is never missing itself.
            page = exporter.wait_page(lambda page: page.one("wideep_series_dropped") > 100)
            assert len(page) <= 300 and page.segments() == {("live", "ok"): 4}
        with exporting(shm, f"--limit.series={limit}") as exporter:
            page = exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4})
            page = exporter.wait_page(lambda page: page.one("wideep_series_dropped") >= 50)
            assert len(page) <= limit
            served = {name: value for name, value in expected.items() if name in page}
            assert len(served) > 100 and check_equal(page, served, joined=False)
            wait_for(lambda: any("too many series" in line and "--limit.series" in line for line in exporter.log))


# ---- stops ------------------------------------------------------------------------------------------------------


def test_exporter_stopped_for_two_seconds(shm):
    with exporting(shm) as exporter, simulating(shm, "--passes-per-second", 100, "--passes", 500, "--linger", 300) as sim:
        sim.started()
        exporter.wait_page(lambda page: sum(v for _, v in page.of("wideep_eplb_passes_total")) > 100)
        os.kill(exporter.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(exporter.pid, signal.SIGCONT)
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected, joined=False))
        time.sleep(2)
        page = exporter.scrape()
        assert check_equal(page, expected, joined=False)
        assert set(page.incomplete()) <= {"lost", "late", "skipped"}
        assert page.one("wideep_records_lost_total", kind="eplb", cause="overrun") > 0
        some = 0
        for name, value in expected.items():
            if JOINED.match(name):
                assert page[name] <= value * (1 + 1e-12), name
                some += page[name]
        assert some > 0
        passes = page.one("wideep_eplb_passes_total", layer=0)
        assert 100 < passes < 500
        assert passes + sum(page.incomplete().values()) == 500


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_refused_file_is_looked_at_again_when_its_owner_changes(shm):
    with simulating(shm, *PACED) as sim:
        sim.expected()
        one = shm / "wideep.default.e0.r0"
        os.chown(one, 12345, -1)
        with exporting(shm, f"--shm.owner={os.geteuid()}") as exporter:
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 3, ("rejected", "owner"): 1})
            os.chown(one, os.geteuid(), -1)
            exporter.wait_page(lambda page: page.segments() == {("live", "ok"): 4})


def test_writer_that_outruns_the_exporter_holds_nobody_up(shm):
    """Every rank writes as fast as it can into the shallowest ring: collections go on, and so does the end."""
    flags = ["--passes-per-second", 0, "--seconds", 0, "--layers", 1, "--experts", 2, "--engines", 2]
    with exporting(shm, "--collect.interval=50ms") as exporter, simulating(shm, *flags) as sim:
        sim.started()
        collections = lambda page: page.one("wideep_collect_duration_seconds_count")
        exporter.wait_page(lambda page: page.one("wideep_records_lost_total", kind="eplb", cause="overrun") > 0)
        began = collections(exporter.scrape())
        exporter.wait_page(lambda page: collections(page) > began + 10)
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(30) == 0


def test_rings_are_drained_between_collections_that_are_far_apart(shm):
    """A ring holds 64 passes, less than two seconds of these: collections alone would lose most. A machine that stands
    still for a second costs a few."""
    flags = ["--passes-per-second", 40, "--passes", 480, "--linger", 300]
    with simulating(shm, *flags) as sim:
        sim.started()
        with exporting(shm, "--collect.interval=4s") as exporter:
            passes = lambda page: page.one("wideep_eplb_passes_total", layer=0)
            page = exporter.wait_page(lambda page: passes(page) > 250)
            lost = page.one("wideep_records_lost_total", kind="eplb", cause="overrun")
            assert lost < 0.1 * page.one("wideep_records_total", kind="eplb")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(shm, number):
    with exporting(shm) as exporter, simulating(shm, *PACED) as sim, exporter.connection() as connection:
        sim.started()
        connection.request("GET", "/metrics")  # and the connection stays open
        connection.getresponse().read()
        exporter.process.send_signal(number)
        began = time.monotonic()
        assert exporter.process.wait(30) == 0
        assert time.monotonic() - began < 5
        exporter.reader.join()
        # The collector works until the last response is sent, so lines of its own may follow.
        assert sum("msg=stopping" in line for line in exporter.log) == 1

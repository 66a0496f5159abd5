# SPDX-License-Identifier: Apache-2.0
"""What the system below may do to the exporter: no memory, threads, descriptors, random numbers or room for its log,
interrupted calls, a clock that jumps, time that stands still. tests/faults/README.md is the table of the outcomes."""

import contextlib
import http.client
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

import corruptor
from abi_helpers import ROOT, Writer
from exporter_helpers import (EXPORTER, SIM, Exporter, Page, check_equal, exporting, free_port, gone, shared_directory,
                              simulating, wait_for)
from faults_helpers import FOREVER, SANITIZED, Inject, interrupt, problems, record, unsanitized
from web_helpers import authority, certificate, count_fds, curl, web_config

DONE = ("--passes-per-second", 0, "--passes", 60, "--engines", 1, "--layers", 2, "--linger", 600)
FAST = "--collect.interval=20ms"
# The C library says the last of a thread that it has no memory for.
NO_MEMORY = re.compile(r"[Cc]annot allocate memory|not enough memory|Memory allocation failure|"
                       r"Resource temporarily unavailable")


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


@pytest.fixture
def inject(tmp_path):
    return Inject(tmp_path / "inject")


@pytest.fixture
def books(shm):
    """Segments of living writers that have nothing more to say, and what they hold."""
    with simulating(shm, *DONE) as sim:
        yield sim.expected()


def right(exporter, books):
    return exporter.wait_page(lambda page: check_equal(page, books, joined=False))


def ends_well(exporter):
    exporter.process.send_signal(signal.SIGTERM)
    assert exporter.process.wait(60) == 0


# ---- memory -----------------------------------------------------------------------------------------------------


def start_up(shm, inject, books, after, count, *flags, tls=False):
    """Either says in one line why it cannot start, with status 1, or starts and is right once there is memory."""
    inject.reset()
    inject.arm(inject.page.memory, after, count)
    exporter = Exporter(shm, FAST, *flags, env=inject.env)
    try:
        with contextlib.suppress(RuntimeError):
            exporter.wait()
        if exporter.port is None:
            status = exporter.process.wait(60)
            if tls and status in (-signal.SIGSEGV, -signal.SIGABRT):
                return "crashed"
            assert status == 1, (after, exporter.log)
            exporter.reader.join()
            lines = problems(exporter.log)
            assert lines and (tls or NO_MEMORY.search(lines[-1])), (after, exporter.log)
            assert inject.page.memory.failed > 0
            return "refused"
        inject.disarm(inject.page.memory)
        if books is not None:
            right(exporter, books)
        ends_well(exporter)
        return "went on" if inject.page.memory.failed else "not reached"
    finally:
        exporter.stop()


def each(step):
    return "" if step == 1 else f", each {step}th"


def every_start_up(shm, inject, books, count, *flags, step=1, tls=False):
    outcomes = {"refused": 0, "went on": 0, "crashed": 0}
    for after in itertools.count(0, step):
        outcome = start_up(shm, inject, books, after, count, *flags, tls=tls)
        if outcome == "not reached":
            return outcomes
        outcomes[outcome] += 1


@unsanitized
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [1, FOREVER], ids=["one", "all"])
def test_start_up_without_memory(shm, inject, books, count, step):
    outcomes = every_start_up(shm, inject, books, count, step=step)
    assert outcomes["refused"] > 20 / step and (outcomes["went on"] > 0 or step > 1)
    record(f"start-up, {'one allocation' if count == 1 else 'all from one on'}{each(step)}", sum(outcomes.values()),
           exits_1=outcomes["refused"], serves_the_right_page=outcomes["went on"])


@unsanitized
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, FOREVER], ids=["one", "all"])
def test_start_up_with_tls_without_memory(shm, inject, tmp_path, count):
    """The TLS library allocates a thousand times and more, hence the steps. It calls a certificate bad that it has no
    memory for; libtasn1 4.19, which reads it, uses what it could not allocate, and GNU MP aborts."""
    outcomes = every_start_up(shm, inject, None, count, f"--web.config.file={tls_config(tmp_path)}", step=7, tls=True)
    assert outcomes["refused"] > 20
    record(f"start-up with TLS, {'one allocation' if count == 1 else 'all from one on'}", sum(outcomes.values()),
           exits_1=outcomes["refused"], serves=outcomes["went on"], crashed_in_a_library=outcomes["crashed"])


def tls_config(directory):
    authority(directory, "ca")
    certificate(directory, "server", "ca")
    return web_config(directory / "web.yml", tls_server_config={
        "cert_file": str(directory / "server.pem"), "key_file": str(directory / "server.key")})


PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
FORMATS = ({}, {"Accept-Encoding": "gzip"}, {"Accept": "application/openmetrics-text;version=1.0.0"},
           {"Accept": PROTOBUF})
PATHS = ("/metrics?name[]=vllm:dbo_fallout_total", "/api/v1/state", "/lb", "/lb/metrics", "/-/ready", "/")


def ask_for_everything(exporter):
    """Without memory an answer may be an error, or none: the library closes the connection."""
    for headers, path in [(headers, "/metrics") for headers in FORMATS] + [({}, path) for path in PATHS]:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            status = exporter.get(path, headers=headers)[0].status
            assert status in (200, 500, 503), (path, status)


def settled_blocks(inject):
    """What is allocated when nothing happens: the least of several looks, since the collector goes on."""
    def look():
        time.sleep(0.005)
        return inject.page.blocks

    return min(look() for _ in range(40))


def totals_of_the_dead(page):
    return {name: value for name, value in page.items()
            if 'model_name="hostile"' in name and re.match(r"vllm:.*_(total|bucket|count)|wideep_\w+_tokens_total", name)
            and not re.match("wideep_eplb_(avg|max)_tokens", name)}


@unsanitized
@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_run_time_without_memory(shm, books, inject, tmp_path, step):
    """A rank that is found, collections, each format and page, a rank that goes: whatever allocation fails, the exporter
    stays, is right as soon as there is memory, and keeps nothing. Collector and requests call in any order, so that a
    number does not stand for one of their calls; all numbers together do for all of them."""
    outside, inside = tmp_path / "outside", shm / "wideep.default.e1.r0"
    outside.write_bytes(corruptor.take_image(tmp_path))
    tried = failed = 0

    def turn(expected):
        shutil.copyfile(outside, shm / "new")
        (shm / "new").rename(inside)
        ask_for_everything(exporter)
        inject.disarm(inject.page.memory)
        right(exporter, expected)
        inside.unlink()
        exporter.wait_page(lambda page: 'engine="1"' not in page.text and check_equal(page, books, joined=False))

    with exporting(shm, FAST, env=inject.env) as exporter:
        shutil.copyfile(outside, inside)
        page = exporter.wait_page(lambda page: page.of("vllm:prompt_tokens_total", engine=1) or
                                  page.of("wideep_prompt_tokens_total", engine=1))
        expected = {**books, **totals_of_the_dead(page)}
        assert len(expected) > len(books) + 20
        inside.unlink()
        turn(expected)
        before, fds = settled_blocks(inject), count_fds(exporter.pid)
        for after in itertools.count(0, step):
            inject.arm(inject.page.memory, after)
            turn(expected)
            tried += 1
            failed += inject.page.memory.failed
            if inject.page.memory.failed == 0:
                break
        assert failed > 100 / step
        assert settled_blocks(inject) <= before + 20  # a connection that is still open has some
        wait_for(lambda: count_fds(exporter.pid) <= fds + 1)
        ends_well(exporter)
    record(f"run time, one allocation{each(step)}", tried, right_page_next=failed,
           not_reached=tried - failed)


RELOADED = "web configuration in use"


@unsanitized
@pytest.mark.parametrize("step", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_reload_without_memory(shm, inject, tmp_path, step):
    """The configuration before it stays in use, which is said; the next reload works."""
    outcomes = {"kept the old": 0, "took the new": 0}

    def configure(value):
        web_config(tmp_path / "web.yml", http_server_config={"headers": {"X-Frame-Options": value}})
        said = len(exporter.log)
        exporter.process.send_signal(signal.SIGHUP)

        def outcome():
            """What follows this signal's line: the reload before may still have something to say."""
            lines = itertools.dropwhile(lambda line: "reading the configuration again" not in line, exporter.log[said:])
            return [line for line in lines if RELOADED in line or "configuration" in line and "level=error" in line]

        return wait_for(outcome)[0]

    web_config(tmp_path / "web.yml", http_server_config={"headers": {"X-Frame-Options": "deny"}})
    with exporting(shm, "--collect.interval=60s", f"--web.config.file={tmp_path / 'web.yml'}", env=inject.env) as exporter:
        exporter.scrape()
        for value, after in zip(itertools.cycle(("sameorigin", "deny")), itertools.count(0, step)):
            inject.arm(inject.page.memory, after)
            line = configure(value)
            reached = inject.page.memory.failed
            inject.disarm(inject.page.memory)
            if not reached:
                break
            served = exporter.get("/-/healthy")[0].getheader("X-Frame-Options")
            outcomes["took the new" if RELOADED in line else "kept the old"] += 1
            assert (served == value) == (RELOADED in line), (served, line)
            if RELOADED not in line:
                assert NO_MEMORY.search(line), line
                exporter.process.send_signal(signal.SIGHUP)
            wait_for(lambda: exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == value)
        ends_well(exporter)
    assert outcomes["kept the old"] > 20 / step
    record(f"reload, one allocation{each(step)}", sum(outcomes.values()),
           keeps_the_old_and_takes_the_new_next=outcomes["kept the old"], takes_the_new=outcomes["took the new"])


# ---- threads and random numbers ---------------------------------------------------------------------------------


@unsanitized
def test_start_up_without_threads(shm, inject):
    for after in itertools.count():
        inject.reset()
        inject.arm(inject.page.thread, after)
        exporter = Exporter(shm, env=inject.env)
        with contextlib.suppress(RuntimeError):
            exporter.wait()
        if exporter.port is not None:
            exporter.stop()
            break
        assert exporter.process.wait(60) == 1
        exporter.stop()
        (line,) = problems(exporter.log)
        assert 'msg="cannot start" error="Resource temporarily unavailable"' in line
    assert after >= 6
    record("start-up, one pthread_create()", after, exits_1=after)


@unsanitized
def test_reload_without_threads(shm, inject, tmp_path):
    config = web_config(tmp_path / "web.yml", http_server_config={"headers": {"X-Frame-Options": "deny"}})
    with exporting(shm, f"--web.config.file={config}", env=inject.env) as exporter:
        web_config(config, http_server_config={"headers": {"X-Frame-Options": "sameorigin"}})
        inject.arm(inject.page.thread, 0, FOREVER)
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("Resource temporarily unavailable" in line for line in exporter.log))
        assert exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "deny"
        inject.disarm(inject.page.thread)
        wait_for(lambda: exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "sameorigin")
        assert sum("level=error" in line for line in exporter.log) == 1
    record("reload, all pthread_create()", 1, keeps_the_old_and_takes_the_new_next=1)


@unsanitized
def test_no_random_numbers(shm, books, inject, tmp_path):
    """The exporter does without, but for TLS. A writer's segment has to have its numbers: it is not made."""
    inject.arm(inject.page.random, 0, FOREVER)
    with exporting(shm, FAST, env=inject.env) as exporter:
        right(exporter, books)
    done = subprocess.run([SIM, "--shm.dir", str(tmp_path), "--passes", "1"], env={**os.environ, **inject.env},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and inject.page.random.failed > 0
    assert "cannot create the segment" in done.stderr, done.stderr
    assert list(tmp_path.glob("wideep.*")) == list(tmp_path.glob(".wideep*")) == []
    record("getrandom()", 2, exporter_is_right=1, writer_is_told=1)


# ---- interrupted calls ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupting(pid):
    """Each thread, a thousand times a second if the machine is fast enough."""
    stop = threading.Event()

    def run():
        while not stop.wait(0.001):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                interrupt(pid, signal.SIGUSR2)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@unsanitized
def test_interrupted_calls(shm, inject, tmp_path):
    config = web_config(tmp_path / "web.yml", http_server_config={"headers": {"X-Frame-Options": "deny"}})
    with exporting(shm, FAST, f"--web.config.file={config}", env=inject.env) as exporter, interrupting(exporter.pid):
        with simulating(shm, "--passes-per-second", 100, "--passes", 100, "--engines", 1, "--linger", 600) as sim:
            while not sim.file.exists():
                exporter.scrape()
                assert exporter.get("/-/healthy")[0].status == 200
            page = exporter.wait_page(lambda page: check_equal(page, sim.expected()))
            assert page.incomplete() == {}
        web_config(config, http_server_config={"headers": {"X-Frame-Options": "sameorigin"}})
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: exporter.get("/-/healthy")[0].getheader("X-Frame-Options") == "sameorigin")
        before = inject.page.interruptions
        wait_for(lambda: inject.page.interruptions > before + 1000)
        probe = subprocess.Popen([EXPORTER, "--healthcheck", f"--web.listen-address=127.0.0.1:{exporter.port}"],
                                 stdout=subprocess.DEVNULL, env={**os.environ, **inject.env})
        with interrupting(probe.pid):
            assert probe.wait(60) == 0
        ends_well(exporter)
        assert problems(exporter.log) == []
    record("EINTR in all threads, at each call", 1, right_at_once=1)


# ---- descriptors ------------------------------------------------------------------------------------------------


def free_numbers(pid):
    """Those of the descriptors that the process does not hold all the time, the lowest first. (The collector has the
    directory open now and then.)"""
    held = set.intersection(*(set(map(int, os.listdir(f"/proc/{pid}/fd"))) for _ in range(50)))
    return [number for number in range(len(held) + 8) if number not in held]


@pytest.mark.parametrize("spare, seen", [
    (0, lambda page: page.one("wideep_shm_directory_readable") == 0),
    (1, lambda page: page.segments().get(("rejected", "unreadable")) == 1),
    (2, lambda page: page.of("wideep_rank_up", engine=5))], ids=["directory", "segment", "enough"])
def test_no_descriptor_for_a_segment(shm, books, spare, seen):
    """None to read the directory, none for what is found there, and, for comparison, one for each. What was attached
    stays, what comes waits. For connections: test_out_of_descriptors in test_hostile.py."""
    with exporting(shm, FAST) as exporter, exporter.connection() as connection, Writer() as writer:
        right(exporter, books)

        def kept_alive():
            connection.request("GET", "/metrics")
            return Page(connection.getresponse().read().decode())

        kept_alive()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = resource.prlimit(exporter.pid, resource.RLIMIT_NOFILE, (free_numbers(exporter.pid)[spare], most))
        assert writer.create(shm, ((b"late", 1, 2, 0),), engine=5)[0] == 0
        page = wait_for(lambda: seen(page := kept_alive()) and page)
        assert check_equal(page, books, joined=False)
        assert bool(page.of("wideep_rank_up", engine=5)) == (spare == 2)
        resource.prlimit(exporter.pid, resource.RLIMIT_NOFILE, limit)
        page = exporter.wait_page(lambda page: page.of("wideep_rank_up", engine=5) and
                                  page.one("wideep_shm_directory_readable") == 1)
        assert check_equal(page, books, joined=False) and ("rejected", "unreadable") not in page.segments()
    record(f"EMFILE, {spare} descriptors left", 1, **{"right_at_once" if spare == 2 else "right_and_attached_later": 1})


@unsanitized
def test_system_is_out_of_files(shm, books, inject):
    with exporting(shm, FAST, env=inject.env) as exporter:
        right(exporter, books)
        inject.arm(inject.page.file, 0, FOREVER)
        with socket.create_connection(("127.0.0.1", exporter.port)) as sock:
            sock.settimeout(60)
            sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            wait_for(lambda: any("cannot accept connections" in line and "Too many open files in system" in line
                                 for line in exporter.log))
            wait_for(lambda: any("cannot read the shared-memory directory" in line for line in exporter.log))
            inject.disarm(inject.page.file)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        right(exporter, books)
        assert exporter.scrape().one("wideep_http_out_of_descriptors_total") > 0
        assert len(problems(exporter.log)) == 2
    record("ENFILE at accept, directory and segments", 1, served_when_over=1)


# ---- the log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "closed pipe", "closed"])
def test_log_that_cannot_be_written(shm, books, kind):
    port = free_port()
    command = [EXPORTER, f"--shm.dir={shm}", FAST, f"--web.listen-address=127.0.0.1:{port}", "--log.level=debug"]
    if kind == "full":
        with open("/dev/full", "wb") as full:
            process = subprocess.Popen(command, stderr=full)
    elif kind == "closed pipe":
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        process.stderr.close()
    else:  # their numbers must not become those of a socket that the log is then written to
        process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command])
    try:
        def page():
            assert process.poll() is None
            with contextlib.suppress(ConnectionError), \
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                connection.request("GET", "/metrics")
                response = connection.getresponse()
                return response.status == 200 and check_equal(Page(response.read().decode()), books, joined=False)
            return False

        wait_for(page)
        if kind == "closed":
            assert [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3)] == 3 * ["/dev/null"]
        with Writer() as writer:  # something to say
            assert writer.create(shm, engine=9)[0] == 0
            wait_for(lambda: (shm / "wideep.default.e9.r0").exists())
        (shm / "wideep.default.e8.r0").write_bytes(b"x" * 5000)
        wait_for(page)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    record(f"log: {kind}", 1, right=1)


# ---- time -------------------------------------------------------------------------------------------------------


@unsanitized
def test_clock_steps(shm, inject):
    """Durations, rates, windows and deadlines do not follow the clock on the wall; only what tells its time does."""
    steps = (-3600, 86400, -30 * 86400, 0)
    with exporting(shm, FAST, env=inject.env) as exporter:
        start = exporter.scrape().one("process_start_time_seconds")
        with simulating(shm, "--passes-per-second", 100, "--passes", 150, "--engines", 1, "--linger", 600) as sim:
            sim.started()
            for shift in steps:
                inject.page.realtime_shift_s = shift

                def followed(page):
                    now = time.time() + shift
                    assert abs(page.one("wideep_snapshot_timestamp_seconds") - now) < 60
                    last = [value for _, value in page.of("wideep_rank_last_pass_timestamp_seconds")]
                    return last and all(abs(value - now) < 60 for value in last)

                page = exporter.wait_page(followed)
                assert page.one("process_start_time_seconds") == start
                assert all(0 <= value < 60 for _, value in page.of("wideep_collect_duration_seconds_sum"))
                assert exporter.get("/-/healthy")[0].status == exporter.get("/-/ready")[0].status == 200
            page = exporter.wait_page(lambda page: check_equal(page, sim.expected()), 120)
            assert page.incomplete() == {}
            assert problems(exporter.log) == []
    record("CLOCK_REALTIME steps, back and forth", len(steps), nothing_lost=len(steps))


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_stopped_exporter(shm, seconds):
    """Rings overrun meanwhile; no total lacks anything, and what could not be joined is said."""
    with exporting(shm, FAST) as exporter, \
            simulating(shm, "--passes-per-second", 0, "--seconds", seconds + 2, "--engines", 1, "--ranks", 2, "--linger",
                       600) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.of("wideep_eplb_passes_total"))
        os.kill(exporter.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(exporter.pid, signal.SIGCONT)
        page = exporter.wait_page(lambda page: check_equal(page, sim.expected(), joined=False))
        assert exporter.get("/-/healthy")[0].status == 200
        assert page.one("wideep_ep_ranks_seen", group=0) == 2
    record(f"exporter stopped for {seconds} s", 1, no_total_lost=1)


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_stopped_writer(shm, seconds):
    """A stopped rank is no dead one; when it goes on, so do its totals and the joining of passes."""
    with exporting(shm, FAST) as exporter, \
            simulating(shm, "--passes-per-second", 50, "--passes", 100, "--engines", 1, "--ranks", 2, "--linger",
                       600) as sim:
        sim.started()
        pid = sim.pids["rank", 0, 1]
        exporter.wait_page(lambda page: sum(v for _, v in page.of("wideep_eplb_passes_total")))
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            page = exporter.scrape()
            assert [value for _, value in page.of("wideep_rank_up")] == [1, 1]
            assert ("dead", "ok") not in page.segments()
            time.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
        exporter.wait_page(lambda page: check_equal(page, sim.expected(), joined=False))
    record(f"writer stopped for {seconds} s", 1, alive_and_no_total_lost=1)


@unsanitized
@pytest.mark.parametrize("seconds", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_directory_that_takes_its_time(shm, books, inject, seconds):
    """Scrapes do not wait for it; a probe sees when it is too long."""
    with exporting(shm, FAST, env=inject.env) as exporter:
        right(exporter, books)
        inject.page.scan_stall_ms = 1000 * seconds
        before = inject.page.stalled_scans
        wait_for(lambda: inject.page.stalled_scans > before)
        begin = time.monotonic()
        check_equal(exporter.scrape(), books, joined=False)
        assert exporter.get("/-/healthy")[0].status == 200
        assert time.monotonic() - begin < seconds or inject.page.stalled_scans > before + 1
        if seconds > 10:
            wait_for(lambda: exporter.get("/-/healthy")[0].status == 503)
        inject.page.scan_stall_ms = 0
        with Writer() as writer:
            assert writer.create(shm, engine=9)[0] == 0
            exporter.wait_page(lambda page: 'engine="9"' in page.text and check_equal(page, books, joined=False))
        assert exporter.get("/-/healthy")[0].status == 200
    record(f"reads of the directory take {seconds} s", 1, scrapes_do_not_wait=1)


# ---- processes --------------------------------------------------------------------------------------------------


def test_writer_that_forked(shm):
    """The child, which outlives it, is not taken for it, and counts nothing."""
    with exporting(shm, FAST) as exporter, Writer() as writer:
        assert writer.create(shm)[0] == 0
        assert writer.ask("tokens", 1000, 100) == 0
        writer.say("fork")
        child, *_ = writer.hear()
        try:
            page = exporter.wait_page(lambda page: page.of("wideep_rank_up", engine=0) and page)
            assert page.one("wideep_rank_up", engine=0) == 1
            writer.kill()
            page = exporter.wait_page(lambda page: page.segments().get(("dead", "ok")) == 1)
            assert not gone(child)
            assert sum(value for _, value in page.of("wideep_prompt_tokens_total")) == 1000
        finally:
            os.kill(child, signal.SIGKILL)
    record("writer forks and dies, its child lives", 1, dead_and_counted_once=1)


# ---- the table --------------------------------------------------------------------------------------------------


def test_the_table_names_these_tests():
    table = (ROOT / "tests" / "faults" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_table_names_these_tests"}
    assert here <= named

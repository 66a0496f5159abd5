# SPDX-License-Identifier: Apache-2.0
"""What load balancers and scripts ask: /lb, /lb/metrics, /api/v1/state."""

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import time

import pytest

from abi_helpers import Segment, Writer
from exporter_helpers import Page, exporting, free_port, shared_directory, simulating, wait_for
from test_exporter import promtool

SYNC, ASYNC = 0, 1
MODELS = ((b"m", 1, 4, 0),)
# Longer than a test: whatever it sees was not brought by a collection.
NO_COLLECTIONS = "--collect.interval=60s"


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


@contextlib.contextmanager
def ranks(directory, *engines, ep=4):
    """A writer for each engine number given, its EP rank its place in the list."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Writer()) for _ in engines]
        for rank, (writer, engine) in enumerate(zip(writers, engines)):
            assert writer.create(directory, MODELS, engine=engine, rank=rank, ep=ep, group=7)[0] == 0
        yield writers


def ask(exporter, query=""):
    response, body = exporter.get("/lb" + query)
    if response.status == 400:
        return 400, body.decode()
    assert response.getheader("Content-Type") == "application/json"
    return response.status, json.loads(body)


def state(exporter, query=""):
    status, answer = ask(exporter, query)
    return status, answer["state"]


def becomes(exporter, *expected, query=""):
    def attempt():
        assert state(exporter, query) == expected
        return True

    return wait_for(attempt, pause=0.02)


def lb_page(exporter, path="/lb/metrics"):
    response, body = exporter.get(path)
    assert response.status == 200
    assert response.getheader("Content-Type").startswith("text/plain; version=0.0.4")
    return Page(body.decode())


FAMILIES = {"wideep_lb_ready", "wideep_lb_blocked", "wideep_lb_up", "wideep_lb_state", "wideep_lb_rebalancing_seconds",
            "wideep_lb_ranks_up", "wideep_lb_ranks"}


# ---- /lb --------------------------------------------------------------------------------------------------------


def test_nobody_was_ever_seen(shm):
    with exporting(shm) as exporter:
        assert ask(exporter) == (200, {"state": "unknown", "engines": []})
        assert ask(exporter, "?engine=0") == (503, {"state": "unknown", "engines": [], "reason": "no such engine"})
        page = lb_page(exporter)
        assert set(page.families) == FAMILIES
        assert dict(page) == {"wideep_lb_ready": 1, "wideep_lb_blocked": 0}


def test_blocked_and_rebalancing(shm):
    with ranks(shm, 0, 3) as (one, two), exporting(shm, NO_COLLECTIONS) as exporter:
        becomes(exporter, 200, "serving")
        status, answer = ask(exporter)
        assert [(e["engine"], e["state"], e["ranks"], e["ranks_up"]) for e in answer["engines"]] == [
            (0, "serving", 1, 1), (3, "serving", 1, 1)]
        assert all(abs(e["since"] - time.time()) < 60 and "mode" not in e for e in answer["engines"])
        assert two.ask("begin", 0, ASYNC) == 0
        becomes(exporter, 200, "rebalancing")
        assert state(exporter, "?avoid=rebalancing") == (503, "rebalancing")
        assert state(exporter, "?engine=3&avoid=rebalancing") == (503, "rebalancing")
        assert state(exporter, "?engine=0&avoid=rebalancing") == (200, "serving")
        assert ask(exporter, "?engine=3")[1]["engines"][0]["mode"] == "async"
        assert two.ask("end", 0) == 0
        becomes(exporter, 200, "serving")
        assert one.ask("begin", 0, SYNC) == 0
        becomes(exporter, 503, "blocked")
        assert state(exporter, "?engine=3") == (200, "serving")
        status, answer = ask(exporter, "?engine=0")
        assert status == 503 and len(answer["engines"]) == 1 and answer["engines"][0]["mode"] == "sync"
        assert one.ask("end", 0) == 0
        becomes(exporter, 200, "serving")


def test_stall_is_shown_within_50_ms(shm):
    """From the engine's own word for the beginning to the answer in the client's hands. The copies alone can bring it:
    there are no collections. A busy machine may be late now and then, so the median counts."""
    with ranks(shm, 0) as (writer,), exporting(shm, NO_COLLECTIONS) as exporter, exporter.connection() as connection:
        segment = Segment(next(shm.glob("wideep.*")))
        delays = []

        def status():
            connection.request("GET", "/lb")
            response = connection.getresponse()
            response.read()
            return response.status

        wait_for(lambda: status() == 200)
        for _ in range(21):
            assert writer.ask("begin", 0, SYNC) == 0
            begin_ns = segment.live()["models"][0]["rebalancing_since_ns"]
            wait_for(lambda: status() == 503, pause=0)
            delays.append((time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begin_ns) / 1e6)
            assert writer.ask("end", 0) == 0
            wait_for(lambda: status() == 200, pause=0.001)
        assert statistics.median(delays) < 50, sorted(delays)


def test_death(shm):
    with ranks(shm, 0, 0, 1) as (one, two, _), exporting(shm, NO_COLLECTIONS) as exporter:
        becomes(exporter, 200, "serving")
        two.kill()
        becomes(exporter, 503, "dead")
        assert state(exporter, "?engine=0") == (503, "dead")
        assert state(exporter, "?engine=1") == (200, "serving")
        (row,) = ask(exporter, "?engine=0")[1]["engines"]
        assert (row["ranks"], row["ranks_up"], "closed" in row) == (2, 1, False)


def test_restarted_rank_serves_again(shm):
    with ranks(shm, 0) as (one,), exporting(shm) as exporter:
        becomes(exporter, 200, "serving")
        one.kill()
        becomes(exporter, 503, "dead")
        with ranks(shm, 0):
            becomes(exporter, 200, "serving")


def test_close_is_no_death(shm):
    with ranks(shm, 0, 1) as (one, two), exporting(shm) as exporter:
        becomes(exporter, 200, "serving")
        assert one.ask("close") == 0
        becomes(exporter, 503, "dead", query="?engine=0")
        assert ask(exporter, "?engine=0")[1]["engines"][0]["closed"] is True
        status, answer = ask(exporter)
        assert (status, answer["state"], [e["engine"] for e in answer["engines"]]) == (200, "serving", [1])
        assert two.ask("close") == 0
        becomes(exporter, 503, "dead")


def test_deleted_is_forgotten(shm):
    with ranks(shm, 0, 1) as (one, _), exporting(shm) as exporter:
        becomes(exporter, 200, "serving")
        one.kill()
        becomes(exporter, 503, "dead")
        (shm / "wideep.default.e0.r0").unlink()
        becomes(exporter, 200, "serving")
        assert ask(exporter, "?engine=0")[1]["reason"] == "no such engine"
        assert "reason" not in ask(exporter)[1] and "reason" not in ask(exporter, "?engine=1")[1]


@pytest.mark.parametrize("query", ["?engine=", "?engine", "?engine=x", "?engine=-1", "?engine=65536", "?engine=1%00",
                                   "?avoid=", "?avoid=blocked", "?Engine=0", "?engine=0&x"])
def test_malformed_query(shm, query):
    with exporting(shm) as exporter:
        status, text = ask(exporter, query)
        assert status == 400 and text.endswith("\n") and ("engine" in text or "avoid" in text)


def test_methods(shm):
    with exporting(shm) as exporter:
        for path in ("/lb", "/lb/metrics", "/lb/7/metrics", "/api/v1/state"):
            response, body = exporter.get(path, "HEAD")
            assert response.status == 200 and body == b"" and int(response.getheader("Content-Length")) > 0
            for method in ("POST", "DELETE", "PUT"):
                response, _ = exporter.get(path, method)
                assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


def test_nothing_is_cached(shm):
    """A cache between would answer probes with what was."""
    with exporting(shm) as exporter:
        for path in ("/lb", "/lb?engine=9", "/lb?x", "/lb/metrics", "/-/healthy", "/-/ready", "/api/v1/state",
                     "/-/debug/per-expert", "/nowhere"):
            assert exporter.get(path)[0].headers.get_all("Cache-Control") == ["no-store"], path


def test_all_instances(shm):
    with ranks(shm, 0), Writer() as other, exporting(shm, "--shm.instance=*") as exporter:
        assert other.create(shm, MODELS, instance="b", engine=0, rank=0, ep=4, group=8)[0] == 0
        wait_for(lambda: len(ask(exporter)[1]["engines"]) == 2)
        assert [e["instance"] for e in ask(exporter, "?engine=0")[1]["engines"]] == ["b", "default"]
        page = lb_page(exporter)
        assert page.one("wideep_lb_up", engine=0, wideep_instance="b") == 1
        assert other.ask("begin", 0, SYNC) == 0
        becomes(exporter, 503, "blocked", query="?engine=0")


# ---- /lb/metrics ------------------------------------------------------------------------------------------------


def test_page(shm):
    with ranks(shm, 0, 3) as (_, two), exporting(shm, NO_COLLECTIONS) as exporter:
        becomes(exporter, 200, "serving")
        assert two.ask("begin", 0, SYNC) == 0
        becomes(exporter, 503, "blocked")
        page = lb_page(exporter)
        assert set(page.families) == FAMILIES
        assert (page.one("wideep_lb_ready"), page.one("wideep_lb_blocked")) == (0, 1)
        assert (page.one("wideep_lb_up", engine=0), page.one("wideep_lb_up", engine=3)) == (1, 0)
        for engine, expected in ((0, "serving"), (3, "blocked")):
            states = {labels["state"]: value for labels, value in page.of("wideep_lb_state", engine=engine)}
            assert states == {name: name == expected
                              for name in ("unknown", "serving", "rebalancing", "blocked", "dead")}
        assert page.one("wideep_lb_rebalancing_seconds", engine=0) == 0
        wait_for(lambda: lb_page(exporter).one("wideep_lb_rebalancing_seconds", engine=3) > 0)
        assert promtool(page.text) == []
        for path, engine, up in (("/lb/0/metrics", 0, 1), ("/lb/3/metrics", 3, 0), ("/lb/9/metrics", 9, 0)):
            page = lb_page(exporter, path)
            assert set(page.families) == FAMILIES
            assert page.of("wideep_lb_up") == [({"engine": str(engine)}, up)]
            assert page.one("wideep_lb_ready") == up
            assert page.one("wideep_lb_blocked") == (engine == 3)
            assert promtool(page.text) == []
        for path in ("/lb/x/metrics", "/lb/", "/lb/0/", "/lb/0/metrics/", "/lb/metrics2", "/lb/99999/metrics"):
            assert exporter.get(path)[0].status == 404


# ---- /api/v1/state ----------------------------------------------------------------------------------------------


def get_state(exporter):
    response, body = exporter.get("/api/v1/state")
    assert response.status == 200 and response.getheader("Content-Type") == "application/json"
    assert body.endswith(b"\n")
    return json.loads(body)


def test_state_agrees_with_the_page(shm):
    (shm / "wideep.default.e9.r9").write_bytes(b"junk" * 2000)
    with exporting(shm) as exporter, simulating(
            shm, "--engines", 2, "--ranks", 2, "--passes-per-second", 40, "--passes", 100, "--linger", 300) as sim:
        sim.expected()
        # Two pages of two collections agree once nothing moves.
        page = exporter.wait_page(lambda page: page.one("wideep_ep_ranks_seen") == 4 and page.one(
            "wideep_eplb_passes_total", layer=0) == 100)
        document = get_state(exporter)
        assert document["state"] == "serving"
        assert abs(document["time"] - time.time()) < 60
        (build,) = page.of("wideep_build_info")
        assert (document["version"], document["commit"]) == (build[0]["version"], build[0]["commit"])
        assert [(e["engine"], e["state"], e["ranks_up"]) for e in document["engines"]] == [
            (0, "serving", 2), (1, "serving", 2)]
        for engine in document["engines"]:
            number = engine["engine"]
            assert {r["rank"]: r["state"] for r in engine["ranks"]} == {2 * number: "live", 2 * number + 1: "live"}
            (model,) = engine["models"]
            assert model["wideep_eplb_blocked"] == page.one("wideep_eplb_blocked", engine=number)
            assert model["wideep_eplb_recording"] == page.one("wideep_eplb_recording", engine=number)
            for phase, value in engine["vllm:dbo_active"].items():
                assert value == page.one("vllm:dbo_active", engine=number, phase=phase)
        (group,) = document["groups"]
        assert (group["ep_size"], group["ranks_seen"], group["passes_joined"], group["passes_incomplete"]) == (4, 4, 100, 0)
        by_layer = [page.one("vllm:eplb_balancedness_ratio", engine=0, layer=layer) for layer in range(group["layers"])]
        assert group["balancedness"]["by_layer"] == pytest.approx(by_layer)
        worst = group["balancedness"]["worst_layer"]
        assert group["balancedness"]["worst"] == pytest.approx(min(by_layer)) and by_layer[worst] == min(by_layer)
        segments = {(s["state"], s["reason"]): s["files"] for s in document["segments"]}
        assert segments == page.segments()


def test_state_on_request(shm):
    """Tokens by rank and by expert, and the words for what is no such wish."""
    with exporting(shm, "--debug.per-expert") as exporter, simulating(
            shm, "--engines", 1, "--ranks", 2, "--passes-per-second", 40, "--passes", 60, "--linger", 300) as sim:
        sim.expected()
        page = exporter.wait_page(lambda page: page.one("wideep_eplb_passes_total", layer=0) == 60)
        (group,) = json.loads(exporter.get("/api/v1/state?loads&experts=1")[1])["groups"]
        for layer, row in enumerate(group["rank_tokens"]):
            assert row == [page.one("wideep_eplb_rank_tokens_total", layer=layer, ep_rank=rank) for rank in range(2)]
        assert group["expert_loads"]["layer"] == 1 and group["expert_loads"]["tokens"] == pytest.approx(
            [page.one("vllm:expert_load_per_expert_tokens_DEBUG", layer=1, expert_id=e) for e in range(group["experts"])])
        (group,) = json.loads(exporter.get("/api/v1/state")[1])["groups"]
        assert not {"rank_tokens", "expert_loads"} & set(group)
        for wish in ("experts=", "experts=x", "experts=1x", "experts=99999999999", "load"):
            assert exporter.get(f"/api/v1/state?{wish}")[0].status == 400, wish


def test_state_of_a_hostile_name(shm):
    name = b'\xff"\\\n\xe2\x82'
    with Writer() as writer, exporting(shm) as exporter:
        assert writer.create(shm, models=((name, 1, 2, 0),), engine=0, rank=0, ep=1)[0] == 0
        wait_for(lambda: get_state(exporter)["engines"])
        assert get_state(exporter)["engines"][0]["model_name"] == name.decode("utf-8", "replace")


# ---- load balancers ---------------------------------------------------------------------------------------------


HAPROXY = """
global
    stats socket {directory}/stats.sock mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend front
    bind 127.0.0.1:{front}
    default_backend engines
backend engines
    option httpchk GET /lb?engine=0
    http-check expect status 200
    server e0 127.0.0.1:{front} check port {exporter} inter 50ms rise 1 fall 1
"""


HAPROXY_PROGRAM = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")


@pytest.mark.skipif(not HAPROXY_PROGRAM, reason="no haproxy")
def test_haproxy_takes_a_stalled_engine_out(shm, tmp_path):
    with ranks(shm, 0) as (writer,), exporting(shm, NO_COLLECTIONS) as exporter:
        config = tmp_path / "haproxy.cfg"
        config.write_text(HAPROXY.format(directory=tmp_path, front=free_port(), exporter=exporter.port))
        proxy = subprocess.Popen([HAPROXY_PROGRAM, "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def server():
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(tmp_path / "stats.sock"))
                except OSError as error:
                    assert proxy.poll() is None
                    raise AssertionError("haproxy is not up yet") from error
                client.sendall(b"show stat\n")
                table = b"".join(iter(lambda: client.recv(65536), b"")).decode().splitlines()
            columns = table[0].removeprefix("# ").split(",")
            rows = [dict(zip(columns, line.split(","))) for line in table[1:]]
            return next((r["status"], r["check_code"]) for r in rows if r.get("svname") == "e0")

        try:
            wait_for(lambda: server() == ("UP", "200"))
            assert writer.ask("begin", 0, SYNC) == 0
            wait_for(lambda: server() == ("DOWN", "503"))
            assert writer.ask("end", 0) == 0
            wait_for(lambda: server() == ("UP", "200"))
        finally:
            proxy.kill()
            proxy.wait()
            proxy.stderr.close()

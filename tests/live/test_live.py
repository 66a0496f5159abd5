# SPDX-License-Identifier: Apache-2.0
"""The page at / in a real Chromium, against the real exporter and simulator: what it says is what the state says."""

import contextlib
import http.server
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest

from abi_helpers import BUILD
from exporter_helpers import exporting, shared_directory, simulating, wait_for
from test_advisor import EXPERTS, LAYERS, RANKS, Ranks, loads_by_layer, rank_loads

HERE = pathlib.Path(__file__).resolve().parent
PICTURES = BUILD / "live"
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>{}"


class Browser:
    def __init__(self, modules):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            ["node", HERE / "browser.mjs", modules, shutil.which("chromium"), self.profile.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __call__(self, do, **arguments):
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        line = self.process.stdout.readline()
        assert line, "the browser is gone"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def open(self, port, width=1280, height=900, scheme="light"):
        self("open", url=f"http://127.0.0.1:{port}/", width=width, height=height, scheme=scheme)

    def evaluate(self, code):
        return self("evaluate", code=code)

    def text(self, identity):
        return self.evaluate(f"document.getElementById({json.dumps(identity)}).textContent")

    def until(self, code, seconds=60):
        return wait_for(lambda: self.evaluate(code), seconds, pause=0.1)

    def headline(self, pattern, seconds=90):
        """Waits for it; the kind of verdict."""
        wait_for(lambda: re.search(pattern, self.text("headline")), seconds, pause=0.1)
        return self.evaluate("document.getElementById('verdict').dataset.kind")

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()


@pytest.fixture(scope="module")
def process():
    for program in ("node", "npm", "chromium"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, PICTURES)
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=PICTURES,
                          capture_output=True, text=True, timeout=500)
    if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr):
        pytest.skip("npm's registry cannot be reached: playwright-core is an npm package")
    assert done.returncode == 0, done.stderr
    browser = Browser(PICTURES)
    yield browser
    browser.stop()


@pytest.fixture
def expected_errors():
    """Patterns of console messages that a test makes happen: each ends its exporter before the page."""
    return ["net::ERR_(CONNECTION|EMPTY_RESPONSE|SOCKET|ABORTED)"]


@pytest.fixture
def browser(process, expected_errors):
    yield process
    report = process("report")
    assert not report["foreign"]
    assert not [e for e in report["errors"] if not any(re.search(p, e) for p in expected_errors)]


@contextlib.contextmanager
def instance(scenario, *flags, sim=("--passes-per-second", 40, "--seconds", 600)):
    with shared_directory() as directory, exporting(directory, "--advisor.interval=1s", *flags) as exporter, simulating(
            directory, "--scenario", scenario, "--engines", 2, "--ranks", 2, *sim) as simulator:
        simulator.started()
        exporter.simulator = simulator
        yield exporter


def get_state(exporter, query=""):
    return json.loads(exporter.get("/api/v1/state" + query)[1])


def percent(ratio):
    return f"{100 * ratio:.{1 if ratio < 0.1 else 0}f} %"


# ---- scenarios --------------------------------------------------------------------------------------------------


def test_steady(browser):
    with instance("steady", sim=("--passes-per-second", 40, "--passes", 120, "--linger", 600)) as exporter:
        browser.open(exporter.port)
        assert browser.headline("All is well: 2 engines serve, expert load is balanced to") == "good"
        exporter.simulator.expected()
        # Once nothing moves, the answer here and the page's own are of the same.
        exporter.wait_page(lambda page: page.one("wideep_eplb_passes_total", layer=0) == 120)
        at = get_state(exporter)["time"]
        browser.until(f"state.time > {at} + 1")
        state = get_state(exporter)
        rows = browser.evaluate("[...document.querySelectorAll('#engines tr')].map(r => [...r.cells].map(c => c.innerText))")
        assert [(r[0], r[1], r[3], r[6]) for r in rows] == [
            (str(e["engine"]), e["state"], f"{e['ranks_up']} of 2", e["model_name"]) for e in state["engines"]]
        (group,) = state["groups"]
        tiles = dict(browser.evaluate("[...tiles.kept].map(([key, tile]) => [key, tile.firstChild.textContent])"))
        assert tiles["now"] == f"{group['balancedness']['all_layers']:.2f}"
        assert tiles["worst"] == f"{group['balancedness']['worst']:.2f}"
        for key, name in (("cost", "imbalance_cost"), ("gain", "rearrangement_gain"), ("drift", "drift")):
            assert tiles[key] == percent(group[f"wideep_eplb_{name}_ratio"]), key
        assert tiles["reach"] == f"{group['achievable'][group['balancedness']['worst_layer']]:.2f}"
        health = dict(browser.evaluate("[...document.querySelectorAll('#health dt')].map(t => "
                                       "[t.textContent, t.nextSibling.textContent])"))
        assert health["Segments live"] == "6" and health["EPLB records lost"] == str(
            sum(state["exporter"]["wideep_records_lost_total"]["eplb"].values()))


@pytest.mark.parametrize("redundant, todo", [(0, "num_redundant_experts"), (32, "A rearrangement now would win back")])
def test_hot_expert(browser, redundant, todo):
    with instance("hot", "--debug.per-expert", sim=("--passes-per-second", 40, "--seconds", 600, "--redundant",
                                                    redundant)) as exporter:
        browser.open(exporter.port)
        assert browser.headline("Uneven expert load costs .*rank .* times the mean") == "note"
        wait_for(lambda: todo in browser.text("advice"))
        cost = float(re.search(r"costs ([\d.]+) %", browser.text("headline")).group(1)) / 100
        assert cost == pytest.approx(get_state(exporter)["groups"][0]["wideep_eplb_imbalance_cost_ratio"], abs=0.05)


def test_synchronous_stall(browser):
    with instance("stall") as exporter:
        browser.open(exporter.port)
        assert browser.headline(r"Engines 0, 1 stand still for .* in a synchronous rearrangement") == "bad"
        browser.until("events.filter(e => e.settled && e.mode === 'sync').length >= 2")
        took = browser.evaluate("events.filter(e => e.settled).map(e => e.end - e.start)")
        assert all(1.9 < seconds < 3.5 for seconds in took)
        assert browser.headline("Synchronous rearrangements have stopped engine 0, 1") == "note"
        # What was seen is what was counted while the page was there.
        seen = browser.evaluate("[...'01'].map(n => events.filter(e => e.engine === n && e.settled).length)")
        counted = [e["models"][0]["vllm:eplb_rearrangements_total"] for e in get_state(exporter)["engines"]]
        assert all(s <= c for s, c in zip(seen, counted))


def test_asynchronous_rearrangement(browser):
    with instance("async", sim=("--passes-per-second", 20, "--seconds", 600)) as exporter:
        browser.open(exporter.port)
        assert browser.headline("rearranging experts asynchronously .* requests are served") == "note"
        browser.until("events.some(e => e.settled && e.mode === 'async')")
        assert not browser.evaluate("events.some(e => e.mode === 'sync')")
        browser.until("document.querySelectorAll('#timeline rect.async').length > 0")


def test_fallout_storm(browser):
    with instance("fallout") as exporter:
        browser.open(exporter.port)
        assert browser.headline("Dual batch overlap falls out in .* mostly for empty second ubatch") == "bad"
        assert re.search(r"raise --dbo-(prefill|decode)-token-threshold", browser.text("advice"))
        # The last point of the chart, from counts of the state by hand.
        first, last = browser.evaluate("[history.at(-1), history.find(h => h.time >= history.at(-1).time - 10)].map("
                                       "h => ({time: h.time, dbo: h.dbo, rates: h.rates}))")[::-1]
        rates = [sum(last["dbo"][e][p]["empty_second_ubatch"] - first["dbo"][e][p]["empty_second_ubatch"]
                     for p in ("prefill", "decode")) / (last["time"] - first["time"]) for e in "01"]
        assert last["rates"]["empty_second_ubatch"] == pytest.approx(max(rates)) and max(rates) > 0


def test_death_of_a_rank(browser):
    with instance("death", sim=("--passes-per-second", 40, "--passes", 160, "--linger", 600)) as exporter:
        browser.open(exporter.port)
        assert browser.headline(r"Engine \d is dead for .*: rank \d died\.") == "bad"
        dead = [e for e in get_state(exporter)["engines"] if e["state"] == "dead"]
        ranks = [r["rank"] for e in dead for r in e["ranks"] if r["state"] == "dead"]
        assert browser.text("headline").startswith(f"Engine {dead[0]['engine']} ")
        assert browser.text("headline").endswith(f"rank {ranks[0]} died.")


def test_exporter_killed(browser):
    with instance("steady") as exporter:
        browser.open(exporter.port)
        browser.headline("All is well")
        exporter.process.send_signal(signal.SIGKILL)
        assert browser.headline("The exporter is gone: no answer for") == "bad"
        assert "Engines do not depend on it" in browser.text("advice")
        assert browser.evaluate("document.body.className") == "old"


def test_exporter_stopped(browser):
    with instance("steady") as exporter:
        browser.open(exporter.port)
        browser.headline("All is well")
        exporter.process.send_signal(signal.SIGSTOP)
        browser.headline("The exporter is gone: .*it takes too long")
        exporter.process.send_signal(signal.SIGCONT)
        assert browser.headline("All is well") == "good"


# ---- numbers, colours, keys -------------------------------------------------------------------------------------


@pytest.fixture
def ranks():
    with shared_directory() as directory, Ranks(directory) as ranks:
        ranks.directory = directory
        ranks.use(loads_by_layer(1))
        yield ranks


def painted(share):
    """Blue, white and orange of the light theme, by log2 between a quarter and four times the mean."""
    under, even, over = (0x00, 0x72, 0xb2), (0xf7, 0xf7, 0xf5), (0xe0, 0x60, 0x00)
    t = max(-1, min(1, math.log2(share) / 2 if share > 0 else -1))
    return [e + ((under if t < 0 else over)[i] - e) * abs(t) for i, e in enumerate(even)]


def test_heat_map_and_keys(browser, ranks, expected_errors):
    expected_errors.append("willReadFrequently")  # this test reads the canvas
    expected = []
    for layer in loads_by_layer(1):
        loads = rank_loads(layer)
        expected.append([load / (sum(loads) / RANKS) for load in loads])
    with exporting(ranks.directory, "--web.enable-admin-api", "--advisor.interval=500ms") as exporter:
        browser.open(exporter.port)
        browser.until("loads !== null")
        browser.evaluate("document.getElementById('heat').focus()")
        browser.evaluate("moveCell(0, 0)")
        for layer in range(LAYERS):
            for rank in range(RANKS):
                shown = browser.text("cell")
                assert shown.startswith(f"Rank {rank}, layer {layer}: {expected[layer][rank]:.2f} × the mean"), shown
                browser("press", key="ArrowRight")
            for _ in range(RANKS):
                browser("press", key="ArrowLeft")
            browser("press", key="ArrowDown")
        centres = browser.evaluate("""(() => {
            const {layers, ranks, cell} = heatShape(), map = document.getElementById('heat'), d = devicePixelRatio;
            const wide = (map.width / d - HEAT.left) / ranks;
            return loads.rows.map((row, l) => row.tokens.map((t, r) => [...map.getContext('2d').getImageData(
                (HEAT.left + (r + 0.5) * wide) * d, (HEAT.top + (l + 0.5) * cell) * d, 1, 1).data].slice(0, 3)));
        })()""")
        for row, shares in zip(centres, expected):
            for colour, share in zip(row, shares):
                assert colour == pytest.approx(painted(share), abs=3), share
        # Enter chooses the layer, which the keys have left at the last one.
        browser("press", key="Enter")
        assert browser.evaluate("document.getElementById('layer').value") == str(LAYERS - 1)


def test_experts_by_button(browser, ranks):
    layer = 1
    tokens = [sum(Ranks.SHARES) * t for t in loads_by_layer(1)[layer]]
    order = sorted(range(EXPERTS), key=lambda e: (-tokens[e], e))
    with exporting(ranks.directory, "--web.enable-admin-api", "--eplb.window=1s") as exporter:
        browser.open(exporter.port)
        browser.until("state !== null && !document.getElementById('debug').disabled")
        browser.evaluate("chooseLayer(1)")
        browser.evaluate("document.getElementById('debug').focus()")
        browser("press", key="Enter")
        browser.until("shownExperts() !== null")
        assert re.fullmatch(r"(5 min 0 s|4 min \d+ s) left", browser.text("countdown"))
        assert get_state(exporter)["debug"]["on"]
        wait_for(lambda: browser.evaluate("shownExperts().map(e => e.tokens)") == pytest.approx(sorted(tokens)[::-1]))
        assert browser.evaluate("shownExperts().map(e => e.expert)") == order
        browser.evaluate("document.getElementById('experts').focus()")
        browser("press", key="ArrowRight")
        assert browser.text("expert").startswith(f"Layer {layer}, expert {order[1]}, 2 of {EXPERTS}: ")
        browser("click", selector="#debug")
        browser.until("!state.debug.on && document.getElementById('experts').hidden")
        assert not get_state(exporter)["debug"]["on"]


def test_without_admin(browser, ranks):
    with exporting(ranks.directory) as exporter:
        browser.open(exporter.port)
        browser.until("state !== null")
        assert browser.evaluate("document.getElementById('debug').disabled")
        assert "--web.enable-admin-api" in browser.text("expert")


def test_queries_by_key(browser):
    """Tab reaches every number; its tooltip has a metric that there is; Enter copies. The queries are asked elsewhere."""
    with instance("default") as exporter:
        browser.open(exporter.port)
        browser.until("history.length > 2 && document.querySelectorAll('button.v').length > 20")
        page = exporter.scrape()
        families = {key.partition("{")[0] for key in page} | {"wideep_lb_state"}
        for _ in range(30):
            browser("press", key="Tab")
            if browser.evaluate("document.activeElement.className") == "v":
                break
        assert browser.evaluate("document.activeElement.className") == "v"
        assert not browser.evaluate("document.getElementById('tip').hidden")
        browser("press", key="Enter")
        browser.until("document.getElementById('tip').textContent.includes('Copied.')")
        numbers = browser.evaluate("[...document.querySelectorAll('button.v')].map(b => [b.metric, b.query, b.textContent])")
        for metric, query, text in numbers:
            assert metric in families or metric + "_count" in families, metric
            assert metric in query and text and text != "–"


def test_hostile_name(browser):
    with instance("steady", sim=("--passes-per-second", 40, "--seconds", 600, "--model", HOSTILE)) as exporter:
        browser.open(exporter.port)
        browser.until("history.length > 2")
        assert browser.evaluate("document.querySelectorAll('#engines tr')[0].cells[6].textContent") == HOSTILE
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        query = browser.evaluate("document.querySelector('#tiles button.v').query")
        assert 'model_name="<img src=x onerror=alert(1)>\\"\'&</script>{}"' in query


# ---- an exporter that says what it is told ----------------------------------------------------------------------


class Replay(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, kind, body = self.server.answers.get(self.path.partition("?")[0], (404, "text/plain", b""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_stale(browser, expected_errors):
    """The same snapshot again and again; then an answer that is none."""
    expected_errors.append("503")
    with instance("steady") as exporter:
        exporter.wait_page(lambda page: page.of("vllm:eplb_balancedness_ratio"))
        page, state = exporter.get("/")[1], exporter.get("/api/v1/state?loads")[1]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    server.answers = {"/": (200, "text/html; charset=utf-8", page), "/api/v1/state": (200, "application/json", state)}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.open(server.server_port)
        browser.headline("All is well")
        assert browser.headline("stale: the exporter answers, but its snapshot has stood still for") == "bad"
        server.answers["/api/v1/state"] = (503, "text/plain", b"a collection is under way for too long\n")
        browser.headline("The exporter is gone: .*503: a collection is under way")
    finally:
        server.shutdown()
        server.server_close()


# ---- to be looked at --------------------------------------------------------------------------------------------


def test_themes_and_widths(browser):
    """Nothing sticks out; the pictures are in build/live/."""
    with instance("default", sim=("--passes-per-second", 40, "--seconds", 600, "--layers", 26, "--experts", 64,
                                  "--redundant", 16)) as exporter:
        for scheme in ("light", "dark"):
            for width in (1280, 400):
                browser.open(exporter.port, width=width, scheme=scheme)
                browser.until("loads !== null && history.length > 3")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                browser("shot", path=os.fspath(PICTURES / f"page-{width}-{scheme}.png"), full=True)
        dark, light = browser.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(244, 245, 247)"
        assert dark != light

# SPDX-License-Identifier: Apache-2.0
"""What wideep-exporter serves as gauges, against a model of it that reads the same segments by their documented layout."""

import time

import pytest

from exporter_helpers import check_equal, exporting, shared_directory, simulating
from segment_reader import REDUCED, ranks_of

PACED = ["--passes-per-second", 40, "--linger", 300]
SLICES = 40  # a window, see GROUP_SLICES
AVG, MAX, RATIO = WINDOWED = ["vllm:eplb_avg_tokens_per_rank", "vllm:eplb_max_tokens_per_rank",
                              "vllm:eplb_balancedness_ratio"]
DEBUG = "vllm:expert_load_per_expert_tokens_DEBUG"


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


# ---- the model --------------------------------------------------------------------------------------------------


def passes_of(ranks, m):
    """{pass: (time of its newest record, {layer: (avg, max)})} of what the rings still hold: sums over the ranks first,
    then the maximum; a REDUCED record of the lowest rank stands for its layer."""
    times, sums, reduced = {}, {}, {}
    for s in ranks:
        for r in s.records():
            if r["model"] != m:
                continue
            at = r["pass"], r["layer"]
            times[r["pass"]] = max(times.get(r["pass"], 0), r["time"])
            if r["flags"] & REDUCED:
                reduced.setdefault(at, (r["avg"], r["max"]))  # ranks are in order
            else:
                sums[at] = [a + b for a, b in zip(sums.get(at, [0] * s.ep_size), r["tokens"])]
    figures = {at: (sum(row) / len(row), max(row)) for at, row in sums.items()} | reduced
    return {number: (when, {layer: figures[p, layer] for p, layer in figures if p == number})
            for number, when in times.items()}


def window_of(ranks, m, window):
    """{layer: (mean avg, mean max)} over the newest `window` seconds of passes, and whether the rings hold all of it."""
    passes = passes_of(ranks, m)
    index = {number: when // (window * 10**9 // SLICES) for number, (when, _) in passes.items()}
    inside = [number for number in passes if index[number] > max(index.values()) - SLICES]
    out = {}
    for layer in range(ranks[0].models[m][1]):
        figures = [passes[number][1][layer] for number in inside if layer in passes[number][1]]
        out[layer] = tuple(sum(column) / len(figures) for column in zip(*figures))
    return out, len(inside), len(inside) < len(passes)


def experts_of(ranks, m):
    """{(layer, expert): tokens per pass}, all that was recorded."""
    out = {}
    for s in ranks:
        recorded = s.model_totals(m)[0]
        for layer, row in enumerate(s.plane(6, m)):
            for expert, tokens in enumerate(row):
                out[layer, expert] = out.get((layer, expert), 0) + tokens / recorded
    return out


def agrees(page, shm, window, partly=False):
    """Every windowed gauge is the model's. `partly`: the window has left passes behind that the rings still hold."""
    ranks = ranks_of(shm)
    for m, (name, layers, _, _) in enumerate(ranks[0].models):
        means, inside, left = window_of(ranks, m, window)
        assert left == partly and inside >= 10
        for engine in {s.engine for s in ranks}:
            for layer, (avg, top) in means.items():
                labels = {"model_name": name.decode(), "engine": engine, "layer": layer}
                assert page.one(AVG, **labels) == pytest.approx(avg, rel=1e-9)
                assert page.one(MAX, **labels) == pytest.approx(top, rel=1e-9)
                assert page.one(RATIO, **labels) == pytest.approx(avg / top, rel=1e-9)
        assert len(page.of(AVG, model_name=name.decode())) == layers * len({s.engine for s in ranks})
    return True


# ---- the window -------------------------------------------------------------------------------------------------

RUNS = {
    "one": ["--engines", 1],
    "two": ["--engines", 2],
    "eight": ["--engines", 8],
    "two-models": ["--model", "t", "--model", "d:1:32:0"],
    "reduced": ["--scenario", "reduced", "--engines", 4],
    "reduced-all": ["--scenario", "reduced-all", "--engines", 4],
    "mixed": ["--scenario", "mixed", "--engines", 4],
}


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS.keys())
def test_means_of_a_whole_run(shm, flags):
    with exporting(shm, "--eplb.window=60s") as exporter, simulating(shm, *PACED, "--passes", 60, *flags) as sim:
        expected = sim.expected()
        exporter.wait_page(lambda page: check_equal(page, expected) and agrees(page, shm, 60))


def test_the_window_slides(shm):
    """Passes leave it by their own time; with no pass more, it stands."""
    with exporting(shm, "--eplb.window=1s") as exporter, simulating(shm, *PACED, "--passes", 150) as sim:
        expected = sim.expected()
        page = exporter.wait_page(lambda page: check_equal(page, expected) and agrees(page, shm, 1, partly=True))
        whole = page.one("wideep_eplb_avg_tokens_total", layer=0) / page.one("wideep_eplb_passes_total", layer=0)
        assert page.one(AVG, engine=0, layer=0) != pytest.approx(whole, rel=1e-6)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert agrees(exporter.scrape(), shm, 1, partly=True)
            time.sleep(0.2)


# ---- per expert -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--engines", 1], ["--engines", 4], ["--model", "t", "--model", "d:1:32:0"]])
def test_debug_series(shm, flags):
    """Tokens per pass of each logical expert over all ranks, whatever the rearrangements did to the map."""
    shape = ["--passes", 80, "--experts", 30, "--redundant", 2]
    with exporting(shm, "--debug.per-expert", "--eplb.window=60s") as exporter, \
            simulating(shm, *PACED, *shape, *flags) as sim:
        expected = sim.expected()

        def agree(page):
            ranks = ranks_of(shm)
            check_equal(page, expected)
            assert {labels["engine"] for labels, _ in page.of(DEBUG)} == {"0"}
            for m, (name, layers, logical, _) in enumerate(ranks[0].models):
                loads = experts_of(ranks, m)
                assert len(loads) == len(page.of(DEBUG, model_name=name.decode())) == layers * logical
                for (layer, expert), load in loads.items():
                    labels = {"model_name": name.decode(), "layer": layer, "expert_id": expert}
                    assert page.one(DEBUG, **labels) == pytest.approx(load, rel=1e-9)
            return True

        exporter.wait_page(agree)


def test_debug_series_vanish_when_their_time_is_up(shm):
    flags = ["--passes-per-second", 100, "--seconds", 0]
    with simulating(shm, *flags) as sim:
        sim.started()
        began = time.monotonic()
        with exporting(shm, "--debug.per-expert", "--debug.duration=10s") as exporter:
            page = exporter.wait_page(lambda page: page.of(DEBUG))
            assert len(page.of(DEBUG)) == 4 * 32
            exporter.wait_page(lambda page: not page.of(DEBUG))
            assert time.monotonic() - began >= 10
            assert DEBUG not in exporter.scrape().families


def test_no_debug_unless_asked(shm):
    with exporting(shm) as exporter, simulating(shm, *PACED, "--passes", 40) as sim:
        expected = sim.expected()
        assert not exporter.wait_page(lambda page: check_equal(page, expected)).of(DEBUG)


def test_throughput_and_first_engine_label(shm):
    flags = ["--throughput.interval=1s", "--eplb.engine-label=first", "--collect.interval=50ms"]
    with exporting(shm, *flags) as exporter, simulating(shm, *PACED, "--passes", 160) as sim:
        page = exporter.wait_page(lambda page: len(page.of("vllm:prompt_throughput_toks_per_s")) == 2)
        kinds = ("prompt", "generation")
        rate = lambda page: {(k, e): page.one(f"vllm:{k}_throughput_toks_per_s", engine=e) for k in kinds for e in (0, 1)}
        last = rate(page)
        assert set(last.values()) == {0}
        served = dict.fromkeys(last, 0.0)
        idle_since = None
        while idle_since is None or time.monotonic() < idle_since + 3:
            page = exporter.scrape()
            now = rate(page)
            for which, value in now.items():
                served[which] += value if value != last[which] else 0  # each lasts a second
            if sim.file.exists():
                idle_since = idle_since or time.monotonic()
            last = now
            time.sleep(0.05)
        assert set(last.values()) == {0}
        for (kind, engine), value in served.items():
            tokens = sum(v for _, v in page.of(f"wideep_{kind}_tokens_total", engine=engine))
            assert tokens > 0 and value == pytest.approx(tokens, rel=0.3), (kind, engine)
        for name in WINDOWED:
            assert {labels["engine"] for labels, _ in page.of(name)} == {"0"}
        assert {labels["engine"] for labels, _ in page.of("vllm:dbo_active")} == {"0", "1"}

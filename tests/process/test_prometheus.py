# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the exporter while the simulator runs; the dashboards' queries are then asked of it.

What Prometheus answers is compared with the simulator's books (FILE of --expect) and with the page itself. The checks
of a run share one test: a run takes half a minute, and parallel workers would each make their own.
"""
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

import pytest

BUILD = pathlib.Path(os.environ.get("WIDEEP_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
PROMETHEUS = shutil.which("prometheus")
REASONS = {"empty_second_ubatch", "coordination_failure", "other"}
ENGINES, LAYERS, EXPERTS, SECONDS = 8, 8, 64, 25

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")


# ---- samples ----------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def identity(text):
    """The family and labels of a series as it is written on the page and in FILE."""
    name, labels = SAMPLE.match(text).groups()
    return name, frozenset(LABEL.findall(labels or ""))


# What Prometheus 2.42 sends: the page that it reads, in whichever format, has the same samples.
ACCEPT = ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
          "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")


def parsed(page):
    lines = [line for line in page.splitlines() if line and not line.startswith("#")]
    out = {}
    for line in lines:
        series, value = line.rsplit(" ", 1)
        assert identity(series) not in out, f"{series} is on the page twice"
        out[identity(series)] = float(value)
    return out


def family(series, name, **labels):
    """Labels (as a dict) and value of each series of a family that has the given labels."""
    return [(dict(key[1]), value) for key, value in series.items()
            if key[0] == name and set(labels.items()) <= key[1]]


def get(url, accept=None):
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def until(condition, seconds, what):
    """Polls for a true value; what it was waiting for is in the failure."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            last = condition()
            if last:
                return last
        except OSError as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what} (last: {last!r})")


def near(got, want, part=1e-9):
    return math.isclose(got, want, rel_tol=part, abs_tol=1e-9)


# ---- programs ---------------------------------------------------------------------------------------------------


def finish(process, seconds=10):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Sim:
    """A simulator in the background; its output goes to files."""

    def __init__(self, directory, work, name, *flags):
        self.file, self.out = work / f"{name}.json", work / f"{name}.out"
        with open(self.out, "wb") as out, open(work / f"{name}.err", "wb") as err:
            self.process = subprocess.Popen(
                [BUILD / "wideep-sim", "--shm.dir", directory, "--expect", self.file, *map(str, flags)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def until(self, word, seconds):
        until(lambda: re.search(rf"^{word}\b.*\n", self.out.read_text(), re.M), seconds,
              lambda: f"{word!r} from wideep-sim, which wrote {self.out.read_text()[-300:]!r}")

    def books(self):
        return {identity(key): value for key, value in json.loads(self.file.read_text()).items()}

    def kill_all(self):
        """SIGKILL to the simulator and to all that it started and named."""
        pids = [int(pid) for pid in re.findall(r" pid=(\d+)$", self.out.read_text(), re.M)]
        self.process.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Rig:
    """An exporter on a shared-memory directory of its own, and a Prometheus that scrapes it every second."""

    TARGET_LABELS = {}

    def __init__(self, stack, *exporter_flags):
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.shm = pathlib.Path(tempfile.mkdtemp(prefix="wideep-prometheus-test.", dir=base))
        stack.callback(shutil.rmtree, self.shm, ignore_errors=True)
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="wideep-prometheus-test."))
        stack.callback(shutil.rmtree, self.work, ignore_errors=True)
        self.stack = stack
        self.began = time.time()
        log = self.work / "exporter.log"
        with open(log, "wb") as err:
            exporter = subprocess.Popen(
                [BUILD / "wideep-exporter", f"--shm.dir={self.shm}", "--web.listen-address=127.0.0.1:0",
                 *exporter_flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
        stack.callback(finish, exporter)
        pattern = re.compile(r"msg=listening address=(127\.0\.0\.1:\d+)")
        self.address = until(lambda: pattern.search(log.read_text()), 10, lambda: log.read_text())[1]
        self.start_prometheus()
        until(lambda: self.value("up") == 1, 60, lambda: self.trouble())

    def start_prometheus(self):
        config = self.work / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1h}\n"
            f"scrape_configs: [{{job_name: wideep, static_configs: [{{targets: ['{self.address}'],"
            f" labels: {json.dumps(self.TARGET_LABELS)}}}]}}]\n")
        log = self.work / "prometheus.log"
        for attempt in range(3):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            self.api = f"http://127.0.0.1:{port}"
            with open(log, "wb") as err:
                process = subprocess.Popen(
                    [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={self.work / f'tsdb{attempt}'}",
                     f"--web.listen-address=127.0.0.1:{port}"],
                    stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd=self.work)
            self.stack.callback(finish, process)

            def ready():
                return process.poll() is not None or get(self.api + "/-/ready")

            until(ready, 30, lambda: log.read_text()[-1000:])
            if process.poll() is None:
                return
        raise AssertionError(f"Prometheus did not start: {log.read_text()[-1000:]}")

    def trouble(self):
        targets = json.loads(get(self.api + "/api/v1/targets"))["data"]["activeTargets"]
        return [(t["health"], t["lastError"]) for t in targets]

    def sim(self, name, *flags):
        sim = Sim(self.shm, self.work, name, *flags)
        self.stack.callback(finish, sim.process)
        return sim

    def page(self, accept=None):
        return get(f"http://{self.address}/metrics", accept)

    def ask(self, path, **parameters):
        url = f"{self.api}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            answer = json.loads(get(url))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]["result"]

    @staticmethod
    def labels(metric):
        return {k: v for k, v in metric.items() if k not in ("job", "instance")}

    def instant(self, query, at=None):
        """[(labels, value)] of an instant query; never empty."""
        answer = self.ask("query", query=query, **({} if at is None else {"time": f"{at:.3f}"}))
        assert answer, f"{query} answers nothing"
        return [(self.labels(row["metric"]), float(row["value"][1])) for row in answer]

    def value(self, query):
        answer = self.ask("query", query=query)
        return float(answer[0]["value"][1]) if len(answer) == 1 else None

    def raw(self, selector, at):
        """[(labels, [(time, value)])]: the samples themselves, of a selector with a range."""
        answer = self.ask("query", query=selector, time=f"{at:.3f}")
        assert answer, f"{selector} answers nothing"
        return [(self.labels(row["metric"]), [(t, float(v)) for t, v in row["values"]]) for row in answer]

    def everything(self, at=None):
        out = {}
        for labels, value in self.instant('{job="wideep"}', at):
            name = labels.pop("__name__")
            out[name, frozenset(labels.items())] = value
        return out

    def differences(self, books):
        """What of the books Prometheus answers otherwise. Sums of floats may be added in another order."""
        have = self.everything()
        return {key: (have.get(key), want) for key, want in books.items()
                if key not in have or not (have[key] == want or isinstance(want, float) and near(have[key], want))}

    def settle(self, books):
        """Waits until Prometheus has all of the books; returns a time at which it answers with them."""
        def same():
            different = self.differences(books)
            settled.clear()
            settled.update(different)
            return not different
        settled = {}
        until(same, 30, lambda: f"{len(settled)} of {len(books)} differ from FILE, (Prometheus, FILE): "
                                f"{list(settled.items())[:5]}; target {self.trouble()}")
        return time.time()


# ---- a run and the queries over it ------------------------------------------------------------------------------

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@pytest.fixture(scope="module")
def run():
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, "--throughput.interval=1s", "--debug.per-expert")
        sim = rig.sim("main", "--engines", ENGINES, "--layers", LAYERS, "--experts", EXPERTS, "--redundant", 16,
                      "--passes-per-second", 50, "--seconds", SECONDS, "--linger", 60)
        sim.until("started", 30)
        rig.started = time.time()
        sim.until("done", SECONDS + 60)
        rig.done = time.time()
        rig.books = sim.books()
        rig.end = rig.settle(rig.books)  # FILE's totals are what Prometheus has at this time
        rig.held = parsed(rig.page())  # gauges keep their values now that no pass is added
        yield rig


def test_dashboards(run):
    failures = []
    for function in CHECKS:
        try:
            function(run)
        except AssertionError:
            failures.append(f"---- {function.__name__}\n{traceback.format_exc(limit=-3)}")
    assert not failures, "\n" + "\n".join(failures)


def every_engine_and_layer():
    return {(str(e), str(layer)) for e in range(ENGINES) for layer in range(LAYERS)}


def by(rows, *names):
    out = {}
    for labels, value in rows:
        key = tuple(labels[name] for name in names)
        key = key if len(names) > 1 else key[0]
        assert key not in out, (names, key)
        out[key] = value
    return out


def whole_run(run):
    """A range, in seconds, that ends at run.end and begins before the first pass."""
    return math.ceil(run.end - run.started) + 5


@check
def target_is_up_and_every_sample_arrives(run):
    assert run.instant("up") == [({"__name__": "up"}, 1.0)], run.trouble()
    # A scrape may come too late on a busy machine; a page that Prometheus cannot read fails every time.
    assert run.instant("avg_over_time(up[5m])")[0][1] > 0.8, run.trouble()
    for accept in (None, ACCEPT):
        until(lambda: run.value("scrape_samples_scraped") == len(parsed(run.page(accept))), 20,
              lambda: (run.value("scrape_samples_scraped"), len(parsed(run.page(accept)))))
    assert run.value("scrape_samples_post_metric_relabeling") == run.value("scrape_samples_scraped")


@check
def all_of_the_page_is_in_prometheus(run):
    have = run.everything()
    missing = set(parsed(run.page())) - set(have)
    assert not missing, sorted(missing, key=str)[:5]


@check
def totals_equal_the_books(run):
    names = {name for name, _ in run.books}
    assert {"vllm:ubatch_token_count_bucket", "vllm:eplb_rearrangement_duration_seconds_bucket",
            "wideep_eplb_pass_balancedness_bucket", "vllm:dbo_fallout_total", "wideep_prompt_tokens_total",
            "wideep_eplb_avg_tokens_total", "wideep_eplb_rank_tokens_total"} <= names
    assert not run.differences(run.books)
    assert sum(value for _, value in family(run.books, "wideep_generation_tokens_total")) > 0


@check
def nothing_was_lost(run):
    for query in ("sum(wideep_eplb_passes_incomplete_total)", "sum(wideep_records_lost_total)",
                  "sum(wideep_series_dropped)"):
        assert run.instant(query, run.end) == [({}, 0.0)], query
    for labels, samples in run.raw(f'{{__name__=~"(wideep|vllm).*_(total|bucket|count|sum)"}}[{whole_run(run)}s]',
                                   run.end):
        values = [value for _, value in samples]
        assert values == sorted(values), f"a total fell: {labels} {values}"


@check
def balancedness_over_time(run):
    got = by(run.instant("vllm:eplb_balancedness_ratio", run.end), "engine", "layer")
    page = by(family(run.held, "vllm:eplb_balancedness_ratio"), "engine", "layer")
    assert got == page and set(got) == every_engine_and_layer() and all(0 < value <= 1 for value in got.values())
    for labels, values in run.raw(f'vllm:eplb_balancedness_ratio{{engine="0"}}[{SECONDS - 5}s]', run.done):
        assert len(values) >= SECONDS // 2 and all(0 < value <= 1 for _, value in values), labels
        assert len({value for _, value in values}) > 5, "does not move with the drifting loads"


@check
def balancedness_of_a_window(run):
    ratio = "rate(wideep_eplb_avg_tokens_total[{0}s]) / rate(wideep_eplb_max_tokens_total[{0}s])"
    avg = by(family(run.books, "wideep_eplb_avg_tokens_total"), "layer")
    top = by(family(run.books, "wideep_eplb_max_tokens_total"), "layer")
    for when in (run.done - 10, run.done, run.end):
        got = by(run.instant(ratio.format(30), when), "layer")
        assert len(got) == LAYERS and all(0 < value <= 1 for value in got.values()), (when, got)
    got = by(run.instant(ratio.format(whole_run(run)), run.end), "layer")
    for layer, value in got.items():
        assert near(value, avg[layer] / top[layer], 0.02), (layer, value, avg[layer] / top[layer])


@check
def imbalance(run):
    got = by(run.instant("vllm:eplb_max_tokens_per_rank - vllm:eplb_avg_tokens_per_rank", run.end),
             "engine", "layer")
    top = by(family(run.held, "vllm:eplb_max_tokens_per_rank"), "engine", "layer")
    avg = by(family(run.held, "vllm:eplb_avg_tokens_per_rank"), "engine", "layer")
    ratio = by(family(run.held, "vllm:eplb_balancedness_ratio"), "engine", "layer")
    assert set(got) == every_engine_and_layer() and min(got.values()) >= 0
    assert got == {key: top[key] - avg[key] for key in top}
    assert all(near(ratio[key], avg[key] / top[key]) for key in top), "the ratio is not avg / max"
    # One group: all its engines show the same.
    for layer in range(LAYERS):
        assert len({got[str(e), str(layer)] for e in range(ENGINES)}) == 1


@check
def rearrangements(run):
    rows = run.instant("max by (model_name) (max_over_time(vllm:eplb_rebalancing[1m]))", run.end)
    assert [labels for labels, _ in rows] == [{"model_name": "sim"}] and rows[0][1] in (0, 1)
    want = max(value for _, value in family(run.books, "vllm:eplb_rearrangements_total"))
    assert want > 0
    assert run.instant("max by (model_name) (vllm:eplb_rearrangements_total)", run.end) == [
        ({"model_name": "sim"}, want)]
    modes = run.instant("sum(max by (mode) (wideep_eplb_rearrangements_by_mode_total))", run.end)
    assert modes == [({}, want)]
    increase = run.instant(f"max by (model_name) (increase(vllm:eplb_rearrangements_total[{whole_run(run)}s]))",
                           run.end)[0][1]
    assert 0.7 * want <= increase <= 1.3 * want + 1, (increase, want)


@check
def fallout_rate_by_reason(run):
    span = whole_run(run)
    books = {reason: {value for _, value in family(run.books, "vllm:dbo_fallout_total", reason=reason)}
             for reason in REASONS}
    query = "sum by (reason) (max by (model_name, reason) (rate(vllm:dbo_fallout_total[{}s])))"
    got = by(run.instant(query.format(30), run.done), "reason")
    assert set(got) == REASONS and all(value > 0 for value in got.values())
    got = by(run.instant(query.format(span), run.end), "reason")
    for reason in REASONS:
        assert len(books[reason]) == 1, "a decision of the group is counted differently by its engines"
        want = max(books[reason])
        assert want > 0 and 0.7 * want <= got[reason] * span <= 1.3 * want + 1, (reason, got[reason] * span, want)
    naive = by(run.instant(f"sum by (reason) (rate(vllm:dbo_fallout_total[{span}s]))", run.end), "reason")
    assert all(near(naive[reason], ENGINES * got[reason], 0.05) for reason in REASONS)


@check
def throughput_variance(run):
    # A moment within the run, 20 s of samples behind it.
    at = run.done - 1
    got = by(run.instant("stddev_over_time(vllm:generation_throughput_toks_per_s[20s])", at), "engine")
    raw = run.raw("vllm:generation_throughput_toks_per_s[20s]", at)
    assert set(got) == {str(e) for e in range(ENGINES)}
    tokens = by(family(run.books, "wideep_generation_tokens_total"), "engine")
    for labels, samples in raw:
        values, engine = [value for _, value in samples], labels["engine"]
        assert len(values) >= 10
        assert got[engine] > 0 and near(got[engine], statistics.pstdev(values), 1e-6), engine
        mean, want = statistics.mean(values[3:]), tokens[engine] / SECONDS
        assert near(mean, want, 0.25), (engine, mean, want)


def quantile(q, buckets):
    """As Prometheus has it: linear within a bucket, the highest finite bound above that."""
    bounds = sorted(buckets)
    rank, below, lower = q * buckets[math.inf], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == math.inf:
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        below, lower = buckets[bound], bound
    raise AssertionError(buckets)


@check
def ubatch_sizes(run):
    query = "histogram_quantile(0.95, sum by (le, ubatch_index) (rate(vllm:ubatch_token_count_bucket[{}s])))"
    assert set(by(run.instant(query.format(30), run.done), "ubatch_index")) == {"first", "second"}
    got = by(run.instant(query.format(whole_run(run)), run.end), "ubatch_index")
    assert set(got) == {"first", "second"}
    for index, value in got.items():
        buckets = {}
        for labels, count in family(run.books, "vllm:ubatch_token_count_bucket", ubatch_index=index):
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + count
        low, high = quantile(0.93, buckets), quantile(0.97, buckets)
        assert 1 <= value <= 8192 and low <= value <= high, (index, low, value, high)
    # Means, from the same histogram.
    total = "sum by (ubatch_index) (vllm:ubatch_token_count_{})"
    means = by(run.instant(f"{total.format('sum')} / {total.format('count')}", run.end), "ubatch_index")
    for index, value in means.items():
        want = [sum(v for _, v in family(run.books, f"vllm:ubatch_token_count_{part}", ubatch_index=index))
                for part in ("sum", "count")]
        assert near(value, want[0] / want[1])


EXPERT = "vllm:expert_load_per_expert_tokens_DEBUG"


@check
def hottest_experts(run):
    page = by(family(run.held, EXPERT, layer="0"), "engine", "expert_id")
    assert set(page) == {("0", str(e)) for e in range(EXPERTS)}, "under the first engine only, each logical expert"
    got = by(run.instant(f'topk(5, {EXPERT}{{layer="0"}})', run.end), "engine", "expert_id")
    assert len(got) == 5 and sorted(got.values()) == sorted(page.values())[-5:]
    assert all(page[key] == value for key, value in got.items())


@check
def spread_of_experts(run):
    values = [value for _, value in family(run.held, EXPERT, layer="0")]
    rows = run.instant(f'stddev({EXPERT}{{layer="0"}})', run.end)
    assert len(rows) == 1 and rows[0][1] > 0 and near(rows[0][1], statistics.pstdev(values), 1e-6)


@check
def expert_against_its_rank_average(run):
    rows = run.instant(f'{EXPERT}{{expert_id="42"}} / on (model_name, engine, layer) group_left () '
                       "vllm:eplb_avg_tokens_per_rank", run.end)
    assert all(labels["expert_id"] == "42" and labels["engine"] == "0" for labels, _ in rows)
    got = by(rows, "layer")
    load = by(family(run.held, EXPERT, expert_id="42"), "layer")
    avg = by(family(run.held, "vllm:eplb_avg_tokens_per_rank", engine="0"), "layer")
    assert set(got) == {str(layer) for layer in range(LAYERS)}
    assert all(near(got[layer], load[layer] / avg[layer]) for layer in got)
    # A layer's experts together are its ranks together, but for the passes at the ends of the window.
    for layer in avg:
        total = sum(value for _, value in family(run.held, EXPERT, layer=layer))
        assert near(total, ENGINES * avg[layer], 0.1), (layer, total, ENGINES * avg[layer])


# ---- rebalancing that a scrape can see --------------------------------------------------------------------------


def test_rebalancing_is_seen():
    """Asynchronous rearrangements last 40 of every 100 passes: scrapes meet both states, as 100 passes are no whole
    number of the scrapes' seconds."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack)
        sim = rig.sim("async", "--scenario", "async", "--passes-per-second", 45, "--seconds", 60)
        sim.until("started", 30)
        query = "max by (model_name) ({}_over_time(vllm:eplb_rebalancing[1m]))"
        until(lambda: rig.value(query.format("max")) == 1 and rig.value(query.format("min")) == 0, 45,
              lambda: rig.trouble())
        assert rig.instant(query.format("max")) == [({"model_name": "sim"}, 1.0)]
        assert {value for _, values in rig.raw("vllm:eplb_rebalancing[1m]", time.time())
                for _, value in values} == {0, 1}
        # They do not block the engine.
        assert rig.instant("max(max_over_time(wideep_eplb_blocked[1m]))") == [({}, 0.0)]


# ---- a restart --------------------------------------------------------------------------------------------------


def prompts(books):
    return sum(value for _, value in family(books, "wideep_prompt_tokens_total"))


@pytest.mark.slow
def test_totals_over_a_restart():
    """All ranks killed, their files deleted, new ranks under the same names: each counter starts again once."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack)
        flags = ["--engines", 2, "--passes-per-second", 50, "--linger", 60]
        first = rig.sim("first", *flags, "--seconds", 8)
        first.until("done", 60)
        before = first.books()
        first_end = rig.settle(before)
        first.kill_all()
        for path in rig.shm.iterdir():
            path.unlink()
        second_start = time.time()
        second = rig.sim("second", *flags, "--seconds", 6, "--seed", 2)
        second.until("done", 60)
        after = second.books()
        end = rig.settle(after)
        assert set(before) == set(after)

        names = "|".join(sorted({name for name, _ in after}))
        span = math.ceil(end - rig.began) + 5
        have = {}
        for labels, samples in rig.raw(f'{{__name__=~"{names}"}}[{span}s]', end):
            # Until an engine's front end is attached, its first rank may stand in for it with nothing counted.
            if labels.get("frontend") == "rank" and not any(value for _, value in samples):
                continue
            have[labels.pop("__name__"), frozenset(labels.items())] = samples
        assert set(have) == set(after)
        wrong = {}
        for key, samples in have.items():
            values = [value for _, value in samples]
            falls = [i for i in range(1, len(values)) if values[i] < values[i - 1]]
            total = values[0] + sum(b - a if b >= a else b for a, b in zip(values, values[1:]))
            # A total that is equal or less in the first run cannot be seen to start again.
            want = before[key] + after[key] if falls else after[key]
            if len(falls) > 1 or not near(total, want) or (before[key] > after[key] and not falls):
                wrong[key] = {"falls": len(falls), "total": total, "first": before[key], "second": after[key]}
        assert not wrong, (len(wrong), len(have), list(wrong.items())[:5])
        tokens = 'wideep_prompt_tokens_total{frontend="0"}'
        assert by(rig.instant(f"resets({tokens}[{span}s])", end), "engine") == {"0": 1, "1": 1}

        # Over both runs, and over the second alone.
        for query, runs in ((f"sum(increase({tokens}[{span}s]))", [before, after]),
                            (f"sum(increase({tokens}[{math.ceil(end - second_start)}s]))", [after])):
            want = sum(map(prompts, runs))
            value = rig.instant(query, end)[0][1]
            # The first sample of a range may already hold some, and Prometheus extrapolates to the range's ends.
            assert 0.7 * want <= value <= 1.3 * want, (query, value, want)
        assert rig.instant(f"sum({tokens})", first_end)[0][1] == prompts(before)
        assert rig.instant(f"sum({tokens})", end)[0][1] == prompts(after)

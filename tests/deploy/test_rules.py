# SPDX-License-Identifier: Apache-2.0
"""The rules for Prometheus: promtool's checks, their unit tests and the mutants that these must notice; no query of ours
adds up engines that repeat one figure; and a group over four exporters, recorded by a real Prometheus."""

import concurrent.futures
import contextlib
import copy
import json
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

import scale
from exporter_helpers import exporting, key, shared_directory, simulating, wait_for
from rules_prometheus import FILES, RULES, recording

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = pathlib.Path(__file__).resolve().parent / "rules"

pytestmark = pytest.mark.skipif(not (shutil.which("promtool") and shutil.which("prometheus")),
                                reason="prometheus and promtool are not installed (Debian: prometheus)")


def load(name):
    return yaml.safe_load((RULES / name).read_text())


def rules(name):
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


def promtool(*arguments, **kwargs):
    return subprocess.run(["promtool", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=120, **kwargs)


def units():
    return sorted(UNITS.glob("*.test.yml"))


# ---- what promtool says -----------------------------------------------------------------------------------------


def test_check_rules():
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *(RULES / name for name in FILES))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.name.partition(".")[0])
def test_rules_as_units(unit):
    done = promtool("test", "rules", unit)
    assert done.returncode == 0, done.stdout


def mutants(name):
    """(rule's name, what was done, mutated file): each rule with another value, each alert that never or always fires, or
    at once."""
    for g, group in enumerate(load(name)["groups"]):
        for r, rule in enumerate(group["rules"]):
            changes = [("other", f"({rule['expr']}) + 1")] if "record" in rule else [
                ("never", "vector(1) > 1"), ("always", f"({rule['expr']}) or vector(1)"), ("at once", rule["expr"])]
            for what, expr in changes:
                changed = copy.deepcopy(load(name))
                changed["groups"][g]["rules"][r]["expr"] = expr
                if what == "at once":
                    del changed["groups"][g]["rules"][r]["for"]
                yield rule.get("record") or rule["alert"], what, changed


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_units_notice_every_mutant(tmp_path, name):
    unchanged = ("nothing", "unchanged", load(name))

    def survives(number, mutant):
        called, what, changed = mutant
        place = tmp_path / str(number)
        (place / "deploy").mkdir(parents=True)
        shutil.copytree(RULES, place / "deploy" / "prometheus")
        (place / "deploy" / "prometheus" / name).write_text(yaml.safe_dump(changed))
        shutil.copytree(UNITS, place / "tests" / "deploy" / "rules")
        # Those that speak of it first; the others only if none of these minds.
        files = sorted(units(), key=lambda path: called not in path.read_text())
        for path in files:
            if promtool("test", "rules", place / "tests" / "deploy" / "rules" / path.name).returncode:
                shutil.rmtree(place)
                return None
        return called, what

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alive = [found for found in pool.map(survives, *zip(*enumerate([unchanged, *mutants(name)]))) if found]
    assert alive == [unchanged[:2]]


# ---- names and annotations --------------------------------------------------------------------------------------


def families():
    """{name: scope} and {name of a sample: family} of the exporter's own table."""
    table = (ROOT / "src" / "family.c").read_text().partition("const struct family families[] = {")[2]
    table = table.partition("\n};\n")[0]
    rows = re.findall(r'\{"([\w:]+)",\s*FAMILY_(\w+),\s*SCOPE_(\w+)', table)
    assert len(rows) > 50
    samples = {}
    for name, kind, _ in rows:
        for suffix in ("_bucket", "_sum", "_count") if kind == "HISTOGRAM" else ("",):
            samples[name + suffix] = name
    return {name: scope for name, _, scope in rows}, samples


def bare(expr):
    """Without strings and what selects labels."""
    return re.sub(r"\{[^{}]*\}", "", re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr))


def test_names_by_convention():
    names = [rule["record"] for rule in rules("wideep-recording.yml")]
    assert len(names) == len(set(names))
    for name in names:
        level, metric, operations = name.split(":")
        assert re.fullmatch(r"(instance|ep_group)(_[a-z]+)*", level), name
        assert re.fullmatch(r"(wideep|vllm)_[a-z_]+", metric) and not metric.endswith("_total"), name
        assert re.fullmatch(r"[a-z0-9_]+", operations), name
    # What the README has a federation select is all of them.
    selector = re.search(r'__name__=~"(\(instance.*?)"', (RULES / "README.md").read_text())[1].replace("\\|", "|")
    assert all(re.fullmatch(selector, name) for name in names)


def test_every_series_is_known():
    known = {*families()[1], *(rule["record"] for rule in rules("wideep-recording.yml"))}
    for name in FILES:
        for rule in rules(name):
            text = re.sub(r"\b(by|without|on|ignoring|group_left)\s*\([^()]*\)", "", bare(rule["expr"]))
            found = set(re.findall(r"[a-z_:]*(?:vllm|wideep)[:_][\w:]*", text))
            assert found <= known, (rule, found - known)
            assert found or "absent(up" in text or text.startswith("up"), rule


def test_annotations():
    alerts = rules("wideep-alerts.yml")
    names = [rule["alert"] for rule in alerts]
    assert len(names) == len(set(names))
    fired = "".join(path.read_text() for path in units())
    for rule in alerts:
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "description", "section", "runbook"}, rule["alert"]
        assert annotations["runbook"] == re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower()
        assert len(annotations["summary"]) <= 120 and annotations["description"].endswith(".")
        assert rule["labels"]["severity"] in ("warning", "critical") and "for" in rule
        # A label that a template names and the alert does not have would be an empty place in the sentence.
        labels = re.search(rf'ALERTS{{alertname="{rule["alert"]}",alertstate="firing",([^}}]*)}}', fired)
        used = set(re.findall(r"\$labels\.(\w+)", annotations["summary"] + annotations["description"]))
        assert used <= set(re.findall(r"(\w+)=", labels[1])), (rule["alert"], used, labels[0])


# ---- no sum over engines that repeat one figure -----------------------------------------------------------------


def repeated():
    """Names of the samples that each engine of a group repeats: all by engine but what counts the engine's own tokens."""
    scopes, samples = families()
    return {sample for sample, family in samples.items()
            if scopes[family] in ("ENGINE", "ENGINE_LAYER", "ENGINE_MODEL") and family != "vllm:ubatch_token_count"}


AGGREGATION = re.compile(r"\b(sum|count|avg|min|max|group|stddev|stdvar|topk|bottomk|quantile)\s*"
                         r"(?:(by|without)\s*\(([^()]*)\)\s*)?\(")
CLAUSE = re.compile(r"\s*(by|without)\s*\(([^()]*)\)")


def aggregations(text):
    """(operator, whether engines are one afterwards, begin, end) of each in the text; what is no query does no harm."""
    for match in AGGREGATION.finditer(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        clause = match if match[2] else CLAUSE.match(text, end)
        kind, labels = (clause[2], clause[3]) if match[2] else (clause[1], clause[2]) if clause else ("by", "")
        has = "engine" in re.findall(r"\w+", labels)
        yield match[1], has if kind == "without" else not has, match.end(), end


def sums_over_engines(text, names):
    """The first aggregation around a figure that makes one of several engines must not add them up."""
    found = list(aggregations(text))
    for match in re.finditer(r"[a-zA-Z_][\w:]*", text):
        if match[0] not in names or re.match(r'\{[^{}]*\bengine\s*=\s*\\?"', text[match.end():]):
            continue
        around = sorted((end - begin, operator) for operator, merges, begin, end in found
                        if merges and begin <= match.start() < end)
        if around and around[0][1] in ("sum", "count"):
            yield text[max(0, match.start() - 60):match.end() + 20]


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def documents():
    paths = [ROOT / "README.md", *(path for path in (ROOT / "deploy").rglob("*")
                                   if path.suffix in (".md", ".yml", ".yaml", ".json") and path.is_file())]
    return sorted(path for path in paths if "node_modules" not in path.parts)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sum_over_engines(path):
    text = path.read_text()
    names = repeated()
    texts = strings(json.loads(text)) if path.suffix == ".json" else [text]
    assert not [found for part in texts for found in sums_over_engines(part, names)]


@pytest.mark.parametrize("query, bad", [
    ("sum(vllm:eplb_rebalancing)", True),
    ("sum by (reason) (rate(vllm:dbo_fallout_total[5m]))", True),
    ("sum(rate(vllm:dbo_fallout_total[5m])) by (reason)", True),
    ("sum without (engine) (wideep_eplb_blocked)", True),
    ("count(wideep_eplb_blocked == 1)", True),
    ("max(sum by (layer) (vllm:eplb_max_tokens_per_rank))", True),
    ("sum by (le) (rate(vllm:eplb_rearrangement_duration_seconds_bucket[5m]))", True),
    ("sum by (reason) (max by (model_name, reason) (rate(vllm:dbo_fallout_total[5m])))", False),
    ("max without (engine) (sum without (phase, outcome) (rate(wideep_dbo_passes_total[5m])))", False),
    ("sum by (engine) (rate(vllm:dbo_fallout_total[5m]))", False),
    ('sum(rate(vllm:dbo_fallout_total{engine="0"}[5m]))', False),
    ("sum(rate(wideep_generation_tokens_total[5m]))", False),
    ("sum by (le) (rate(vllm:ubatch_token_count_bucket[5m]))", False),
])
def test_the_lint_itself(query, bad):
    assert bool(list(sums_over_engines(query, repeated()))) == bad


# ---- a group over four exporters --------------------------------------------------------------------------------

PODS, ENGINES, LAYERS = 4, 8, 3


def test_group_over_four_exporters(tmp_path):
    with contextlib.ExitStack() as stack:
        shm = stack.enter_context(shared_directory())
        whole, pods = shm / "whole", [shm / f"pod{i}" for i in range(PODS)]
        for path in (whole, *pods):
            path.mkdir()
        exporters = [stack.enter_context(exporting(path)) for path in pods]
        addresses = [f"127.0.0.1:{exporter.port}" for exporter in exporters]
        prometheus = stack.enter_context(recording(tmp_path, addresses, "500ms"))

        def up():
            with contextlib.suppress(OSError):
                return prometheus.query("up", "instance") == {(address,): 1 for address in addresses}

        wait_for(up)
        sim = stack.enter_context(simulating(whole, "--engines", ENGINES, "--layers", LAYERS, "--experts", 32,
                                             "--passes-per-second", 20, "--seconds", 15, "--linger", 300))
        scale.distribute(whole, pods, ENGINES)
        books = sim.expected()

        def book(family, **labels):
            return books[key(family, group=0, model_name="sim", **labels)]

        tokens = {(str(layer), str(rank)): book("wideep_eplb_rank_tokens_total", layer=layer, ep_rank=rank)
                  for layer in range(LAYERS) for rank in range(ENGINES)}
        layers = [str(layer) for layer in range(LAYERS)]
        loads = {layer: [tokens[layer, str(rank)] for rank in range(ENGINES)] for layer in layers}
        bound = {layer: sum(loads[layer]) / ENGINES / max(loads[layer]) for layer in layers}
        average = {layer: book("wideep_eplb_avg_tokens_total", layer=layer) for layer in layers}
        truth = {layer: average[layer] / book("wideep_eplb_max_tokens_total", layer=layer) for layer in layers}

        # The counters, added up over exporters, are the full loads to the last token.
        wait_for(lambda: prometheus.query("sum by (layer, ep_rank) (wideep_eplb_rank_tokens_total)", "layer", "ep_rank")
                 == tokens)
        joined = prometheus.query("sum by (layer) (wideep_eplb_avg_tokens_total)", "layer")
        assert all(abs(joined[layer,] - average[layer]) < 1e-6 * average[layer] for layer in layers), (joined, average)
        assert prometheus.query("ep_group:wideep_ep_ranks_seen:ratio") == {(): 1}
        assert len(prometheus.query("wideep_ep_ranks_seen == 2", "instance", "group")) == PODS

        # rate() extrapolates to the ends of its window by up to a scrape, at each exporter by another.
        def upper():
            return prometheus.query("ep_group_layer:wideep_eplb_balancedness_upper_bound:ratio_rate5m", "layer")

        wait_for(lambda: all(abs(upper()[layer,] - bound[layer]) < 2e-3 * bound[layer] for layer in layers))
        high = upper()
        low = prometheus.query("ep_group_layer:wideep_eplb_balancedness_lower_bound:ratio_rate5m", "layer")
        cost = prometheus.query("instance_group_layer:wideep_eplb_imbalance_cost:ratio_rate5m", "layer", "instance")
        assert len(cost) == PODS * LAYERS
        print("\nlayer  per pass  windowed, recorded (from full loads)  lower bound  by each exporter's sample")
        for layer in layers:
            samples = [1 - cost[layer, address] for address in addresses]
            print(f"{layer:>5}  {truth[layer]:8.4f}  {high[layer,]:8.4f} ({bound[layer]:.4f}) {low[layer,]:25.4f}  "
                  + " ".join(f"{sample:.4f} ({sample - truth[layer]:+.4f})" for sample in samples))
            assert low[layer,] < truth[layer] + 2e-3 and truth[layer] < high[layer,] + 2e-3, layer
            assert all(0 < sample < truth[layer] + 0.05 for sample in samples), layer

        # As many as scale.py says. Those that need tokens now went with the last of them.
        shape = scale.Shape(PODS, ENGINES // PODS, LAYERS, 32)
        recorded = 'count(last_over_time({__name__=~"[a-z_]+:[a-z_]+:[a-z0-9_]+"}[5m]))'
        assert prometheus.query(recorded) == {(): scale.recorded_series(shape)}
        assert not [alert for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]

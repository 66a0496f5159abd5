# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard: Grafana's types, Prometheus' grammar, and a real Prometheus that is asked all of its queries.

Each check is a function that returns what is wrong, so that a planted mistake is seen to be caught by the very check
that the dashboard passes.
"""
import contextlib
import copy
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
import test_prometheus as prometheus

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE, OUTPUT = ROOT / "deploy/grafana/dashboard.py", ROOT / "deploy/grafana/wideep.json"
CHECKERS = ROOT / "tests/deploy/dashboard"
MODEL, BLOCKED_MODEL = "deepseek-ai/DeepSeek-R1-0528", "blocked"

# Scrapes are a second apart, and Grafana's $__rate_interval is at least four of them. The two differ, so that it can
# be told which of them a parsed expression had.
RATE_INTERVAL, RANGE = "15s", "61s"
BUILT_IN = {"__rate_interval": RATE_INTERVAL, "__range": RANGE}

# Of Grafana's; it shows one that it does not know as it is written.
UNITS = {"bytes", "cps", "none", "percentunit", "reqps", "s", "suffix:tok/s"}

# What each engine of a group reports alike.
REPEATED = re.compile(r"vllm:(dbo|eplb)_|wideep_dbo_|wideep_eplb_(rearrangements_by_mode|blocked|rebalancing|"
                      r"passes_overdue|recording)")


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(OUTPUT.read_text())


@pytest.fixture(scope="module")
def node():
    """A directory with the checkers and the packages that they need."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: Grafana's types and Prometheus' grammar are npm packages")
    work = prometheus.BUILD / "dashboard"
    work.mkdir(parents=True, exist_ok=True)
    for file in CHECKERS.iterdir():
        shutil.copy(file, work)
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=work, capture_output=True,
                          text=True, timeout=500)
    if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr):
        pytest.skip("npm's registry cannot be reached: Grafana's types and Prometheus' grammar are npm packages")
    assert done.returncode == 0, done.stderr
    return work


# ---- what a dashboard is made of --------------------------------------------------------------------------------


def panels(dashboard):
    """All but rows, those of folded rows too."""
    for panel in dashboard["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def graphs(dashboard):
    return (panel for panel in panels(dashboard) if panel["type"] != "text")


def queries(dashboard):
    """(what asks, query) of panels and annotations."""
    for panel in graphs(dashboard):
        for target in panel["targets"]:
            yield f'{panel["title"]} [{target["refId"]}]', target
    for note in dashboard["annotations"]["list"]:
        if not note.get("builtIn"):
            yield note["name"], {**note["target"], "legendFormat": note["titleFormat"]}


def variables(dashboard):
    return dashboard["templating"]["list"]


def substitute(text, **more):
    """As Grafana does while all pods, exporters, engines and layers are selected."""
    values = {**BUILT_IN, "model": MODEL, "pod": ".*", "instance": ".*", "engine": ".*", "layer": ".*", **more}
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), text)


def planted(dashboard, mistake):
    copied = copy.deepcopy(dashboard)
    mistake(copied)
    return copied


def first(dashboard, kind):
    return next(panel for panel in panels(dashboard) if panel["type"] == kind)


def changed(kind, *path, **fields):
    """A mistake: fields that replace others at a place in the first panel of a kind, or in the whole."""
    def change(copied):
        place = copied if kind is None else first(copied, kind)
        for step in path:
            place = place[step]
        place.update(fields)
    return change


# ---- the file ---------------------------------------------------------------------------------------------------


def test_is_current():
    printed = subprocess.run([sys.executable, SOURCE], capture_output=True, text=True, check=True).stdout
    assert printed == OUTPUT.read_text(), "run `make dashboard`"


def overlaps(boxes):
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and \
                b["y"] < a["y"] + a["h"]:
            yield f"{one} overlaps {other}"


def layout_problems(dashboard):
    shown = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    problems = list(overlaps(shown))
    for row in dashboard["panels"]:
        problems += overlaps([(panel["title"], panel["gridPos"]) for panel in row.get("panels", [])])
    for title, box in shown + [(panel["title"], panel["gridPos"]) for panel in panels(dashboard)]:
        if not (0 <= box["x"] and 0 <= box["y"] and 0 < box["w"] and 0 < box["h"] and box["x"] + box["w"] <= 24):
            problems.append(f"{title} is outside of the grid: {box}")
    ids = [panel["id"] for row in dashboard["panels"] for panel in [row, *row.get("panels", [])]]
    if len(ids) != len(set(ids)):
        problems.append("an id comes twice")
    return problems


def test_layout(dashboard):
    assert not layout_problems(dashboard)

    def overlapping(copied):
        copied["panels"][2]["gridPos"]["x"] -= 1

    def too_wide(copied):
        copied["panels"][-2]["gridPos"]["w"] += 1

    def inside_a_row(copied):
        copied["panels"][-1]["panels"][1]["gridPos"]["w"] += 1

    def same_id(copied):
        copied["panels"][-1]["panels"][0]["id"] = 1

    for mistake in (overlapping, too_wide, inside_a_row, same_id):
        assert layout_problems(planted(dashboard, mistake)), mistake.__name__


def explanation_problems(dashboard):
    for panel in panels(dashboard):
        if not panel["description"]:
            yield f'{panel["title"]} has no description'
    for panel in graphs(dashboard):
        description = panel["description"]
        if "**Normal:**" not in description or "**Otherwise:**" not in description:
            yield f'{panel["title"]} does not say what is normal, or what to do otherwise'
        if not panel["title"].endswith("?"):
            yield f'{panel["title"]} is no question'
        defaults = panel["fieldConfig"]["defaults"]
        if defaults["unit"] not in UNITS:
            yield f'{panel["title"]} has no unit that is known: {defaults["unit"]}'
        if panel["type"] != "heatmap" and "min" not in defaults:
            yield f'{panel["title"]} has no lower bound'
        for reference in re.findall(r"\*([A-Z][^*]*\?)\*", description):
            if reference not in {other["title"] for other in panels(dashboard)}:
                yield f'{panel["title"]} names no panel by {reference}'


def test_panels_explain_themselves(dashboard):
    assert not list(explanation_problems(dashboard))
    for mistake in (changed("stat", description=""), changed("stat", description="**Normal:** 0"),
                    changed("stat", title="Statement"), changed("stat", "fieldConfig", "defaults", unit="percentunt")):
        assert list(explanation_problems(planted(dashboard, mistake)))


def variable_problems(dashboard):
    defined = {variable["name"] for variable in variables(dashboard)}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    yield from (f"${name} is not defined" for name in used - defined - set(BUILT_IN) - {"__all"})
    yield from (f"${name} is not used" for name in defined - used)


def test_variables(dashboard):
    assert not list(variable_problems(dashboard))

    def misspelt(copied):
        target = first(copied, "stat")["targets"][0]
        target["expr"] = target["expr"].replace("$model", "$modle")

    assert list(variable_problems(planted(dashboard, misspelt)))
    assert list(variable_problems(planted(dashboard, lambda copied: variables(copied)[0].update(name="unused"))))


# ---- Grafana's types --------------------------------------------------------------------------------------------


def overrides(panel):
    """What each override sets, as an object of the shape of the defaults."""
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        fields = {}
        for prop in override["properties"]:
            head, _, tail = prop["id"].partition(".")
            if tail:
                fields.setdefault(head, {})[tail] = prop["value"]
            else:
                fields[head] = prop["value"]
        yield fields


def typescript(dashboard):
    """A constant of its own type for each part, so that a field that the type lacks is an error."""
    frame = {key: value for key, value in dashboard.items() if key != "panels"}
    parts = [("Frame", frame)]
    for panel in dashboard["panels"]:
        inner = panel.get("panels", [])
        if panel["type"] == "row":
            panel = {**panel, "panels": []}
        for one in [panel, *inner]:
            parts.append((f'Panels["{one["type"]}"]', one))
            parts += [(f'Override<"{one["type"]}">', fields) for fields in overrides(one)]
    lines = ['import type { Frame, Override, Panels } from "./types";']
    lines += [f"export const part{i}: {kind} = {json.dumps(value)};" for i, (kind, value) in enumerate(parts)]
    return "\n".join(lines) + "\n"


def type_problems(node, dashboards):
    """{name: errors} of {name: dashboard}: all in one run of the compiler, which takes long to start."""
    for name, one in dashboards.items():
        (node / f"{name}.ts").write_text(typescript(one))
    done = subprocess.run(
        ["node_modules/.bin/tsc", "--strict", "--noEmit", "--skipLibCheck", "--pretty", "false", "--target", "es2022",
         "--module", "esnext", "--moduleResolution", "bundler", *(f"{name}.ts" for name in dashboards)],
        cwd=node, capture_output=True, text=True, timeout=500)
    problems = {name: [] for name in dashboards}
    for line in done.stdout.splitlines():
        match = re.match(r"(\w+)\.ts\(", line)
        assert match and match[1] in problems or line.startswith(" "), done.stdout[:2000]
        if match:
            problems[match[1]].append(line[:300])
    assert (done.returncode == 0) == (not any(problems.values())), done.stdout[:2000]
    return problems


TYPE_MISTAKES = {
    "panel_field": changed("timeseries", tittle="x"),
    "query_field": changed("timeseries", "targets", 0, legendFromat="x"),
    "query_format": changed("heatmap", "targets", 0, format="heat"),
    "option": changed("timeseries", "options", tooltips={}),
    "option_of_another_kind": changed("stat", "options", cellHeight="sm"),
    "default": changed("stat", "fieldConfig", "defaults", untis="s"),
    "default_of_wrong_type": changed("stat", "fieldConfig", "defaults", min="0"),
    "custom_field": changed("timeseries", "fieldConfig", "defaults", "custom", fillOpacitty=1),
    "custom_value": changed("timeseries", "fieldConfig", "defaults", "custom", drawStyle="lines"),
    "override": changed("timeseries", "fieldConfig", "overrides", 0, "properties", 0, id="custom.axisPlacment"),
    "cell": changed("table", "fieldConfig", "defaults", "custom", "cellOptions", type="color-backgrund"),
    "variable_field": changed(None, "templating", "list", 0, includeALl=True),
    "variable_type": changed(None, "templating", "list", 0, type="datasources"),
    "annotation_field": changed(None, "annotations", "list", 1, iconColour="red"),
    "dashboard_field": changed(None, refersh="30s"),
}


def test_types(node, dashboard):
    cases = {"wideep": dashboard, **{name: planted(dashboard, mistake) for name, mistake in TYPE_MISTAKES.items()}}
    problems = type_problems(node, cases)
    assert not problems.pop("wideep")
    assert not [name for name, found in problems.items() if not found]


# ---- Prometheus' grammar ----------------------------------------------------------------------------------------


def parse(node, expressions):
    done = subprocess.run(["node", "promql.mjs"], cwd=node, input=json.dumps(expressions), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parsed_queries(node, dashboard):
    asked = list(queries(dashboard))
    return zip(asked, parse(node, [substitute(query["expr"]) for _, query in asked]))


def adds_up_what_is_repeated(selector):
    """Before engines are told apart no more, only the maximum or minimum of what they repeat may be taken."""
    if not REPEATED.match(selector["metric"]):
        return False
    for aggregate in selector["aggregates"]:
        if aggregate["op"] in ("topk", "bottomk") or "engine" in aggregate["by"]:
            continue
        return aggregate["op"] not in ("max", "min")
    return not any("engine" in aggregate["by"] for aggregate in selector["aggregates"])


def grammar_problems(result):
    if "error" in result:
        yield f'no PromQL: {result["error"]}'
        return
    for selector in result["selectors"]:
        if adds_up_what_is_repeated(selector):
            yield f'adds up {selector["metric"]}, which each engine of a group repeats'
    for one in result["ranges"]:
        if one["call"] in ("rate", "increase") and one["range"] not in BUILT_IN.values():
            yield f'{one["call"]} over {one["range"]}'


def test_grammar(node, dashboard):
    assert not [(name, query["expr"], problem) for (name, query), result in parsed_queries(node, dashboard)
                for problem in grammar_problems(result)]
    mistakes = ["sum (rate(wideep_records_total[15s])",
                "sum wideep_segments",
                "sum (vllm:dbo_active)",
                "vllm:eplb_rebalancing",
                "avg by (layer) (vllm:eplb_balancedness_ratio)",
                "sum (sum by (phase) (rate(wideep_dbo_passes_total[15s])))",
                "sum (max by (engine) (wideep_eplb_blocked))",
                "max (rate(vllm:dbo_fallout_total[1m]))"]
    for mistake, result in zip(mistakes, parse(node, mistakes)):
        assert list(grammar_problems(result)), mistake


# ---- a real Prometheus ------------------------------------------------------------------------------------------


class Rig(prometheus.Rig):
    TARGET_LABELS = {"pod": "wideep-0"}

    def answers(self, query, start, end, **selected):
        """[(labels, values)] over the run, or at its end."""
        expr = substitute(query["expr"], **selected)
        if query["instant"]:
            rows = self.ask("query", query=expr, time=end)
            return [(row["metric"], [float(row["value"][1])]) for row in rows]
        rows = self.ask("query_range", query=expr, start=start, end=end, step=1)
        return [(row["metric"], [float(value) for _, value in row["values"]]) for row in rows]

    def labels_of(self, metric):
        """Of a metric that was there in the run."""
        rows = self.ask("query", query=f"last_over_time({metric}[10m])", time=self.end)
        return set().union(*(row["metric"] for row in rows))

    def label_values(self, text):
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", substitute(text)).groups()
        rows = self.ask("query", query=f"last_over_time({selector}[10m])", time=self.end)
        return {row["metric"][label] for row in rows if row["metric"].get(label)}


@pytest.fixture(scope="module")
def run():
    """Rearrangements of both modes, all outcomes of DBO, drifting loads, and the debug mode on; beside it an instance
    whose rearrangements block for so long that scrapes meet them."""
    if prometheus.PROMETHEUS is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, "--throughput.interval=1s", "--advisor.interval=1s", "--debug.per-expert",
                  "--shm.instance=*")
        rig.sim("blocked", "--instance", "other", "--model", BLOCKED_MODEL, "--scenario", "stall", "--seconds", 100)
        sim = rig.sim("main", "--model", MODEL, "--engines", 4, "--layers", 6, "--experts", 32, "--redundant", 16,
                      "--passes-per-second", 50, "--seconds", 22, "--linger", 300)
        sim.until("started", 60)
        rig.start = time.time()
        sim.until("done", 120)
        happened = {labels.get("mode", labels.get("reason"))
                    for name in ("wideep_eplb_rearrangements_by_mode_total", "vllm:dbo_fallout_total")
                    for labels, count in prometheus.family(sim.books(), name) if count}
        assert happened == {"sync", "async"} | prometheus.REASONS
        rig.end = time.time()
        prometheus.until(lambda: (rig.value("max(timestamp(up))") or 0) > rig.end, 60, rig.trouble)
        yield rig


def label_problems(rig, result):
    """Labels that the metrics do not have: Prometheus takes them for empty ones, and answers."""
    known = {selector["metric"]: rig.labels_of(selector["metric"]) for selector in result["selectors"]}
    for selector in result["selectors"]:
        for label in set(selector["labels"]) - known[selector["metric"]]:
            yield f'{selector["metric"]} has no label {label}'
    for aggregation in result["aggregations"]:
        have = set().union(*(known[metric] for metric in aggregation["metrics"]))
        yield from (f"nothing in the aggregation has the label {label}" for label in set(aggregation["by"]) - have)


def answer_problems(rig, query):
    answers = rig.answers(query, rig.start, rig.end)
    if not any(math.isfinite(value) for _, values in answers for value in values):
        yield f"answers nothing: {answers[:2]}"
    for label in re.findall(r"\{\{(\w+)\}\}", query.get("legendFormat", "")):
        if not all(label in labels for labels, _ in answers):
            yield f"its legend's {label} is not in the answer"


def field_problems(rig, panel):
    """Fields that a table's transformations name."""
    have = {"Value", *(label for target in panel["targets"]
                       for labels, _ in rig.answers(target, rig.start, rig.end) for label in labels)}
    for step in panel.get("transformations", []):
        named = [value for key, value in step["options"].items() if key.endswith("Field")]
        named += [one["targetField"] for one in step["options"].get("conversions", [])]
        named += [one["field"] for one in step["options"].get("sort", [])]
        yield from (f'{panel["title"]}: no field {name}' for name in set(named) - have)


def live_problems(node, rig, dashboard):
    for (name, query), result in parsed_queries(node, dashboard):
        yield from (f'{name}: {problem}: {query["expr"]}' for problem in
                    itertools.chain(label_problems(rig, result), answer_problems(rig, query)))
    for panel in graphs(dashboard):
        yield from field_problems(rig, panel)
    for variable in variables(dashboard):
        if variable["type"] == "query" and not rig.label_values(variable["query"]["query"]):
            yield f'${variable["name"]} has no values'


def test_every_query_is_answered(node, run, dashboard):
    problems = list(live_problems(node, run, dashboard))
    assert not problems, "\n".join(problems)


def test_variables_hold_what_runs(run, dashboard):
    values = {variable["name"]: run.label_values(variable["query"]["query"])
              for variable in variables(dashboard) if variable["type"] == "query"}
    assert values == {"pod": {"wideep-0"}, "instance": {run.address}, "model": {MODEL, BLOCKED_MODEL},
                      "engine": set("0123"), "layer": set("012345")}


def test_blocked_engines_are_seen(run, dashboard):
    asked = dict(queries(dashboard))
    for name, value in (("Is a rearrangement under way? [A]", 2), ("Blocked engines", 1)):
        answers = run.answers(asked[name], run.start, run.end, model=BLOCKED_MODEL)
        assert {labels["engine"] for labels, _ in answers} == {"0", "1"}
        assert all({0, value} <= set(values) <= set(range(value + 1)) for _, values in answers), (name, answers)


def with_only(kind, edit):
    """A dashboard of the one panel in which the mistake is, since each query takes a while."""
    def change(copied):
        panel = first(copied, kind)
        edit(panel)
        copied["panels"] = [panel]
        copied["annotations"]["list"] = []
        copied["templating"]["list"] = []
    return change


def replaced(old, new, field="expr"):
    def edit(panel):
        target = next(target for target in panel["targets"] if old in target[field])
        target[field] = target[field].replace(old, new)
    return edit


LIVE_MISTAKES = {
    "unknown metric": with_only("stat", replaced("wideep_eplb_imbalance_cost_ratio", "wideep_eplb_imbalance_cost")),
    "unknown label of a matcher": with_only("stat", replaced('pod=~"$pod"', 'podd=~"$pod"')),
    "value that no series has": with_only("timeseries", replaced('outcome="engaged"', 'outcome="engagd"')),
    "unknown label to group by": with_only("heatmap", replaced("by (le)", "by (lee)")),
    "unknown label in a legend": with_only("heatmap", replaced("{{le}}", "{{bucket}}", "legendFormat")),
    "unknown label on the other side": with_only("table", replaced("avg by (layer)", "avg by (group)")),
    "unknown field": with_only("table", lambda panel: panel["transformations"][-1]["options"].update(rowField="rank")),
}


@pytest.mark.parametrize("mistake", LIVE_MISTAKES)
def test_live_mistake_is_caught(node, run, dashboard, mistake):
    assert list(live_problems(node, run, planted(dashboard, LIVE_MISTAKES[mistake])))


def test_variable_without_values_is_caught(node, run, dashboard):
    def misnamed(copied):
        copied["panels"], copied["annotations"]["list"] = [], []
        copied["templating"]["list"] = [variable for variable in variables(copied) if variable["name"] == "layer"]
        variable = variables(copied)[0]["query"]
        variable["query"] = variable["query"].replace(", layer)", ", layers)")

    assert list(live_problems(node, run, planted(dashboard, misnamed)))

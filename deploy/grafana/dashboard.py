#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the Grafana dashboard, wideep.json. `make dashboard` writes it.

Rows and panels are listed in ROWS in the order in which they are shown; positions and ids follow from it. One model is
looked at at a time, since layers and ranks of two models have nothing in common. Whatever a group of engines decides
together each of them reports, so its figures are never added up over engines: they are the maximum over them or,
where low is bad, the minimum, so that the worst pod is the one that shows.
"""

import json
import re

WIDTH = 24  # Grafana's grid

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# What a query writes in place of a selector's matchers. Exporters are told apart by Prometheus' own labels; of these a
# target may lack pod, which then counts as empty.
EXPORTER = 'pod=~"$pod",instance=~"$instance"'
MODEL = f'model_name="$model",{EXPORTER}'
FILTERS = {
    "EXPORTER": EXPORTER,
    "RANK": f'engine=~"$engine",{EXPORTER}',
    "MODEL": MODEL,
    "ENGINE": f'{MODEL},engine=~"$engine"',
    "LAYER": f'{MODEL},layer=~"$layer"',
    "ENGINE_LAYER": f'{MODEL},engine=~"$engine",layer=~"$layer"',
}

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"

TOKENS = "suffix:tok/s"

# Bounds that several panels colour by.
LOST = [(None, GREEN), (0.15, YELLOW), (0.3, RED)]
SHARE = {"unit": "percentunit", "min": 0, "max": 1}


def expand(text):
    """`{ENGINE}` and the like become matchers; `$rate` is Grafana's window for rates, four scrapes at least."""
    for name, matchers in FILTERS.items():
        text = re.sub(rf"\{{{name}(,[^}}]*)?\}}", lambda m, with_=matchers: f"{{{with_}{m[1] or ''}}}", text)
    return " ".join(text.replace("[$rate]", "[$__rate_interval]").split())


def about(means, normal, otherwise):
    return f"{means}\n\n**Normal:** {normal}\n\n**Otherwise:** {otherwise}"


# ---- queries ----------------------------------------------------------------------------------------------------


def query(expr, legend="", **more):
    return {"expr": expand(expr), "legendFormat": legend, "editorMode": "code", "range": True, "instant": False, **more}


def now(expr, legend="", **more):
    """Asked once, for the end of the time that is shown."""
    return query(expr, legend, range=False, instant=True, **more)


def buckets(expr):
    return query(expr, "{{le}}", format="heatmap")


# ---- panels -----------------------------------------------------------------------------------------------------


def panel(kind, title, description, targets, width, height, unit, options, custom=None, overrides=(), steps=None,
          mappings=(), transformations=(), colour=None, **scale):
    """`scale`: min, max, decimals. `steps`: (from value, colour), the first from None."""
    defaults = {
        "unit": unit,
        **scale,
        "color": {"mode": colour or ("thresholds" if steps else "palette-classic")},
        "thresholds": {"mode": "absolute",
                       "steps": [{"value": value, "color": color} for value, color in steps or [(None, GREEN)]]},
        "mappings": list(mappings),
        "custom": custom or {},
    }
    out = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": [{"refId": chr(ord("A") + i), "datasource": DATASOURCE, **target}
                    for i, target in enumerate(targets)],
        "options": options,
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
    }
    if transformations:
        out["transformations"] = list(transformations)
    return out


def legend(*calcs):
    return {"displayMode": "table" if calcs else "list", "placement": "bottom", "showLegend": True,
            "calcs": list(calcs)}


def timeseries(title, description, unit, *targets, width=12, height=8, stack="none", draw="line", line=None, calcs=(),
               **more):
    """`line`: a value that is marked by a dashed line."""
    custom = {
        "drawStyle": draw,
        "lineWidth": 1,
        "fillOpacity": 80 if draw == "bars" else 40 if stack != "none" else 0,
        "showPoints": "always" if draw == "points" else "never",
        "pointSize": 5,
        "spanNulls": False,
        "stacking": {"mode": stack, "group": "A"},
        "thresholdsStyle": {"mode": "off" if line is None else "dashed"},
    }
    if line is not None:
        # The line has the colour of the step that begins there; what is below it has none.
        more |= {"steps": [(None, "transparent"), (line, RED)], "colour": "palette-classic"}
    return panel("timeseries", title, description, targets, width, height, unit,
                 {"legend": legend(*calcs), "tooltip": {"mode": "multi", "sort": "desc"}}, custom, **more)


def stat(title, description, unit, target, steps, width=4, height=5, **more):
    return panel("stat", title, description, [target], width, height, unit,
                 {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto",
                  "textMode": "value", "colorMode": "value", "graphMode": "area", "justifyMode": "auto",
                  "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard"},
                 steps=steps, **more)


def heatmap(title, description, unit, target, scheme="Oranges", width=12, height=8, **more):
    """Of a histogram's buckets: `unit` is that of the buckets; a cell is what fell into it since the one before."""
    return panel("heatmap", title, description, [target], width, height, unit,
                 {"calculate": False, "cellGap": 1, "showValue": "never",
                  "color": {"mode": "scheme", "scheme": scheme, "scale": "exponential", "exponent": 0.5, "steps": 64,
                            "fill": "dark-orange", "reverse": False},
                  "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
                  "rowsFrame": {"layout": "auto"}, "filterValues": {"le": 1e-9},
                  "exemplars": {"color": "rgba(255,0,255,0.7)"}, "legend": {"show": True},
                  "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False}},
                 {"hideFrom": {"legend": False, "tooltip": False, "viz": False},
                  "scaleDistribution": {"type": "linear"}}, **more)


def states(title, description, target, values, width=12, height=6):
    """Bars over time; `values`: of each value, what it is called and its colour."""
    mapping = {"type": "value", "options": {str(value): {"text": text, "color": colour, "index": value}
                                            for value, (text, colour) in values.items()}}
    return panel("state-timeline", title, description, [target], width, height, "none",
                 {"mergeValues": True, "showValue": "never", "alignValue": "left", "rowHeight": 0.9,
                  "legend": legend(), "tooltip": {"mode": "single", "sort": "none"}},
                 {"fillOpacity": 80, "lineWidth": 0}, mappings=[mapping], steps=[(None, BLUE)], min=0,
                 max=max(values))


def bars(title, description, unit, target, width=8, height=12, **more):
    return panel("bargauge", title, description, [target], width, height, unit,
                 {"displayMode": "basic", "orientation": "horizontal", "showUnfilled": True, "valueMode": "color",
                  "namePlacement": "left", "sizing": "auto", "minVizWidth": 8, "minVizHeight": 10, "maxVizHeight": 40,
                  "legend": {**legend(), "showLegend": False},
                  "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}, **more)


def matrix(title, description, unit, target, row, column, width=16, height=12, **more):
    """A table of one value by two labels that are numbers, its cells coloured."""
    numbers = [{"targetField": name, "destinationType": "number"} for name in (row, column)]
    corner = f"{row}\\{column}"
    return panel("table", title, description, [target], width, height, unit,
                 {"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
                 {"align": "center", "inspect": False,
                  "cellOptions": {"type": "color-background", "mode": "basic"}},
                 transformations=[
                     {"id": "convertFieldType", "options": {"fields": {}, "conversions": numbers}},
                     # Columns come in the order in which the values are met, and sorting keeps what is equal in order.
                     {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": column}]}},
                     {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": row}]}},
                     {"id": "groupingToMatrix",
                      "options": {"rowField": row, "columnField": column, "valueField": "Value"}}],
                 overrides=[{"matcher": {"id": "byName", "options": corner},
                             "properties": [{"id": "custom.cellOptions", "value": {"type": "auto"}},
                                            {"id": "custom.width", "value": 110}]}], **more)


def text(content, description, width=24, height=4):
    return {"type": "text", "title": "", "description": description, "transparent": True,
            "gridPos": {"w": width, "h": height}, "options": {"mode": "markdown", "content": content}}


def right_axis(ref, **properties):
    """The series of one query on an axis of their own."""
    return {"matcher": {"id": "byFrameRefID", "options": ref},
            "properties": [{"id": "custom.axisPlacement", "value": "right"},
                           *({"id": name, "value": value} for name, value in properties.items())]}


# ---- queries that several panels ask ----------------------------------------------------------------------------

BALANCEDNESS = ("sum (rate(wideep_eplb_avg_tokens_total{MODEL}[$rate]))"
                " / sum (rate(wideep_eplb_max_tokens_total{MODEL}[$rate]))")
COST = "max (wideep_eplb_imbalance_cost_ratio{MODEL})"
DBO_SHARE = ('sum (max by (phase) (rate(wideep_dbo_passes_total{ENGINE,outcome="engaged"}[$rate])))'
             " / sum (max by (phase, outcome) (rate(wideep_dbo_passes_total{ENGINE}[$rate])))")
FALLOUTS = "max by (reason) (rate(vllm:dbo_fallout_total{ENGINE}[$rate]))"
GENERATED = "sum (vllm:generation_throughput_toks_per_s{ENGINE})"
RANK_LOAD = "sum by (layer, ep_rank) (rate(wideep_eplb_rank_tokens_total{LAYER}[$__range]))"
RANK_RATE = "sum by (layer, ep_rank) (rate(wideep_eplb_rank_tokens_total{LAYER}[$rate]))"
EXPERT = "max by (layer, expert_id) (vllm:expert_load_per_expert_tokens_DEBUG{LAYER})"
# Of the exporters alone, what Prometheus itself says of every target, and what every program says of itself.
OURS = "and on (job, instance) wideep_build_info{EXPORTER}"


def quantile(q, buckets_of, by):
    return f"histogram_quantile({q}, sum by ({by}) (rate({buckets_of}[$rate])))"


# ---- rows -------------------------------------------------------------------------------------------------------

GLANCE = [
    stat("How much expert time is lost to the slowest rank?",
         about("1 − Σ average ÷ Σ maximum of the tokens per EP rank, over all layers and the exporter's window: the "
               "share of expert time in which ranks wait. Attention, communication and the network are not in it.",
               "below 15 %. Even random routing loses some.",
               "see *Would rearranging the experts help now?* and the row on expert balance."),
         "percentunit", query(COST), LOST, min=0, max=1),
    stat("Would rearranging the experts help now?",
         about("Share of all expert time that a rearrangement now would win back: the cost beside it × its gain. What "
               "the rearrangement itself costs is not in it.",
               "below 5 %: placement fits the load, what is lost differs from pass to pass.",
               "a high figure that stays asks for a shorter rearrangement interval or for more redundant experts."),
         "percentunit",
         query("max (wideep_eplb_imbalance_cost_ratio{MODEL} * wideep_eplb_rearrangement_gain_ratio{MODEL})"),
         [(None, GREEN), (0.05, YELLOW), (0.15, RED)], min=0, max=1),
    stat("In what share of passes is DBO engaged?",
         about("Of all passes on which the engines decided about Dual Batch Overlap, those in which it ran.",
               "steady, and high under load. Small batches are not overlapped, and that is right.",
               "see *What became of each pass?* for the outcome that took its place."),
         "percentunit", query(DBO_SHARE), [(None, RED), (0.3, YELLOW), (0.6, GREEN)], min=0, max=1),
    stat("How often does DBO fall out?",
         about("Fallouts of all reasons a second. A batch too small or an idle rank is no fallout.",
               "near 0.",
               "see the row on DBO: each reason has another remedy."),
         "cps", query(f"sum ({FALLOUTS})"), [(None, GREEN), (0.1, YELLOW), (1, RED)], min=0, decimals=2),
    stat("How many tokens are generated a second?",
         about("Sum over the engines selected, each of which counts its own.",
               "what your load and hardware give; look for steps and waves.",
               "see the panel below for what moves with it."),
         TOKENS, query(GENERATED), [(None, BLUE)], min=0),
    stat("How many ranks have died?",
         about("Ranks whose process ended without closing its segment. Their gauges are gone, their counters stay.",
               "0.",
               "restart the engine; its successor takes over the counters. Of ranks that will not come back, remove "
               "the files (`wideep-dump` says `dead`)."),
         "none", query("sum (1 - wideep_rank_up{RANK})"), [(None, GREEN), (1, RED)], min=0),
    timeseries("What moves with throughput?",
               about("Generated tokens a second (left); on the right the share of expert time lost to the slowest "
                     "rank, the share of passes with DBO, and the share of time in which a synchronous rearrangement "
                     "blocked an engine.",
                     "throughput follows your load, and the others stay level.",
                     "a drop together with a rise of *lost* is imbalance; with a fall of *DBO*, fallouts; with "
                     "*blocked*, a rearrangement. With none of them, look outside: requests, network, prefill."),
               TOKENS, query(GENERATED, "generated tokens/s"), query(COST, "expert time lost"),
               query(DBO_SHARE, "passes with DBO"),
               query("max (avg_over_time(wideep_eplb_blocked{ENGINE}[$rate]))", "blocked"),
               width=24, height=9, min=0, overrides=[right_axis(ref, **SHARE) for ref in "BCD"]),
]

BALANCE = [
    timeseries("Is the expert load balanced over time?",
               about("Average ÷ maximum tokens per EP rank: 1 is even, 0.5 means that the fullest rank works twice as "
                     "long as the average. *All layers* is exact for any window; the others are means over the "
                     "exporter's.",
                     "above 0.85 and level between rearrangements.",
                     "a slow fall is drift: rearrange more often. Low from the start: more redundant experts. A worst "
                     "layer far below the median: see the panels beside."),
               "none", query(BALANCEDNESS, "all layers"),
               query("quantile(0.5, min by (layer) (vllm:eplb_balancedness_ratio{ENGINE_LAYER}))", "median layer"),
               query("min (vllm:eplb_balancedness_ratio{ENGINE_LAYER})", "worst layer"), min=0, max=1, decimals=3),
    timeseries("Which layers are worst balanced?",
               about("The five layers whose average ÷ maximum is lowest at each time.",
                     "the names change, and none is far below the rest.",
                     "the same few layers all the time have hot experts: select them above and open the row on single "
                     "experts."),
               "none", query("bottomk(5, min by (layer) (vllm:eplb_balancedness_ratio{ENGINE_LAYER}))",
                             "layer {{layer}}"), min=0, max=1, decimals=3),
    timeseries("How balanced is each layer?",
               about("Average ÷ maximum tokens per EP rank of every layer that is selected above, the minimum over "
                     "the pods selected. It stands still while the engine does not record loads, and is absent "
                     "without tokens.",
                     "lines close together.",
                     "sort the legend by *Min* and select the layers that are worst."),
               "none", query("min by (layer) (vllm:eplb_balancedness_ratio{ENGINE_LAYER})", "layer {{layer}}"),
               height=10, calcs=("min", "mean", "lastNotNull"), min=0, max=1, decimals=3),
    heatmap("How balanced are single passes?",
            about("Each pass and layer counts once, which the gauges, being means over seconds, cannot show.",
                  "one narrow band.",
                  "two bands are two kinds of batch, prefill and decode, say; a long lower tail is single passes that "
                  "cost much more than the mean tells."),
            "none", buckets("sum by (le) (increase(wideep_eplb_pass_balancedness_bucket{MODEL}[$rate]))"), height=10,
            decimals=2),
    timeseries("How many times the average does the fullest rank carry?",
               about("Maximum ÷ average tokens per EP rank; the five highest layers.",
                     "below 1.3.",
                     "3 to 5 makes all ranks wait for one. The matrix below says for which."),
               "none", query("topk(5, max by (layer) (vllm:eplb_max_tokens_per_rank{ENGINE_LAYER}"
                             " / vllm:eplb_avg_tokens_per_rank{ENGINE_LAYER}))", "layer {{layer}}"), min=1, decimals=2),
    timeseries("How many tokens a pass does the fullest rank have, and the average one?",
               about("Tokens per forward pass and EP rank, in the layer where each is highest, and the greatest "
                     "distance between the two in one layer.",
                     "the average follows the batch size, the distance stays a small part of it.",
                     "where the distance grows with the batch, the placement does not fit the load; where it grows "
                     "alone, an expert has become hot."),
               "none", query("max (vllm:eplb_max_tokens_per_rank{ENGINE_LAYER})", "fullest rank"),
               query("max (vllm:eplb_avg_tokens_per_rank{ENGINE_LAYER})", "average"),
               query("max (vllm:eplb_max_tokens_per_rank{ENGINE_LAYER} - vllm:eplb_avg_tokens_per_rank{ENGINE_LAYER})",
                     "distance"), min=0, decimals=0),
    timeseries("How balanced could it be?",
               about("The balancedness that a rearrangement for the newest loads would reach with as many physical "
                     "experts, mean and worst over layers, beside the present one. An upper bound: it evens out sums, "
                     "not single passes.",
                     "the present one follows closely.",
                     "a gap that stays open calls for a rearrangement; a low bound calls for more redundant experts."),
               "none", query("avg (min by (layer) (vllm:eplb_balancedness_ratio{ENGINE_LAYER}))", "present, mean"),
               query("avg (min by (group, layer) (wideep_eplb_achievable_balancedness{LAYER}))", "achievable, mean"),
               query("min (wideep_eplb_achievable_balancedness{LAYER})", "achievable, worst layer"),
               min=0, max=1, decimals=3),
    timeseries("What does imbalance cost, and what would rearranging win?",
               about("Cost: share of expert time lost. Gain: share of that cost that rearranging now would win back. "
                     "Drift: how far the loads of the experts have moved since the last rearrangement (total "
                     "variation distance).",
                     "drift and gain rise slowly and fall at each rearrangement.",
                     "gain high right after a rearrangement: it worked with old loads; lengthen the engine's window or "
                     "shorten its step. Drift high and gain low: the load moves, but evenly."),
               "percentunit", query("max by (group) (wideep_eplb_imbalance_cost_ratio{MODEL})", "cost, group "
                                                                                                "{{group}}"),
               query("max by (group) (wideep_eplb_rearrangement_gain_ratio{MODEL})", "gain, group {{group}}"),
               query("max by (group) (wideep_eplb_drift_ratio{MODEL})", "drift, group {{group}}"), min=0, max=1),
]

RANKS = [
    matrix("Which EP ranks carry most, in which layers?",
           about("Tokens routed to each EP rank (columns) in each layer (rows) over the time shown, relative to the "
                 "layer's average. Added up over the pods selected, as each counts what its own ranks routed; with "
                 "several groups of one model, select the pods of one.",
                 "all near 1.",
                 "a red column is a rank that is slow for everybody: too many hot experts placed on it. A red cell is "
                 "one hot expert in one layer: rearrange, or give it replicas."),
           "none", now(f"{RANK_LOAD} / on (layer) group_left () avg by (layer) ({RANK_LOAD})", format="table"),
           "layer", "ep_rank", colour="continuous-BlYlRd", min=0.5, max=1.5, decimals=2),
    bars("Which EP ranks carry most over all layers?",
         about("Tokens routed to each EP rank over the time shown, relative to the average rank, for the layers "
               "selected.",
               "all near 1: what one layer has too much of, another has too little.",
               "a rank above 1.2 is loaded in most layers; look whether it has the redundant experts of the others."),
         "none", now("sort_desc(sum by (ep_rank) (rate(wideep_eplb_rank_tokens_total{LAYER}[$__range])) / scalar("
                     "avg (sum by (ep_rank) (rate(wideep_eplb_rank_tokens_total{LAYER}[$__range])))))",
                     "rank {{ep_rank}}"), steps=[(None, GREEN), (1.2, YELLOW), (1.5, RED)], min=0, max=2, decimals=2),
    timeseries("How balanced are the ranks over all pods?",
               about("Average ÷ maximum of the tokens per EP rank, added up over the pods selected before the maximum "
                     "is taken. An upper bound of that of single passes, since it averages over the window first.",
                     "above the figures of single pods, and level.",
                     "low here is low in every pass: the same rank is the slowest all the time."),
               "none", query(f"avg by (layer) ({RANK_RATE}) / max by (layer) ({RANK_RATE})", "layer {{layer}}"),
               min=0, max=1, decimals=3),
    timeseries("Are all ranks of the group read?",
               about("EP ranks of the group, and those that one exporter reads. Where it reads fewer, its loads are "
                     "scaled up from a sample.",
                     "alike on one host; in groups over several pods each exporter reads its own part.",
                     "a fall is a dead rank, see above; fewer from the start: the segments are not shared with this "
                     "pod, or rejected, see *Which segments are there?*."),
               "none", query("max by (group) (wideep_ep_size{MODEL})", "group {{group}}: all"),
               query("max by (group, instance) (wideep_ep_ranks_seen{MODEL})",
                     "group {{group}}: read by {{instance}}"), min=0, decimals=0),
]

REARRANGEMENTS = [
    states("Is a rearrangement under way?",
           about("By engine. An asynchronous rearrangement moves experts beside the passes; a synchronous one blocks "
                 "the engine, which answers nothing until it ends. One shorter than the scrape interval may fall "
                 "between two scrapes; the panels below count it nonetheless.",
                 "short and rare, alike on all engines of a group.",
                 "blocked for long: see the durations. Send no requests meanwhile: `/lb` says so to load balancers."),
           query("max by (engine) (vllm:eplb_rebalancing{ENGINE}) + max by (engine) (wideep_eplb_blocked{ENGINE})",
                 "engine {{engine}}"),
           {0: ("none", "rgba(115, 191, 105, 0.25)"), 1: ("asynchronous", ORANGE), 2: ("blocked", RED)}, width=24),
    timeseries("How many rearrangements were there?",
               about("Completed ones by mode, in the time since the point before or the last four scrapes. They are "
                     "also marked in every panel (*Rearrangements* above switches that).",
                     "one by each configured interval.",
                     "none: see *Is a rearrangement overdue?*. Many: the interval is short against what each of them "
                     "costs."),
               "none", query("max by (mode) (increase(wideep_eplb_rearrangements_by_mode_total{ENGINE}[$rate]))",
                             "{{mode}}"), draw="bars", stack="normal", min=0, decimals=0, width=8),
    timeseries("How long did rearrangements take?",
               about("Mean duration of those completed, a point where there were any.",
                     "level; it grows with layers, experts and the distance between ranks.",
                     "rising: weights go over a slower link, or a rank is late to join."),
               "s", query("max (rate(vllm:eplb_rearrangement_duration_seconds_sum{ENGINE}[$rate])"
                          " / rate(vllm:eplb_rearrangement_duration_seconds_count{ENGINE}[$rate]))", "mean"),
               draw="points", min=0, width=8),
    heatmap("How are their durations distributed?",
            about("Completed rearrangements by duration.",
                  "one row.",
                  "a second row far above is the one that stalls requests: compare it with the mode."),
            "s", buckets("max by (le) (increase(vllm:eplb_rearrangement_duration_seconds_bucket{ENGINE}[$rate]))"),
            width=8),
    timeseries("For how long has the present one been running?",
               about("Seconds since the rearrangement that is under way began; 0 when there is none.",
                     "saw teeth no higher than the durations beside.",
                     "rising without end: a rank hangs in it. Look for a dead rank or a stuck collective."),
               "s", query("max by (engine) (wideep_eplb_rebalancing_seconds{ENGINE})", "engine {{engine}}"), min=0,
               width=8),
    timeseries("Is a rearrangement overdue?",
               about("Passes beyond the configured interval without one.",
                     "0, and for a few passes more.",
                     "rising without end: rearrangements have silently stopped. Restart the engine, look into its log "
                     "for the asynchronous worker."),
               "none", query("max by (engine) (wideep_eplb_passes_overdue{ENGINE})", "engine {{engine}}"), min=0,
               decimals=0, width=8),
    states("Are loads being recorded?",
           about("Engines record loads in bursts where they are configured so.",
                 "on, or on and off in turns.",
                 "off for long: the gauges on expert balance stand still and say nothing of now."),
           query("max by (engine) (wideep_eplb_recording{ENGINE})", "engine {{engine}}"),
           {0: ("no", ORANGE), 1: ("yes", GREEN)}, width=8, height=8),
]

DBO = [
    timeseries("In what share of passes is DBO engaged?",
               about("By phase, of the passes in which the engines decided about Dual Batch Overlap.",
                     "steady under a steady load.",
                     "a fall with smaller batches is right; a fall with fallouts beside it is not."),
               "percentunit",
               query('max by (phase) (rate(wideep_dbo_passes_total{ENGINE,outcome="engaged"}[$rate]))'
                     " / sum by (phase) (max by (phase, outcome) (rate(wideep_dbo_passes_total{ENGINE}[$rate])))",
                     "{{phase}}"), min=0, max=1, width=8),
    timeseries("Why does DBO fall out?",
               about("Fallouts a second by reason. Every engine of a group reports the same ones; shown is the most "
                     "of any.",
                     "near 0.",
                     "`empty_second_ubatch`: batches just above a padding boundary, see the ubatch sizes below. "
                     "`coordination_failure`: data-parallel ranks disagreed, since some had too few tokens: spread "
                     "requests more evenly. `other`: the engine's log."),
               "cps", query(FALLOUTS, "{{reason}}"), stack="normal", min=0, width=8),
    timeseries("What became of each pass?",
               about("Passes by outcome, as shares of all.",
                     "*engaged* under load; *below_threshold* with small batches, *idle_rank* where a rank had "
                     "nothing to do.",
                     "much *below_threshold* under load: lower the thresholds. Much *idle_rank*: requests are spread "
                     "unevenly over engines."),
               "cps", query("sum by (outcome) (max by (phase, outcome)"
                            " (rate(wideep_dbo_passes_total{ENGINE}[$rate])))", "{{outcome}}"),
               stack="percent", min=0, width=8),
    states("Where is DBO engaged now?",
           about("By engine and phase: the newest pass had this phase and was overlapped.",
                 "alike on all engines of a group.",
                 "off on all engines at once is a decision of the group; its reason is above."),
           query("max by (engine, phase) (vllm:dbo_active{ENGINE})", "engine {{engine}}, {{phase}}"),
           {0: ("off", "rgba(115, 191, 105, 0.25)"), 1: ("engaged", GREEN)}, width=24, height=8),
    timeseries("How large are ubatches where DBO falls out?",
               about("Median and 95th percentile of tokens per ubatch, padding left out (left, logarithmic), beside "
                     "the fallouts for an empty second ubatch (right). The dashed line is at 256 tokens, the boundary "
                     "to which batches are padded: a batch just above it can leave nothing for the second ubatch.",
                     "first and second close together.",
                     "fallouts that come when the sizes near the line are that boundary. Move the DBO token "
                     "thresholds or the batch size away from it."),
               "none", query(quantile(0.5, "vllm:ubatch_token_count_bucket{ENGINE}", "le, ubatch_index"),
                             "{{ubatch_index}}, p50"),
               query(quantile(0.95, "vllm:ubatch_token_count_bucket{ENGINE}", "le, ubatch_index"),
                     "{{ubatch_index}}, p95"),
               query('max (rate(vllm:dbo_fallout_total{ENGINE,reason="empty_second_ubatch"}[$rate]))',
                     "empty second ubatch"), width=24, height=9, line=256, min=1, decimals=0,
               overrides=[{"matcher": {"id": "byFrameRefID", "options": ref},
                           "properties": [{"id": "custom.scaleDistribution", "value": {"type": "log", "log": 2}}]}
                          for ref in "AB"]
               + [right_axis("C", unit="cps", min=0, decimals=2, **{"custom.thresholdsStyle": {"mode": "off"}})]),
    heatmap("How large are first ubatches?",
            about("Passes by the tokens of their first ubatch, in powers of two.",
                  "one band that follows the load.",
                  "a band at the row that ends at 256 makes fallouts likely."),
            "none", buckets("sum by (le) (increase(vllm:ubatch_token_count_bucket"
                            '{ENGINE,ubatch_index="first"}[$rate]))')),
    heatmap("How large are second ubatches?",
            about("Passes by the tokens of their second ubatch.",
                  "as the first ones.",
                  "much lower rows than beside: the split is uneven, and the overlap hides little. The bottom row is "
                  "the step before an empty one."),
            "none", buckets("sum by (le) (increase(vllm:ubatch_token_count_bucket"
                            '{ENGINE,ubatch_index="second"}[$rate]))')),
]

THROUGHPUT = [
    timeseries("How many tokens does each engine generate?",
               about("Generated tokens a second of each engine, over the exporter's last whole interval.",
                     "alike on all engines, where requests are spread evenly.",
                     "one engine below the rest: look at its ranks; all at once: see the first row."),
               TOKENS, query("sum by (engine) (vllm:generation_throughput_toks_per_s{ENGINE})", "engine {{engine}}"),
               min=0),
    timeseries("How many prompt tokens does each engine take in?",
               about("Prompt tokens a second of each engine, over the exporter's last whole interval.",
                     "alike on all engines.",
                     "uneven: the router prefers some engines, whose batches are then larger and whose ranks are "
                     "waited for."),
               TOKENS, query("sum by (engine) (vllm:prompt_throughput_toks_per_s{ENGINE})", "engine {{engine}}"),
               min=0),
    timeseries("How unsteady is each engine?",
               about("Standard deviation ÷ mean of its generated tokens a second over ten minutes.",
                     "below 10 % under a steady load.",
                     "periodic waves: rearrangements or DBO fallouts; compare with the marks."),
               "percentunit",
               query("max by (engine) (stddev_over_time(vllm:generation_throughput_toks_per_s{ENGINE}[10m])"
                     " / avg_over_time(vllm:generation_throughput_toks_per_s{ENGINE}[10m]))", "engine {{engine}}"),
               min=0),
    timeseries("How far apart are the engines?",
               about("Standard deviation ÷ mean, and (highest − lowest) ÷ mean, over the engines at each time.",
                     "below 10 %; 0 with one engine.",
                     "the engines of a group wait for each other in every pass, so the spread is one of requests: "
                     "look at the router."),
               "percentunit", query("stddev (vllm:generation_throughput_toks_per_s{ENGINE})"
                                    " / avg (vllm:generation_throughput_toks_per_s{ENGINE})", "standard deviation"),
               query("(max (vllm:generation_throughput_toks_per_s{ENGINE})"
                     " - min (vllm:generation_throughput_toks_per_s{ENGINE}))"
                     " / avg (vllm:generation_throughput_toks_per_s{ENGINE})", "highest − lowest"), min=0),
]

HEALTH = [
    timeseries("How old are the figures?",
               about("Time since the exporter last collected, as Prometheus sees it: up to a scrape interval is its "
                     "own.",
                     "below the scrape interval plus a second.",
                     "rising: the collector stands still, or clocks differ between the hosts."),
               "s", query("time() - wideep_snapshot_timestamp_seconds{EXPORTER}", "{{instance}}"), min=0, width=8),
    timeseries("How long do scrapes take?",
               about("As Prometheus measures it.",
                     "a few ms, 100 ms with per-expert series.",
                     "near the scrape timeout: switch the debug mode off, or give the exporter CPU."),
               "s", query(f"max by (instance) (scrape_duration_seconds{{EXPORTER}} {OURS})", "{{instance}}"), min=0,
               width=8),
    timeseries("Is each exporter scraped?",
               about("1: the last scrape succeeded. Exporters that served in the last hour.",
                     "1.",
                     "0: see Prometheus' page of targets for the error."),
               "none", query("min by (instance) (up{EXPORTER} and on (job, instance)"
                             " last_over_time(wideep_build_info{EXPORTER}[1h]))", "{{instance}}"), min=0, max=1,
               decimals=0, width=8),
    timeseries("Which segments are there?",
               about("Files in the directory by state, and why some are not served.",
                     "`live` as many as ranks and front ends.",
                     "`rejected`: the reason says why, the exporter's log what to do. `dead`: a rank ended without "
                     "closing."),
               "none", query("sum by (state, reason) (wideep_segments{EXPORTER}) > 0", "{{state}}: {{reason}}"), min=0,
               decimals=0, width=8),
    timeseries("Are records lost?",
               about("Records a second that could not be read from rings, by cause. Totals are never lost, only "
                     "resolution in time.",
                     "0.",
                     "`overrun`: the exporter had no CPU for longer than a ring holds. `late`: ranks are seconds "
                     "apart."),
               "cps", query("sum by (kind, cause) (rate(wideep_records_lost_total{EXPORTER}[$rate]))",
                            "{{kind}}: {{cause}}"), min=0, width=8),
    timeseries("Are passes left out?",
               about("Passes a second that could not be joined over all ranks of the group, by cause. They are in no "
                     "figure on balance.",
                     "0, but for the moments in which ranks start or end.",
                     "`dead`: a rank died; `late`: a rank hangs behind by a second; `lost`: as beside; "
                     "`step_mismatch`: ranks count their rearrangements differently."),
               "cps", query("sum by (cause) (rate(wideep_eplb_passes_incomplete_total{MODEL}[$rate]))", "{{cause}}"),
               min=0, width=8),
    timeseries("How long does the exporter's work take?",
               about("95th percentile of one collection, one rendering by format, and one compression.",
                     "collections far below the collection interval (250 ms).",
                     "near it: fewer ranks for each exporter, more CPU, a longer interval."),
               "s", query(quantile(0.95, "wideep_collect_duration_seconds_bucket{EXPORTER}", "le"), "collect"),
               query(quantile(0.95, "wideep_render_duration_seconds_bucket{EXPORTER}", "le, format"),
                     "render {{format}}"),
               query(quantile(0.95, "wideep_compress_duration_seconds_bucket{EXPORTER}", "le"), "compress"), min=0,
               width=8),
    timeseries("How much memory does it use?",
               about("Resident memory of each exporter, mapped segments included as far as they were touched.",
                     "level; it grows with ranks, layers and, in debug mode, experts.",
                     "rising without end is a defect: please report it."),
               "bytes", query(f"max by (instance) (process_resident_memory_bytes{{EXPORTER}} {OURS})", "{{instance}}"),
               min=0, width=8),
    timeseries("How much CPU does it use?",
               about("CPU seconds a second.",
                     "below 0.1 of a core.",
                     "much more: many scrapers with different formats, or per-expert series."),
               "none", query(f"max by (instance) (rate(process_cpu_seconds_total{{EXPORTER}}[$rate]) {OURS})",
                             "{{instance}}"), min=0, decimals=3, width=8),
    timeseries("How many series are there?",
               about("Samples of a scrape, and series left out over `--limit.series`.",
                     "level, and none left out.",
                     "left out: raise the limit, or end the debug mode."),
               "none", query(f"max by (instance) (scrape_samples_scraped{{EXPORTER}} {OURS})", "{{instance}}"),
               query("max by (instance) (wideep_series_dropped{EXPORTER})", "{{instance}}: left out"), min=0,
               decimals=0),
    timeseries("Who asks, and with what success?",
               about("HTTP requests a second by handler and code.",
                     "`metrics` and the probes, all 200; `lb` has 503 while an engine is blocked or dead.",
                     "503 of `metrics`: too many scrapers at once. 401 and 403: somebody without the right password."),
               "reqps", query("sum by (handler, code) (rate(wideep_http_requests_total{EXPORTER}[$rate]))",
                              "{{handler}} {{code}}"), min=0),
]

EXPERTS = [
    text("**Debug mode only.** These panels need `vllm:expert_load_per_expert_tokens_DEBUG`: one series for each "
         "layer and expert, about 15 000 for 58 layers of 256 experts, eighty times as many as all others. Switch it "
         "on for minutes: `curl -X POST 'http://EXPORTER:9464/-/debug/per-expert?duration=5m&layer=3'` (with "
         "`--web.enable-admin-api`). It ends by itself. **Select few layers above before you open this row.**",
         "What this row needs, and what that costs Prometheus."),
    timeseries("Which experts are hottest?",
               about("Tokens a pass of the ten logical experts with most, all their replicas together.",
                     "no expert far above the next.",
                     "an expert that stays on top needs replicas: more redundant experts, then a rearrangement."),
               "none", query(f"topk(10, {EXPERT})", "layer {{layer}}, expert {{expert_id}}"), min=0,
               decimals=1, height=10),
    timeseries("How unequal are the experts of a layer?",
               about("Standard deviation ÷ mean over its experts.",
                     "0.3 to 1; routing is never even.",
                     "far above the other layers: few experts take most of it."),
               "none", query(f"stddev by (layer) ({EXPERT}) / avg by (layer) ({EXPERT})", "layer {{layer}}"), min=0,
               decimals=2, height=10),
    bars("Which experts are above a rank's average?",
         about("Tokens of the twenty hottest experts ÷ the average of an EP rank: above 1 an expert without replicas "
               "overloads any rank that it is placed on, whatever else is there.",
               "below 0.5.",
               "near or above 1: no placement can balance it without replicas."),
         "none", now(f"topk(20, {EXPERT} / on (layer) group_left ()"
                     " max by (layer) (vllm:eplb_avg_tokens_per_rank{LAYER}))", "layer {{layer}}, expert "
                                                                                "{{expert_id}}"),
         width=12, height=10, steps=[(None, GREEN), (0.5, YELLOW), (1, RED)], min=0, decimals=2),
    timeseries("How many debug series are there?",
               about("Series of the debug mode from the exporters selected.",
                     "none, but while somebody looks at this row.",
                     "end it: `curl -X DELETE 'http://EXPORTER:9464/-/debug/per-expert'`."),
               "none", query("count (vllm:expert_load_per_expert_tokens_DEBUG{MODEL})", "series"), min=0, decimals=0,
               height=10),
]

# Title, whether it is folded, panels.
ROWS = [
    ("At a glance", False, GLANCE),
    ("Expert balance (EPLB)", False, BALANCE),
    ("Ranks and layers", False, RANKS),
    ("Rearrangements", False, REARRANGEMENTS),
    ("Dual Batch Overlap (DBO) and ubatches", False, DBO),
    ("Throughput by engine", False, THROUGHPUT),
    ("The exporter's health", False, HEALTH),
    ("Single experts: debug mode only, HIGH CARDINALITY", True, EXPERTS),
]


# ---- the dashboard ----------------------------------------------------------------------------------------------


def place(panels, top):
    """Fills lines from left to right, each as high as its highest panel; returns where the next one begins."""
    left = height = 0
    for one in panels:
        position = one["gridPos"]
        if left + position["w"] > WIDTH:
            left, top, height = 0, top + height, 0
        position |= {"x": left, "y": top}
        left, height = left + position["w"], max(height, position["h"])
    return top + height


def laid_out(rows):
    """Rows and panels in Grafana's order: those of a folded row are inside it."""
    out, top, number = [], 0, 0
    for title, folded, panels in rows:
        row = {"type": "row", "title": title, "collapsed": folded, "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        bottom = place(panels, top + 1)
        top = top + 1 if folded else bottom
        row["panels"] = panels if folded else []
        out += [row] if folded else [row, *panels]
        for one in [row, *panels]:
            number += 1
            one["id"] = number
    return out


def variable(name, label, metric, of, description, multi=True):
    values = expand(f"label_values({metric}, {of})")
    out = {"name": name, "label": label, "description": description, "type": "query", "datasource": DATASOURCE,
           "query": {"query": values, "refId": "StandardVariableQuery"}, "refresh": 2, "regex": "",
           "sort": 3, "hide": 0, "multi": multi, "includeAll": multi}
    if multi:
        # Matches the empty value of a label that a target lacks, too.
        out |= {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    return out


def annotation(name, colour, expr, title, tags=""):
    return {"name": name, "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": colour,
            "target": {"refId": "Anno", "expr": expand(expr), "range": True, "instant": False},
            "titleFormat": title, "textFormat": "", "tagKeys": tags}


def dashboard():
    return {
        "uid": "wideep",
        "title": "Wide expert parallelism",
        "description": "Expert balance, Dual Batch Overlap and throughput of wide expert-parallel engines, from "
                       "wideep-exporter.",
        "tags": ["wideep", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "regex": "",
             "refresh": 1, "hide": 0, "multi": False, "includeAll": False},
            variable("pod", "Pod", "wideep_build_info", "pod", "Where Prometheus adds a label pod, as in Kubernetes."),
            variable("instance", "Exporter", 'wideep_build_info{pod=~"$pod"}', "instance",
                     "The exporters, as Prometheus' label instance names them."),
            variable("model", "Model", "wideep_ep_size{EXPORTER}", "model_name", "One model at a time.", multi=False),
            variable("engine", "Engine", "vllm:eplb_rearrangements_total{MODEL}", "engine",
                     "Engines of a group report its figures alike."),
            variable("layer", "Layer", "wideep_eplb_passes_total{MODEL}", "layer", "MoE layers, counted from 0."),
        ]},
        "annotations": {"list": [
            {"builtIn": 1, "name": "Annotations & Alerts", "type": "dashboard", "enable": True, "hide": True,
             "iconColor": "rgba(0, 211, 255, 1)", "datasource": {"type": "grafana", "uid": "-- Grafana --"}},
            annotation("Rearrangements", ORANGE,
                       "max by (mode) (increase(wideep_eplb_rearrangements_by_mode_total{ENGINE}[$rate]))",
                       "Rearrangement ({{mode}})", "mode"),
            annotation("Blocked engines", RED, "max by (engine) (wideep_eplb_blocked{ENGINE})",
                       "Engine {{engine}} is blocked", "engine"),
            annotation("Dead ranks", "purple", "max by (engine, rank) (1 - wideep_rank_up{RANK})",
                       "Rank {{rank}} of engine {{engine}} is dead", "engine,rank"),
        ]},
        "panels": laid_out(ROWS),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2, ensure_ascii=False))

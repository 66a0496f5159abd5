#!/usr/bin/python3
"""The same work with Python's prometheus_client: in one process, or, with PROMETHEUS_MULTIPROC_DIR set, as vLLM has it.

    python_peer.py record [--ms=N]          samples of each case, one JSON object a line
    python_peer.py serve PORT [--debug]     16 passes, then an HTTP server; says `ready`

Names, labels and bucket bounds are those of wideep-exporter.
"""

import argparse
import json
import os
import time

import prometheus_client as prometheus
from prometheus_client import multiprocess

LAYERS, EXPERTS, PASSES = 60, 256, 16
MODEL, ENGINE = "deepseek-ai/DeepSeek-R1-0528", "0"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR" in os.environ


def gauge(name, *labels):
    mode = {"multiprocess_mode": "livesum"} if MULTIPROCESS else {}
    return prometheus.Gauge(name, name, ("model_name", "engine", *labels), **mode)


BALANCEDNESS = gauge("vllm:eplb_balancedness_ratio", "layer")
AVERAGE = gauge("vllm:eplb_avg_tokens_per_rank", "layer")
MAXIMUM = gauge("vllm:eplb_max_tokens_per_rank", "layer")
ACTIVE = gauge("vllm:dbo_active", "phase")
FALLOUT = prometheus.Counter("vllm:dbo_fallout", "vllm:dbo_fallout", ("model_name", "engine", "reason"))
UBATCH = prometheus.Histogram("vllm:ubatch_token_count", "vllm:ubatch_token_count",
                              ("model_name", "engine", "ubatch_index"), buckets=[2.0**i for i in range(14)])
EXPERT = gauge("vllm:expert_load_per_expert_tokens_DEBUG", "layer", "expert_id")

LAYER_NAMES = [str(i) for i in range(LAYERS)]
EXPERT_NAMES = [str(i) for i in range(EXPERTS)]
VALUES = [(0.75 + i / 1000, 100.0 + i, 130.0 + 2 * i) for i in range(LAYERS)]
LOADS = [[float((7 * layer + 13 * expert) % 31) for expert in range(EXPERTS)] for layer in range(LAYERS)]


def children_of_layers():
    return [(BALANCEDNESS.labels(MODEL, ENGINE, x), AVERAGE.labels(MODEL, ENGINE, x), MAXIMUM.labels(MODEL, ENGINE, x))
            for x in LAYER_NAMES]


def children_of_dbo():
    return (ACTIVE.labels(MODEL, ENGINE, "decode"), FALLOUT.labels(MODEL, ENGINE, "empty_second_ubatch"),
            UBATCH.labels(MODEL, ENGINE, "first"), UBATCH.labels(MODEL, ENGINE, "second"))


def children_of_experts():
    return [[EXPERT.labels(MODEL, ENGINE, layer, expert) for expert in EXPERT_NAMES] for layer in LAYER_NAMES]


class Work:
    """Handles are kept, or, in the cases that end in _labels, looked up for each value."""

    def __init__(self, debug=True):
        self.number = 0
        self.layers, self.dbo = children_of_layers(), children_of_dbo()
        self.experts = children_of_experts() if debug else []

    def a(self, layers=None, dbo=None):
        for (ratio, average, maximum), values in zip(layers or self.layers, VALUES):
            ratio.set(values[0])
            average.set(values[1])
            maximum.set(values[2])
        active, fallout, first, second = dbo or self.dbo
        self.number += 1
        if self.number % 16 == 0:
            fallout.inc()
        active.set(0 if self.number % 16 == 0 else 1)
        first.observe(700)
        second.observe(600)

    def b(self, experts=None):
        for children, loads in zip(experts or self.experts, LOADS):
            for child, load in zip(children, loads):
                child.set(load)

    def cases(self):
        return {"work_a": self.a, "work_a_labels": lambda: self.a(children_of_layers(), children_of_dbo()),
                "work_b": self.b, "work_b_labels": lambda: self.b(children_of_experts())}


def gauges_of_slots():
    """A call that sets a gauge for each physical expert's load of a pass."""
    family = gauge("slot_tokens", "layer", "slot")
    gauges = [family.labels(MODEL, ENGINE, layer, slot) for layer in range(58) for slot in range(288)]
    loads = [float(7 * i % 31) for i in range(len(gauges))]

    def record_pass():
        for child, load in zip(gauges, loads):
            child.set(load)
    return record_pass


def record(ms):
    for name, call in (Work().cases() | {"pass": gauges_of_slots()}).items():
        samples, end = [], time.perf_counter() + ms / 1e3
        call()
        while len(samples) < 2 or time.perf_counter() < end:
            begin = time.perf_counter_ns()
            call()
            samples.append(time.perf_counter_ns() - begin)
        print(json.dumps({"case": name, "ns": samples}), flush=True)


def serve(port, debug):
    work, registry = Work(debug), prometheus.REGISTRY
    for _ in range(PASSES):
        work.a()
        if debug:
            work.b()
    if MULTIPROCESS:
        registry = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    prometheus.start_http_server(port, addr="127.0.0.1", registry=registry)
    print("ready", flush=True)
    while True:
        time.sleep(3600)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("record", "serve"))
    parser.add_argument("port", nargs="?", type=int)
    parser.add_argument("--ms", type=float, default=100)
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()
    if options.what == "record":
        record(options.ms)
    else:
        serve(options.port, options.debug)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What the advisor says of loads that are known, against the published method as it is written down here."""

import ctypes
import os
import random
import threading

import pytest

from abi_helpers import Config, ModelConfig, Pass, library
from exporter_helpers import exporting, shared_directory

MODEL, RANKS, EXPERTS, SLOTS, LAYERS = "m", 4, 16, 20, 4
NO_STEP = 0xFFFFFFFF
NAMES = ("wideep_eplb_achievable_balancedness", "wideep_eplb_rearrangement_gain_ratio", "wideep_eplb_drift_ratio")


def planned_max(loads, slots, ranks):
    """DeepSeek's EPLB, global: replicate_experts, then balanced_packing."""
    replicas = [1] * len(loads)
    for _ in range(slots - len(loads)):
        replicas[max(range(len(loads)), key=lambda e: (loads[e] / replicas[e], -e))] += 1
    weights = sorted((loads[e] / replicas[e] for e in range(len(loads)) for _ in range(replicas[e])), reverse=True)
    packs = [[] for _ in range(ranks)]
    for weight in weights:
        min((p for p in packs if len(p) < slots // ranks), key=sum).append(weight)
    return max(map(sum, packs))


def loads_by_layer(seed):
    noise = random.Random(seed)
    zipf = [2000 // (1 + noise.randrange(EXPERTS)) for _ in range(EXPERTS)]
    return [[noise.randrange(1000) for _ in range(EXPERTS)], zipf, [900 if e == 5 else 0 for e in range(EXPERTS)],
            [100] * EXPERTS]


# Physical expert p holds expert p, and the last ones hold the first experts again, which get no tokens there.
MAP = [p % EXPERTS for p in range(SLOTS)]


class Ranks:
    """All ranks of a group, in this process. Each pass has the same loads, a rank's share of which is its number's."""

    SHARES = (1, 2, 3, 4)

    def __init__(self, directory):
        self.library, self.writers, self.number = library(), [], 0
        for rank in range(RANKS):
            config = Config(directory=os.fsencode(directory), rank=rank, ep_size=RANKS, model_count=1, group=7)
            config.models[0] = ModelConfig(MODEL.encode(), LAYERS, EXPERTS, SLOTS)
            writer = ctypes.c_void_p()
            assert self.library.wideep_create(ctypes.byref(writer), ctypes.byref(config)) == 0
            self.writers.append(writer)
        self.use(None)
        self.ended, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.run)

    def use(self, layers):
        self.loads = layers and [[tokens for e in range(SLOTS) for tokens in [layer[e] if e < EXPERTS else 0]]
                                 for layer in layers]

    def record(self):
        words = ctypes.c_int32 * (LAYERS * SLOTS)
        for writer, share in zip(self.writers, self.SHARES):
            loads = words(*(share * tokens for layer in self.loads for tokens in layer))
            what = Pass(self.number, 0, NO_STEP, 0)
            assert self.library.wideep_record_pass(writer, ctypes.byref(what), loads, words(*(MAP * LAYERS))) == 0
        self.number += 1

    def run(self):
        while not self.ended.wait(0.01):
            with self.lock:
                if self.loads:
                    self.record()

    def rearrange(self):
        with self.lock:
            for writer in self.writers:
                assert self.library.wideep_rearrangement_begin(writer, 0, 0) == 0
                assert self.library.wideep_rearrangement_end(writer, 0, None) == 0

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        for writer in self.writers:
            self.library.wideep_close(ctypes.byref(writer))


@pytest.fixture
def ranks():
    with shared_directory() as directory, Ranks(directory) as ranks:
        ranks.directory = directory
        yield ranks


def about(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def achievable(page):
    found = {int(labels["layer"]): value for labels, value in page.of(NAMES[0], model_name=MODEL, group=0)}
    return [found.get(layer) for layer in range(LAYERS)]


def one(page, name):
    found = page.of(name, model_name=MODEL, group=0)
    return found[0][1] if found else None


def settled(loads):
    expected = [sum(layer) / RANKS / planned_max(layer, SLOTS, RANKS) for layer in loads]
    return lambda page: None not in achievable(page) and achievable(page) == about(expected)


def rank_loads(layer):
    """As MAP places them: rank r has the physical experts from 5 r on."""
    return [sum(layer[e] for e in range(5 * rank, min(5 * rank + 5, EXPERTS))) for rank in range(RANKS)]


def test_plan_gain_and_drift(ranks):
    before, after = loads_by_layer(1), loads_by_layer(2)
    with exporting(ranks.directory, "--advisor.interval=500ms", "--eplb.window=1s") as exporter:
        ranks.use(before)
        page = exporter.wait_page(settled(before))
        assert one(page, NAMES[2]) == 0

        # Each pass is like the others, so what evening out their sum wins is all that can be won.
        avg = sum(sum(layer) for layer in before) / RANKS
        lost = sum(max(rank_loads(layer)) for layer in before) - avg
        kept = sum(planned_max(layer, SLOTS, RANKS) for layer in before) - avg
        assert one(page, NAMES[1]) == about((lost - kept) / lost)
        page = exporter.wait_page(lambda page: one(page, "wideep_eplb_imbalance_cost_ratio") is not None)
        assert one(page, "wideep_eplb_imbalance_cost_ratio") == about(lost / (lost + avg))

        ranks.use(after)
        drift = sum(sum(abs(a / sum(x) - b / sum(y)) for a, b in zip(x, y)) / 2
                    for x, y in zip(before, after)) / LAYERS
        assert drift > 0.1
        exporter.wait_page(lambda page: settled(after)(page) and one(page, NAMES[2]) == about(drift))

        # A rearrangement begins the comparison anew, and with the same loads nothing has moved since.
        ranks.rearrange()
        exporter.wait_page(lambda page: settled(after)(page) and one(page, NAMES[2]) == 0)

        # Without tokens what was said last stands; of ranks that have gone nothing is said.
        ranks.use(None)
        turns = exporter.scrape().one("wideep_collect_duration_seconds_count")
        page = exporter.wait_page(lambda page: page.one("wideep_collect_duration_seconds_count") > turns + 8)
        assert settled(after)(page)
        with ranks.lock:
            for writer in ranks.writers:
                ranks.library.wideep_close(ctypes.byref(writer))
        exporter.wait_page(lambda page: not any(page.of(name) for name in NAMES))


def test_layers_without_tokens_and_balanced_ones(ranks):
    even = [[0] * EXPERTS, [100] * EXPERTS, [0] * EXPERTS, [100 if e % 4 == 0 else 0 for e in range(EXPERTS)]]
    with exporting(ranks.directory, "--advisor.interval=500ms") as exporter:
        ranks.use(even)
        page = exporter.wait_page(lambda page: achievable(page)[1] is not None)
        assert achievable(page)[0] is None and achievable(page)[2] is None


def test_switched_off(ranks):
    with exporting(ranks.directory, "--advisor.interval=0s") as exporter:
        ranks.use(loads_by_layer(1))
        page = exporter.wait_page(lambda page: one(page, "wideep_eplb_imbalance_cost_ratio") is not None)
        assert not any(page.of(name) for name in NAMES)
        threads = os.listdir(f"/proc/{exporter.pid}/task")
        names = {open(f"/proc/{exporter.pid}/task/{thread}/comm").read().strip() for thread in threads}
        assert "collector" in names and "advisor" not in names

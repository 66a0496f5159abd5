# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin: its wheel in an empty virtual environment makes the metrics of a fake engine, which knows nothing of it,
appear at the exporter, equal to the engine's own books."""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import numpy
import pytest

from abi_helpers import UBATCH_BOUNDS, Segment
from exporter_helpers import Lines, exporting, gone, shared_directory, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "vllm"
MODEL, DRAFT = "served-name", "served-name:draft"
# Long enough for a pass to be drained from the ring before 64 later ones, on a busy machine.
FLAGS = ("--collect.interval=25ms", "--throughput.interval=1s")


@pytest.fixture(scope="session")
def python(tmp_path_factory, installed_wheel):
    """A python that has the wheel and numpy, and nothing else that was installed."""
    borrowed = tmp_path_factory.mktemp("borrowed")
    (borrowed / "numpy").symlink_to(pathlib.Path(numpy.__file__).parent)
    path = [TESTS / "fake", borrowed]
    try:
        import torch
        del torch
    except ImportError:
        path.append(TESTS / "shim")
    return types.SimpleNamespace(program=installed_wheel, path=os.pathsep.join(map(str, path)))


class Engine:
    """tests/vllm/engine.py"""

    def __init__(self, python, directory, out, env=None, **options):
        self.out, self.options = pathlib.Path(out), options
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("WIDEEP_", "PYTHON", "VLLM_"))}
        self.process = subprocess.Popen(
            [python.program, str(TESTS / "engine.py"), str(out), json.dumps(options)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**clean, "PYTHONPATH": python.path, "WIDEEP_SHM_DIR": str(directory), **(env or {})})
        self.lines, self.errors = Lines(self.process.stdout), Lines(self.process.stderr)
        self.pids = []

    def _said(self, word, times=1):
        def found():
            lines = [line for line in list(self.lines.lines) if line.split()[0] == word]
            assert lines or self.process.poll() is None, self.errors.lines
            return len(lines) >= times and lines[-1]

        return wait_for(found, 120)

    def ready(self):
        self.pids = [int(pid) for pid in self._said("ready").split()[1:]]
        return self

    def go(self, times=1):
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        self._said("done", times)
        return Books(self.out, len(self.pids))

    def log(self):
        """Lines of the plugin, without the process number."""
        return [line.split(" ", 1)[1] for line in list(self.errors.lines) if "wideep:" in line]

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0, self.errors.lines
        return self

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that it leads
        self.process.wait()
        wait_for(lambda: all(gone(pid) for pid in self.pids))


@contextlib.contextmanager
def serving(python, directory, out, **kwargs):
    out.mkdir(exist_ok=True)
    engine = Engine(python, directory, out, **kwargs)
    try:
        yield engine.ready()
    finally:
        engine.kill()


class Books:
    """What the engine says it did."""

    def __init__(self, out, ranks):
        self.ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]
        self.arrays = [dict(numpy.load(out / f"rank{rank}.npz")) for rank in range(ranks)]
        self.tokens = json.loads((out / "frontend.json").read_text())

    def loads(self, kind):
        """[rank][pass][layer][slot]"""
        return numpy.stack([arrays[f"{kind}_loads"] for arrays in self.arrays]).astype(numpy.int64)

    def rank_tokens(self, kind):
        """[pass][layer][ep rank], of the whole group."""
        loads = self.loads(kind).sum(axis=0)
        return loads.reshape(*loads.shape[:2], len(self.ranks), -1).sum(axis=-1)

    def expert_tokens(self, kind, rank, logical):
        """[layer][logical expert] that this rank has routed."""
        loads, maps = self.arrays[rank][f"{kind}_loads"], self.arrays[rank][f"{kind}_maps"]
        out = numpy.zeros((loads.shape[1], logical), numpy.int64)
        for _, layer, slot in zip(*numpy.nonzero(loads)) if False else ():
            del layer, slot
        for layer in range(loads.shape[1]):
            where, what = maps[:, layer].ravel(), loads[:, layer].ravel()
            numpy.add.at(out[layer], where[where >= 0], what[where >= 0])
        return out


def expect_loads(page, books, kind, model):
    """Everything that is joined, from the full loads of each pass."""
    tokens = books.rank_tokens(kind)
    passes, layers, ranks = tokens.shape
    for layer in range(layers):
        labels = {"model_name": model, "layer": layer}
        assert page.one("wideep_eplb_passes_total", **labels) == passes
        assert page.one("wideep_eplb_avg_tokens_total", **labels) == pytest.approx(tokens[:, layer].sum() / ranks)
        assert page.one("wideep_eplb_max_tokens_total", **labels) == tokens[:, layer].max(axis=-1).sum()
        for rank in range(ranks):
            assert page.one("wideep_eplb_rank_tokens_total", ep_rank=rank, **labels) == tokens[:, layer, rank].sum()
    maxima = tokens.max(axis=-1)
    balance = tokens.sum(axis=-1)[maxima > 0] / (ranks * maxima[maxima > 0])
    for labels, value in page.of("wideep_eplb_pass_balancedness_bucket", model_name=model):
        assert value == (balance <= float(labels["le"])).sum(), labels
    assert page.one("wideep_eplb_pass_balancedness_count", model_name=model) == len(balance)
    return True


def expect_dbo(page, books):
    for engine, rank in enumerate(books.ranks):
        counted = collections.Counter((phase, outcome) for phase, outcome, _ in rank["dbo"])
        for labels, value in page.of("wideep_dbo_passes_total", engine=engine):
            assert value == counted[labels["phase"], labels["outcome"]], labels
        sizes = [slices for _, _, slices in rank["dbo"] if slices]
        for index, name in enumerate(("first", "second", "third")):
            mine = [size[index] for size in sizes if index < len(size)]
            if mine:
                assert page.one("vllm:ubatch_token_count_sum", engine=engine, ubatch_index=name) == sum(mine)
                for bound in UBATCH_BOUNDS:
                    below = page.one("vllm:ubatch_token_count_bucket", engine=engine, ubatch_index=name, le=float(bound))
                    assert below == sum(size <= bound for size in mine)
    return True


def expect_rearrangements(page, books, mode, models):
    for engine, rank in enumerate(books.ranks):
        for model in models:
            by_mode = "wideep_eplb_rearrangements_by_mode_total"
            assert page.one(by_mode, engine=engine, model_name=model, mode=mode) == rank["rearrangements"]
            other = {"sync": "async", "async": "sync"}[mode]
            assert page.one(by_mode, engine=engine, model_name=model, mode=other) == 0
            count = "vllm:eplb_rearrangement_duration_seconds_count"
            assert page.one(count, engine=engine, model_name=model) == rank["rearrangements"]
    return True


def expect_tokens(page, books):
    for engine, (prompt, generation) in books.tokens.items():
        assert page.one("wideep_prompt_tokens_total", engine=engine, frontend=0) == prompt
        assert page.one("wideep_generation_tokens_total", engine=engine, frontend=0) == generation
    return True


def expect_experts(directory, books, logical=10):
    for rank in range(len(books.ranks)):
        segment = Segment(str(directory / f"wideep.default.e{rank}.r{rank}"))
        for model, kind in enumerate(kind for kind in ("target", "draft") if f"{kind}_loads" in books.arrays[rank]):
            found = numpy.array(segment.expert_plane(model))
            assert (found == books.expert_tokens(kind, rank, logical)).all()
    return True


@pytest.mark.parametrize("options", [
    {},
    {"async": True, "newer": True, "start": "fork", "device": "cuda", "delay": 0.0004},
    {"async": True, "start": "exec", "ubatches": 3, "draft": False},
    {"newer": True, "start": "spawn", "device": "cuda", "delay": 0.0004},
], ids=["sync-spawn", "async-newer-fork-device", "async-exec-3", "sync-newer-device"])
def test_all_that_the_engine_did_is_served(python, tmp_path, options):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", **options) as engine:
        exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        books = engine.go()
        models = {"target": MODEL, "draft": DRAFT} if options.get("draft", True) else {"target": MODEL}
        page = exporter.wait_page(lambda page: page.one("wideep_eplb_passes_total", model_name=MODEL, layer=0) ==
                                  books.ranks[0]["recorded"])
        assert page.incomplete() == {}
        for kind, model in models.items():
            expect_loads(page, books, kind, model)
        mode = "async" if options.get("async") else "sync"
        assert books.ranks[0]["rearrangements"] >= 3
        expect_rearrangements(page, books, mode, models.values())
        expect_dbo(page, books)
        expect_tokens(page, books)
        expect_experts(directory, books)
        assert page.one("wideep_ep_size", model_name=MODEL) == 4
        assert [line for line in engine.log() if "recorded in" not in line] == []
        engine.end()
        # An orderly end: gauges go, counters stay.
        exporter.wait_page(lambda page: not page.of("wideep_rank_up") and expect_dbo(page, books))

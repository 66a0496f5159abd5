# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin: its wheel in an empty virtual environment makes the metrics of a fake engine, which knows nothing
of it, appear at the exporter, equal to the engine's own books."""

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
from test_python import built, run  # pylint: disable=unused-import

pytestmark = pytest.mark.skipif(bool(os.environ.get("WIDEEP_SAN")),
                                reason="what it is about is not built with a sanitizer")

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "vllm"
MODEL, DRAFT = "served-name", "served-name:draft"
KINDS = (("target", MODEL), ("draft", DRAFT))
# The real one instead of the shim: `make check-torch`. It has no device but the CPU here.
WITH_TORCH = os.environ.get("WIDEEP_TEST_TORCH") == "1"
# Long enough for a pass to be drained from the ring before 64 later ones, on a busy machine.
FLAGS = ("--collect.interval=25ms", "--throughput.interval=1s")


@pytest.fixture(scope="session")
def python(tmp_path_factory, built):
    """A python with the wheel installed and nothing else, that is shown the fake engine, and numpy or torch."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    (wheel,) = (built / "sources" / "build" / "wheel").glob("*.whl")
    run(environment / "bin" / "pip", "install", "--no-index", "--no-deps", wheel)
    if WITH_TORCH:
        path = [TESTS / "fake", pathlib.Path(numpy.__file__).parents[1]]
    else:
        borrowed = tmp_path_factory.mktemp("borrowed")
        (borrowed / "numpy").symlink_to(pathlib.Path(numpy.__file__).parent)
        path = [TESTS / "fake", TESTS / "shim", borrowed]
    return types.SimpleNamespace(program=str(environment / "bin" / "python"), path=os.pathsep.join(map(str, path)))


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
        """Lines of the plugin that are not good news."""
        good = re.compile(r" recorded in | wideep: hooks in place: [^;]*(; not imported by this engine: [^;]*)?$|"
                          r" wideep: off, as WIDEEP_VLLM says$")
        return [line for line in list(self.errors.lines) if "wideep:" in line and not good.search(line)]

    def hooks_off(self):
        """Names of hooks, each of which said so once in each process that it concerns."""
        lines = []
        for line in self.log():
            if " wideep: hooks " in line:  # the summary, which says it again
                continue
            said = re.fullmatch(r"(\d+) wideep: (.*) hook is off, (.*)", line)
            assert said, line
            lines.append(said.groups())
        assert len({(pid, hook) for pid, hook, _ in lines}) == len(lines), lines
        return {hook for _, hook, _ in lines}

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

    def __eq__(self, other):
        return self.ranks == other.ranks and self.tokens == other.tokens and all(
            mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine)
            for mine, theirs in zip(self.arrays, other.arrays))

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
            found = numpy.array(segment.expert_tokens(model))
            assert (found == books.expert_tokens(kind, rank, logical)).all()
    return True


@pytest.mark.parametrize("options", [
    {},
    {"async": True, "newer": True, "start": "fork", "device": "cuda", "delay": 0.0004},
    {"async": True, "start": "exec", "ubatches": 3, "draft": False},
    {"newer": True, "start": "spawn", "device": "cuda", "delay": 0.0004},
], ids=["sync-spawn", "async-newer-fork-device", "async-exec-3", "sync-newer-device"])
def test_all_that_the_engine_did_is_served(python, tmp_path, options):
    if WITH_TORCH:
        options = {**options, "device": "cpu"}
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
        assert engine.log() == []
        engine.end()
        # An orderly end: gauges go, counters stay.
        exporter.wait_page(lambda page: not page.of("wideep_rank_up") and expect_dbo(page, books))


ALL = frozenset({"loads", "rearrangements", "dbo", "tokens"})


@pytest.fixture(scope="session")
def untouched(python, tmp_path_factory):
    """What the engine does when it is left alone, by runner."""
    def left_alone(newer):
        if newer not in books:
            out = tmp_path_factory.mktemp("untouched")
            with shared_directory() as directory, \
                    serving(python, directory, out, newer=newer, env={"WIDEEP_VLLM": "off"}) as engine:
                books[newer] = engine.go()
                assert engine.log() == [] and not list(directory.iterdir())
                engine.end()
        return books[newer]

    books = {}
    return left_alone


# The change of a later version, for which runner, the hooks that it switches off, and what is lost.
CHANGES = [
    ("step:added", False, (), ()),
    ("step:renamed", False, ("eplb",), ("loads",)),
    ("step:gone", False, ("eplb", "rearrangement"), ("loads", "rearrangements")),
    ("rearrange:added", False, (), ()),
    ("rearrange:renamed", False, ("rearrangement",), ("rearrangements",)),
    ("rearrange:gone", False, ("rearrangement",), ("rearrangements",)),
    ("_should_record_current_step:gone", False, ("eplb",), ("loads",)),
    ("_should_record_current_step:returns", False, ("eplb",), ("loads",)),
    ("_commit_eplb_maps:renamed", False, ("eplb-maps",), ()),
    ("_commit_eplb_maps:gone", False, ("eplb-maps",), ()),
    ("_commit_eplb_maps_for_layer:gone", False, ("eplb-maps",), ()),
    ("_post_process_ubatch:added", False, (), ()),
    ("_post_process_ubatch:renamed", False, ("dbo",), ("dbo",)),
    ("_post_process_ubatch:gone", False, ("dbo",), ("dbo",)),
    ("_post_process_ubatch:returns", False, ("dbo",), ("dbo",)),
    ("check_ubatch_thresholds:renamed", False, (), ()),
    ("check_ubatch_thresholds:gone", False, ("dbo",), ("dbo",)),
    ("check_ubatch_thresholds:gone", True, ("dbo", "dbo (newer runner)"), ("dbo",)),
    ("sync_cudagraph_and_dp_padding:moved", True, (), ()),
    ("sync_cudagraph_and_dp_padding:returns", True, ("dbo (newer runner)",), ("dbo",)),
    ("sync_cudagraph_and_dp_padding:gone", True, ("dbo (newer runner)",), ("dbo",)),
    ("_dummy_run:added", False, (), ()),
    ("_dummy_run:gone", False, ("dummy-run",), ("dbo",)),
    ("compile_or_warm_up_model:gone", False, ("warm-up",), None),
    ("record:added", False, (), ()),
    ("record:renamed", False, ("tokens",), ("tokens",)),
    ("record:abstract", False, (), ()),
]


@pytest.mark.parametrize("change, newer, off, lost", CHANGES,
                         ids=[change + ("-newer" if newer else "") for change, newer, *_ in CHANGES])
def test_a_changed_engine_goes_on_and_the_rest_is_recorded(python, untouched, tmp_path, change, newer, off, lost):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", newer=newer, env={"FAKE_CHANGE": change}) as engine:
        if lost is not None:
            exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        books = engine.go()
        assert books == untouched(newer)
        assert engine.hooks_off() == set(off)
        if lost is None:  # the segments appear with the first passes, some of which nobody sees
            exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4 and expect_tokens(page, books))
            return
        checks = {"loads": lambda page: all(expect_loads(page, books, *pair) for pair in KINDS),
                  "rearrangements": lambda page: expect_rearrangements(page, books, "sync", [MODEL, DRAFT]),
                  "dbo": lambda page: expect_dbo(page, books),
                  "tokens": lambda page: expect_tokens(page, books)}
        for name in ALL - set(lost):
            exporter.wait_page(checks[name])
        engine.end()


@pytest.fixture
def mounted(tmp_path):
    """Mounts a tmpfs with options and says where."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    places = []

    def mount(options):
        place = tmp_path / "tmpfs"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def expect_unnoticed(engine, untouched, advice):
    """Each process says once what is wrong, and the engine does what it would have done."""
    assert engine.go() == untouched(False)
    lines = [re.fullmatch(r"(\d+) wideep: (.*) is not recorded for now: (.*)", line) for line in engine.log()]
    assert lines and all(lines), engine.log()
    assert all(advice in line.group(3) and "/wideep.default.e" in line.group(3) for line in lines), engine.log()
    assert len({line.group(1, 2) for line in lines}) == len(lines) == 8  # four ranks, and the front end for four engines


def test_a_missing_directory_goes_unnoticed_and_is_used_when_it_is_there(python, untouched, tmp_path):
    directory = tmp_path / "later"
    with serving(python, directory, tmp_path / "out") as engine:
        expect_unnoticed(engine, untouched, "WIDEEP_SHM_DIR")
        directory.mkdir()
        wait_for(lambda: len(list(directory.glob("wideep.default.*"))) == 8)
        with exporting(directory, *FLAGS) as exporter:
            exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
            engine.go(2)
            # Passes are counted on, and those of the second run are all recorded.
            exporter.wait_page(lambda page: page.one("wideep_eplb_passes_total", model_name=MODEL, layer=0) >= 58)
        engine.end()


def test_a_full_directory_goes_unnoticed(python, untouched, tmp_path, mounted):
    with serving(python, mounted("size=4k"), tmp_path / "out") as engine:
        expect_unnoticed(engine, untouched, "full")
        engine.end()


def test_a_read_only_directory_goes_unnoticed(python, untouched, tmp_path, mounted):
    with serving(python, mounted("ro"), tmp_path / "out") as engine:
        expect_unnoticed(engine, untouched, "read-only; set WIDEEP_SHM_DIR")
        engine.end()


def test_a_second_server_is_told_to_take_another_instance(python, untouched, tmp_path):
    with shared_directory() as directory, serving(python, directory, tmp_path / "first"):
        with serving(python, directory, tmp_path / "second") as second:
            expect_unnoticed(second, untouched, "WIDEEP_INSTANCE")
        with serving(python, directory, tmp_path / "third", env={"WIDEEP_INSTANCE": "b"}) as third:
            assert third.log() == []
            assert len(list(directory.glob("wideep.b.*"))) == 8


def test_killed_workers_keep_their_counters_when_they_are_back(python, tmp_path):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter:
        books = []
        for run in range(2):
            with serving(python, directory, tmp_path / "out", seed=run, start="fork") as engine:
                exporter.wait_page(lambda page: [value for _, value in page.of("wideep_rank_up")] == [1] * 4)
                books.append(engine.go())
                os.kill(engine.pids[1], signal.SIGKILL)
                exporter.wait_page(lambda page: page.one("wideep_rank_up", rank=1) == 0)
        page = exporter.wait_page(lambda page: [value for _, value in page.of("wideep_rank_up")] == [0] * 4)
        tokens = sum(book.rank_tokens("target").sum(axis=0) for book in books)
        for (layer, rank), value in numpy.ndenumerate(tokens):
            assert page.one("wideep_eplb_rank_tokens_total", model_name=MODEL, layer=layer, ep_rank=rank) == value
        counted = collections.Counter((phase, outcome) for book in books for phase, outcome, _ in book.ranks[0]["dbo"])
        for labels, value in page.of("wideep_dbo_passes_total", engine=0):
            assert value == counted[labels["phase"], labels["outcome"]]
        assert page.one("wideep_prompt_tokens_total", engine=2, frontend=0) == sum(book.tokens["2"][0] for book in books)
        passes = sum(book.ranks[0]["recorded"] for book in books)
        assert page.one("wideep_eplb_passes_total", model_name=MODEL, layer=3) == passes


def test_a_synchronous_stall_is_seen_while_it_lasts(python, tmp_path):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", env={"FAKE_STALL": "1"}, passes=12, draft=False) as engine:
        exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        engine.process.stdin.write(b"go\n")
        engine.process.stdin.flush()
        blocked = {"engine": 0, "model_name": MODEL}
        page = exporter.wait_page(lambda page: page.one("wideep_eplb_blocked", **blocked) == 1, pause=0.01)
        assert page.one("vllm:eplb_rebalancing", **blocked) == 1
        assert page.one("vllm:eplb_rearrangements_total", **blocked) == 0
        page = exporter.wait_page(lambda page: page.one("vllm:eplb_rearrangements_total", **blocked) == 1)
        assert page.one("wideep_eplb_blocked", **blocked) == 0
        assert page.one("vllm:eplb_rearrangement_duration_seconds_sum", **blocked) >= 1


def test_all_passes_are_recorded_on_request(python, tmp_path):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", env={"WIDEEP_RECORD": "always"}) as engine:
        exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        books = engine.go()
        assert books.ranks[0]["recorded"] == 119  # but the first
        exporter.wait_page(lambda page: all(expect_loads(page, books, *pair) for pair in KINDS))


def test_without_eplb_dbo_and_tokens_are_recorded(python, tmp_path):
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", eplb=False) as engine:
        exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        books = engine.go()
        exporter.wait_page(lambda page: expect_dbo(page, books) and expect_tokens(page, books))
        assert engine.log() == []


@pytest.mark.parametrize("newer, change, said", [
    (False, "", "in place: warm-up, dummy-run, dbo, eplb, eplb-maps, rearrangement; "
                "not imported by this engine: dummy-run (newer runner), dbo (newer runner)"),
    (True, "sync_cudagraph_and_dp_padding:gone",
     "in place: warm-up, dummy-run, dummy-run (newer runner), dbo, eplb, eplb-maps, rearrangement; "
     "off: dbo (newer runner)")])
def test_each_rank_says_which_hooks_it_has(python, tmp_path, newer, change, said):
    with shared_directory() as directory, \
            serving(python, directory, tmp_path / "out", newer=newer, env={"FAKE_CHANGE": change}) as engine:
        engine.go()
        lines = [line.split(" wideep: hooks ") for line in list(engine.errors.lines) if " wideep: hooks " in line]
        assert sorted(int(pid) for pid, _ in lines) == sorted(engine.pids)
        assert {text for _, text in lines} == {said}
        engine.end()


def fitting(python, expected, **env):
    """python -m wideep.vllm: its lines."""
    done = subprocess.run([python.program, "-m", "wideep.vllm"], capture_output=True, text=True, timeout=120, check=False,
                          env={"PATH": os.environ["PATH"], "PYTHONPATH": python.path, **env})
    assert (done.returncode, done.stderr) == (expected, ""), done.stderr
    return done.stdout.splitlines()


def test_whether_the_hooks_fit_is_known_without_an_engine(python):
    lines = fitting(python, 0)
    assert lines[0].startswith("vLLM ") and len(lines) == 10
    assert all(line.endswith("  in place") for line in lines[1:])
    lines = fitting(python, 1, FAKE_CHANGE="_post_process_ubatch:gone")
    assert [line for line in lines[1:] if not line.endswith("  in place")] == [
        f"{'dbo':26}off: vllm.v1.worker.dp_utils has no function _post_process_ubatch"]
    assert fitting(python, 0, WIDEEP_VLLM="off") == ["WIDEEP_VLLM switches all hooks off"]
    assert fitting(python, 1, PYTHONPATH="") == ["vLLM is not installed for this Python"]


def test_settings_that_mean_nothing_are_said_once(python):
    out = alone(python, """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import os
os.environ.update(WIDEEP_VLLM="disabled", WIDEEP_RECORD="alway")
wideep.vllm.register()
wideep.vllm.register()
os.environ.update(WIDEEP_VLLM="off", WIDEEP_RECORD="always")
wideep.vllm.register()
""")
    assert out.splitlines() == [
        "wideep: WIDEEP_VLLM=disabled is none of 0, 1, false, no, off, on, true, yes: ignored",
        "wideep: WIDEEP_RECORD=alway is none of always: ignored", "wideep: off, as WIDEEP_VLLM says"]


def test_nothing_of_the_engine_is_imported(python):
    code = "import sys, wideep.vllm as p; p.register(); p.register()\n" \
           "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'vllm', 'numpy')], sys.modules\n" \
           "import vllm.distributed.eplb.eplb_state as e; first = e.EplbState.step; p.register()\n" \
           "assert e.EplbState.step is first and first.__wrapped__.__wrapped__.__name__ == 'step'\n" \
           "import inspect; assert 'is_dummy' in inspect.getsource(e.EplbState)\n"
    subprocess.run([python.program, "-c", code], check=True, env={"PYTHONPATH": python.path})


def alone(python, program):
    """tests/vllm/single.py and some statements, and what they log."""
    with shared_directory() as directory:
        done = subprocess.run([python.program, "-c", "from single import *\n" + program], capture_output=True, text=True,
                              env={"PYTHONPATH": os.pathsep.join((python.path, str(TESTS))), "WIDEEP_SHM_DIR": str(directory)},
                              check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_background_rearrangement_that_was_given_up_is_not_counted(python):
    assert alone(python, """
import time
rank = Rank(**{"async": True, "interval": 40, "layers": 3})
while not rank.model.rebalanced:
    rank.go()
assert seen()[2:] == (0, 0, "async"), seen()
rank.model.rebalanced = False  # between two steps
rank.go()
assert seen()[2:] == (0, 0, None), seen()
while rank.state.rearrangements < 2:
    rank.go()
while rank.model.rebalanced:
    rank.go()
    time.sleep(0.001)
assert seen()[2:4] == (0, 1), seen()
""") == ""


def test_a_synchronous_rearrangement_that_fails_leaves_no_flag(python):
    assert alone(python, """
import vllm.distributed.eplb.eplb_state as engine
rank = Rank(interval=12)
def fail(*args, **kwargs):
    assert seen()[4] == "sync"
    raise KeyError("no memory")
engine._commit_eplb_maps = fail
try:
    rank.go(20)
except KeyError:
    pass
else:
    raise AssertionError
assert seen()[2:] == (0, 0, None), seen()
""") == ""


def test_elastic_ep_begins_another_segment_and_counts_anew(python):
    assert alone(python, """
rank = Rank(interval=10000)
rank.go(10)
assert seen()[:2] == (13, 9), seen()
before = segment()
rank.grow(8)
rank.go(4)
assert seen()[:2] == (4, 9 + 3), seen()
after = segment()
assert (before.ep_size, after.ep_size) == (4, 8) and before.group != after.group
assert after.lineage == before.lineage and after.models[0].physical_experts == 32
assert seen()[2:] == (0, 0, None)
""") == ""


def test_a_replaced_tensor_costs_one_recorded_pass(python):
    assert alone(python, """
rank = Rank(interval=10000)
rank.go(10)
rank.model.expert_load_pass = torch.from_numpy(numpy.full((4, 16), 999, numpy.int32))
rank.go(5)
assert seen()[:2] == (18, 9 + 4), seen()
assert sum(map(sum, segment().models[0].rank_tokens.tolist())) == (9 + 4) * 64
""") == ""


def test_tensor_parallel_ranks_say_that_they_route_the_same_tokens(python):
    assert alone(python, """
rank = Rank(tp=(1, 2))
rank.go(2)
found = segment()
assert (found.tp_rank, found.tp_size, found.loads_replicated) == (1, 2, True)
""") == ""


def test_an_error_within_a_hook_is_said_once_and_only_it_goes_off(python):
    log = alone(python, """
rank = Rank(interval=40)
rank.go(2)
wideep.Writer.record_pass = None
rank.go(100)
assert seen()[1] == 1 and seen()[2] == rank.state.rearrangements > 1, seen()
""")
    assert re.fullmatch("wideep: eplb hook is off, expert loads are not recorded: TypeError: .*\n", log), log


def test_a_map_that_the_engine_writes_in_another_way(python):
    """As it does when ranks die: not through the functions that are watched."""
    assert alone(python, """
rank = Rank(interval=10000)
rank.go(3)
rank.model.physical_to_logical_map.copy_(torch.from_numpy(numpy.zeros((4, 16), numpy.int64)))
rank.go(3)
experts = segment().models[0].expert_tokens.tolist()
assert experts == [[2 * 2 + 3 * 16] + 5 * [2 * 2] + 4 * [2]] * 4, experts
""") == ""


def test_older_versions_commit_one_layer_of_the_whole_map(python):
    assert alone(python, """
import vllm.distributed.eplb.eplb_state as engine
rank = Rank(interval=10000)
rank.go(3)
whole = torch.from_numpy(numpy.zeros((4, 16), numpy.int64))
rank.model.physical_to_logical_map[1].copy_(whole[1])
rank.model._wideep_model.committed(whole, 1)
rank.go(3)
experts = segment().models[0].expert_tokens.tolist()
assert experts == [[4 + 3 * 16] + 5 * [4] + 4 * [2] if layer == 1 else 6 * [10] + 4 * [5] for layer in range(4)], experts
""") == ""


def test_one_stage_of_a_pipeline_is_recorded(python):
    log = alone(python, """
rank = Rank(pp=(1, 2))
rank.go(3)
assert wideep.read_segments() == []
""")
    assert re.fullmatch("wideep: stage 1 of the pipeline is not recorded: .*\n", log), log
    assert alone(python, "rank = Rank(pp=(0, 2)); rank.go(3); assert seen()[1] == 2") == ""


def test_engines_of_a_dense_model_are_told_apart(python):
    assert alone(python, """
rank = Rank(ranks=1, index=3)
(found,) = wideep.read_segments()
assert (found.engine, found.rank, found.dp_rank, found.dp_size, found.group) == (3, 0, 0, 1, 0), found
""") == ""


def test_a_vote_without_a_rank_that_has_died(python):
    assert alone(python, """
from wideep.vllm._dbo import vote_outcome
dead = 2**31 - 1
assert vote_outcome([10, dead, 12], [10, 0, 12], [0, 1, 0], 2, 2) == "below_threshold"
assert vote_outcome([10, dead, 600], [10, 0, 600], [0, 1, 1], 2, 2) == "coordination_failure"
""") == ""


@pytest.mark.skipif(WITH_TORCH, reason="needs the shim's device")
def test_loads_that_do_not_arrive_make_a_pass_incomplete(python, tmp_path):
    """A device that stops for 16 passes, of which half have memory to be copied to."""
    with shared_directory() as directory, exporting(directory, *FLAGS) as exporter, \
            serving(python, directory, tmp_path / "out", device="cuda", draft=False, stuck=[60, 76],
                    env={"WIDEEP_RECORD": "always"}) as engine:
        exporter.wait_page(lambda page: len(page.of("wideep_rank_up")) == 4)
        books = engine.go()
        exporter.wait_page(lambda page: page.one("wideep_eplb_passes_total", model_name=MODEL, layer=0) +
                           page.incomplete().get("skipped", 0) == books.ranks[0]["recorded"])
        lost = [books.ranks[0]["recorded"] - Segment(str(path)).totals()["models"][0]["recorded_passes"]
                for path in directory.glob("wideep.default.e*.r*")]
        assert len(lost) == 4 and 1 <= max(lost) < 16  # an idle rank has zeros at hand
        # Which passes a rank loses is a matter of its own memory.
        page = exporter.wait_page(lambda page: set(page.incomplete()) == {"skipped"} and
                                  max(lost) <= page.incomplete()["skipped"] <= sum(lost))
        assert page.one("wideep_eplb_rank_tokens_total", model_name=MODEL, layer=0, ep_rank=0) < \
            books.rank_tokens("target")[:, 0, 0].sum()
        lines = engine.log()
        assert lines and all("the device is 8 passes behind" in line for line in lines)
        expect_rearrangements(page, books, "sync", [MODEL])

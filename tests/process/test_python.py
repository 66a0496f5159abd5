# SPDX-License-Identifier: Apache-2.0
"""The Python distribution: built as a user builds it, installed into an empty environment, and read back by others."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import segment_reader
from exporter_helpers import exporting, shared_directory

pytestmark = pytest.mark.skipif(bool(os.environ.get("WIDEEP_SAN")),
                                reason="what it is about is not built with a sanitizer")

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "shm-abi" / "python" / "README.md"


def run(*command, env=None, **kwargs):
    """A program that must succeed; its output."""
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith("WIDEEP_") and k not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    result = subprocess.run([str(word) for word in command], env={**clean, **(env or {})}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, timeout=600, **kwargs)
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(directory):
    """`make wheel` of a copy of what it needs, and an environment with the wheel in it."""
    sources = directory / "sources"
    for name in ("Makefile", "LICENSE", "shm-abi"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, sources / name)
    run("make", "-C", sources, "-o", "deps-wheel", "wheel", "VARIANT=", "SAN=", f"PYTHON={sys.executable}")
    run(sys.executable, "-m", "venv", "--system-site-packages", directory / "venv")
    (wheel,) = (sources / "build" / "wheel").glob("*.whl")
    run(directory / "venv" / "bin" / "pip", "install", "--no-index", "--no-deps", wheel)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Built once, whichever of pytest's workers comes first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directory = shared / "wheel"
    with open(shared / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            shutil.rmtree(directory, ignore_errors=True)
            build(directory)
            (directory / "done").touch()
    return directory


@pytest.fixture
def python(built):
    """Runs a program that may use `w`, a writer of 3 layers, 4 logical and 6 physical experts at EP 2; its output."""
    with shared_directory() as directory:
        def call(program, **env):
            return run(built / "venv" / "bin" / "python", "-c", PRELUDE + program, cwd=built,
                       env={"WIDEEP_SHM_DIR": str(directory), **env})

        call.directory = directory
        yield call


PRELUDE = """
import array, ctypes, errno, json, os, signal, subprocess, sys
import numpy as np
import wideep
MODELS = [wideep.Model("m", 3, 4, 6)]
def create(**keywords):
    return wideep.Writer(**{**dict(engine=0, ep_size=2, models=MODELS), **keywords})
def refused(kind, call, *words):
    try:
        call()
    except kind as error:
        assert type(error) is kind and all(word in str(error) for word in words), repr(error)
        return error
    raise AssertionError("not refused")
def claimed():  # the only segment, by a process that holds on to it until its input ends
    claim = subprocess.Popen([sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'r+');"
                              "fcntl.lockf(f, fcntl.LOCK_EX, 1, 1); print(flush=True); sys.stdin.read()",
                              wideep.read_segments()[0].path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    claim.stdout.readline()
    return claim
loads = np.arange(18, dtype=np.int32).reshape(3, 6)
where = np.array([[0, 1, 2, 3, 0, -1]] * 3, dtype=np.int32)
class Tensor:
    "What torch's tensors are to the binding: DLPack and no buffer."
    def __init__(self, a, device=1):
        self.array, self.device, self.asked = a, device, 0
    def __dlpack_device__(self):
        return (self.device, 0)
    def __dlpack__(self, **_):
        self.asked += 1
        return self.array.__dlpack__()
"""


def only_segment(directory):
    (segment,) = segment_reader.segments(directory)
    return segment


RANKS = [(sum(range(6 * layer, 6 * layer + 3)), sum(range(6 * layer + 3, 6 * layer + 6))) for layer in range(3)]
EXPERTS = [(6 * layer + 6 * layer + 4, 6 * layer + 1, 6 * layer + 2, 6 * layer + 3) for layer in range(3)]


def times(rows, n):
    return [tuple(n * value for value in row) for row in rows]


def test_wheel_and_sdist_have_what_they_need(built):
    (wheel,) = (built / "sources" / "build" / "wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"wideep/__init__.py", "wideep/py.typed", "wideep/_binding.pyi"} <= names
    assert any(re.fullmatch(r"wideep/_binding\..*\.so", name) for name in names)
    assert not any(name.endswith((".c", ".h")) for name in names)
    (sdist,) = (built / "sources" / "build" / "wheel").glob("*.tar.gz")
    listed = run("tar", "tzf", sdist)
    assert "/wideep_shm.h\n" in listed and "/LICENSE\n" in listed
    version = re.search(r"^VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert wheel.name.startswith(f"wideep-{version}-") and sdist.name == f"wideep-{version}.tar.gz"


def test_a_wheel_is_built_in_the_checkout_too(built, tmp_path):
    shutil.copytree(ROOT / "shm-abi", tmp_path / "shm-abi")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "out", tmp_path / "shm-abi" / "python")
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("given", [
    "loads, where",
    "loads, where.astype(np.int64)",
    "Tensor(loads), Tensor(where)",
    "Tensor(loads, device=3), Tensor(where.astype(np.int64), device=11)",
    "memoryview(array.array('i', range(18))).cast('B').cast('i', [3, 6]), where",
    "np.broadcast_to(loads, (3, 6)), where",
])
def test_loads_are_read_where_they_are(python, given):
    python(f"""
w = create()
a, m = {given}
for number in range(10):
    w.record_pass(a, m, pass_=number, step=number, rearrangement_duration_ns=7)
w.close()
""")
    segment = only_segment(python.directory)
    assert segment.model_totals(0)[0] == 10
    assert segment.plane(5, 0) == times(RANKS, 10)
    assert segment.plane(6, 0) == times(EXPERTS, 10)
    records = list(segment.records())
    assert [(r["pass"], r["layer"], r["tokens"], r["step"], r["duration"]) for r in records] == [
        (number, layer, RANKS[layer], number, 7) for number in range(10) for layer in range(3)]


def test_everything_else_that_a_writer_records(python):
    out = python("""
w = create(engine=3, rank=1, tp_rank=1, tp_size=2, dp_rank=3, dp_size=4, group=9, rearrangement_interval=3000,
           loads_replicated=True, models=[*MODELS, wideep.Model("draft", 1, 2)], instance="one")
w.record_pass(loads, None, pass_=0)
w.record_eplb(np.float32([1, 2, 3]), np.array([2.0, 4, 6]), pass_=1, step=5)
w.record_pass(np.ones((1, 2), np.int32), np.array([[1, 1]]), pass_=0, model=1)
w.skip_pass(pass_=2, step=6)
w.record_dbo(phase="prefill", outcome="engaged", ubatch_tokens=[3, 9], pass_=2)
w.record_dbo(phase="decode", outcome="coordination_failure", pass_=3)
with w.rearrangement(mode="async"):
    pass
try:
    with w.rearrangement():
        raise KeyError
except KeyError:
    pass
w.rearrangement_begin(model=1)
assert w.rearrangement_end(model=1) >= 0
w.record_tokens(5, np.int64(7))
w.check()
print(json.dumps([w.path, w.origin, w.pid == os.getpid(), w.closed]))
""")
    segment = only_segment(python.directory)
    assert json.loads(out) == [str(python.directory / "wideep.one.e3.r1"), "fresh", True, False]
    assert (segment.engine, segment.rank, segment.ep_size, segment.tp_rank, segment.tp_size, segment.dp_rank,
            segment.dp_size, segment.flags, segment.group) == (3, 1, 2, 1, 2, 3, 4, 1, 9)
    assert segment.models == [(b"m", 3, 4, 6), (b"draft", 1, 2, 2)]
    assert segment.plane(6, 0) == times(EXPERTS, 0) and segment.plane(6, 1) == [(0, 2)]
    reduced = [(r["avg"], r["max"]) for r in segment.records() if r["flags"] & segment_reader.REDUCED]
    assert reduced == [(1, 2), (2, 4), (3, 6)]
    assert segment.live_model(0)[0] == 3 and segment.live_model(0)[5] == 2
    assert segment.tokens == (5, 7)
    dbo = {key: count for key, count in segment.dbo().items() if count}
    assert dbo == {("prefill", "engaged"): 1, ("decode", "coordination_failure"): 1}
    assert [total for total, _ in segment.ubatches()] == [3, 9, 0, 0]
    _, _, sync, asynchronous = segment.model_totals(0)
    assert (sum(sync), sum(asynchronous)) == (0, 1)
    assert sum(segment.model_totals(1)[2]) == 1


def test_a_rearrangement_is_seen_while_it_lasts(python):
    python("""
w = create()
with w.rearrangement():
    (segment,) = wideep.read_segments()
    assert segment.models[0].rebalancing_since_ns > 0 and segment.models[0].rebalancing_mode == "sync"
    assert refused(wideep.WideepError, w.rearrangement_begin).errno == errno.EALREADY
assert wideep.read_segments()[0].models[0].rebalancing_since_ns == 0
assert refused(wideep.WideepError, w.rearrangement_end).errno == errno.EALREADY
assert refused(wideep.WideepError, w.rearrangement_abort).errno == errno.EALREADY
refused(ValueError, lambda: w.rearrangement_begin(mode="both"), "both")
assert refused(wideep.WideepError, lambda: w.rearrangement_begin(model=1)).errno == errno.EINVAL
""")


def test_arrays_that_do_not_fit_are_refused_and_not_counted(python):
    python("""
w = create()
def bad(kind, a, m, *words):
    refused(kind, lambda: w.record_pass(a, m, pass_=0), *words)
bad(ValueError, loads[:2], where, "loads", "(3, 6)")
bad(ValueError, loads.reshape(6, 3), where, "(3, 6)")
bad(ValueError, loads.reshape(18), where, "(3, 6)")
bad(ValueError, loads.reshape(1, 3, 6), where, "3 dimensions")
bad(ValueError, np.int32(1), where, "0 dimensions")
bad(ValueError, loads[::-1], where, "C-contiguous")
bad(ValueError, np.asfortranarray(loads), where, "C-contiguous")
bad(ValueError, np.zeros((3, 12), np.int32)[:, ::2], where, "C-contiguous")
bad(ValueError, np.frombuffer(bytes(73), np.uint8)[1:].view(np.int32).reshape(3, 6), where, "aligned")
bad(TypeError, loads.astype(np.int64), where, "loads", "int32")
bad(TypeError, loads.astype(np.uint32), where, "loads")
bad(TypeError, loads.astype(np.float32), where, "int32")
bad(TypeError, loads.astype(">i4"), where, "loads")
bad(TypeError, [[0] * 6] * 3, where, "loads")
bad(TypeError, None, where, "loads")
bad(TypeError, b"x" * 72, where, "loads")
bad(ValueError, loads, where[:, :5], "physical_to_logical")
bad(TypeError, loads, where.astype(np.int16), "int32 or int64")
bad(ValueError, loads, Tensor(where.T), "C-contiguous")
bad(TypeError, loads, Tensor(where.astype(np.uint8)), "physical_to_logical")
gpu = Tensor(loads, device=2)
bad(ValueError, gpu, where, "CPU")
assert gpu.asked == 0
refused(TypeError, lambda: w.record_pass(loads, where), "pass_")
refused(TypeError, lambda: w.record_pass(loads, where, 0))
refused(TypeError, lambda: w.record_pass(loads, where, pass_="1"))
refused(TypeError, lambda: w.record_pass(loads, where, pass_=1.5))
refused(OverflowError, lambda: w.record_pass(loads, where, pass_=-1))
refused(OverflowError, lambda: w.record_pass(loads, where, pass_=0, step=2**32))
for model in (1, 4, 2**32 - 1):
    assert refused(wideep.WideepError, lambda: w.record_pass(loads, where, pass_=0, model=model)).errno == errno.EINVAL
assert refused(wideep.WideepError, lambda: w.record_pass(loads, where, pass_=2**63)).errno == errno.EINVAL
one = np.ones(3)
refused(ValueError, lambda: w.record_eplb(one[:2], one, pass_=0), "avg", "(3,)")
refused(TypeError, lambda: w.record_eplb(one, np.ones(3, int), pass_=0), "max_", "float32")
assert refused(wideep.WideepError, lambda: w.record_eplb(one, one / 2, pass_=0)).errno == errno.EINVAL
assert refused(wideep.WideepError, lambda: w.record_eplb(one * np.nan, one, pass_=0)).errno == errno.EINVAL
refused(ValueError, lambda: w.record_dbo(phase="p", outcome="engaged", pass_=0), "phase")
refused(ValueError, lambda: w.record_dbo(phase="decode", outcome="o", pass_=0), "outcome")
refused(ValueError, lambda: w.record_dbo(phase="decode", outcome="engaged", ubatch_tokens=[1] * 5, pass_=0), "4")
refused(OverflowError, lambda: w.record_dbo(phase="decode", outcome="engaged", ubatch_tokens=[-1], pass_=0))
refused(TypeError, lambda: w.record_dbo(phase="decode", outcome="engaged"), "pass_")
refused(OverflowError, lambda: w.record_tokens(-1, 0))
""")
    segment = only_segment(python.directory)
    assert segment.model_totals(0)[0] == 0 and list(segment.records()) == []
    assert segment.tokens == (0, 0) and not any(segment.dbo().values())


def test_what_is_out_of_range_inside_an_array_counts_as_nothing(python):
    python("""
w = create()
a = loads.copy(); a[0, 0] = a[2, 5] = -3
assert refused(wideep.WideepError, lambda: w.record_pass(a, where, pass_=0), "negative").errno == errno.ERANGE
for far in (4, -2, 2**31, 2**32 + 1, -2**32, 2**63 - 1):
    m = where.astype(np.int64); m[1, 1] = far
    assert refused(wideep.WideepError, lambda: w.record_pass(loads, m, pass_=1)).errno == errno.ERANGE
""")
    segment = only_segment(python.directory)
    assert segment.model_totals(0)[0] == 7
    experts = segment.plane(6, 0)
    assert experts[0] == times(EXPERTS, 7)[0]
    assert experts[1] == (EXPERTS[1][0] * 7, EXPERTS[1][1], EXPERTS[1][2] * 7, EXPERTS[1][3] * 7)
    assert segment.plane(5, 0)[2] == (RANKS[2][0] * 7, RANKS[2][1] * 7 - 17)


def test_identities_that_cannot_be(python):
    python("""
busy = create()
error = refused(wideep.WideepError, create, "WIDEEP_INSTANCE")
assert error.errno == errno.EBUSY and error.filename == busy.path and "instance" in error.strerror
with create(instance="other"), create(rank=1):
    pass
Model = wideep.Model
for said, keywords in (
        ("rank must", dict(rank=2)), ("models: physical_experts must", dict(ep_size=4)), ("engine", dict(engine=65536)),
        ("instance (WIDEEP_INSTANCE)", dict(instance="a/b")), ("ep_size", dict(ep_size=2000)), ("tp_rank", dict(tp_rank=65536)),
        ("models: a name", dict(models=[Model("")])), ("models: two", dict(models=[Model("a"), Model("a")])),
        ("models: layers", dict(models=[Model("a", 513, 4)])), ("models: logical", dict(models=[Model("a", 1)])),
        ("models: physical", dict(models=[Model("a", 1, 4096, 8194)]))):
    error = refused(wideep.WideepError, lambda: create(**{"rank": 1, **keywords}))
    assert error.errno == errno.EINVAL and error.strerror.startswith("an argument is out of range: " + said), error
assert refused(wideep.WideepError, lambda: create(rank=1, instance="x" * 64)).errno == errno.ENAMETOOLONG
assert refused(wideep.WideepError, lambda: create(rank=1, directory="/nowhere/at/all")).errno == errno.ENOENT
refused(ValueError, lambda: create(role="both"), "both")
refused(ValueError, lambda: create(role=""), "role")
refused(ValueError, lambda: create(models=[]), "models")
refused(ValueError, lambda: create(models=MODELS * 5), "models")
refused(TypeError, lambda: create(models=["m"]), "Model")
refused(TypeError, lambda: create(models=[("m", 1)]), "Model")
refused(TypeError, lambda: create(models=[wideep.Model("m", 1.0)]))
refused(OverflowError, lambda: create(engine=-1))
refused(TypeError, lambda: wideep.Writer(rank=0, models=MODELS))
again = lambda: busy.__init__(engine=5, ep_size=2, models=MODELS)
refused(RuntimeError, again, "opened")
busy.close()
refused(RuntimeError, again, "opened")
""")


def test_a_writer_that_was_closed(python):
    python("""
with create() as w:
    w.record_tokens(1, 2)
w.close()
assert w.closed
for call in (lambda: w.record_pass(loads, where, pass_=0), lambda: w.skip_pass(pass_=0), w.check, w.rearrangement_begin,
             lambda: w.record_eplb(np.ones(3), np.ones(3), pass_=0), w.rearrangement_end, w.rearrangement_abort,
             lambda: w.record_dbo(phase="decode", outcome="other", pass_=0), lambda: w.record_tokens(1, 1)):
    assert refused(wideep.WideepError, call, "closed").errno == errno.EBADF
(segment,) = wideep.read_segments()
assert (segment.state, segment.prompt_tokens, segment.generation_tokens) == ("closed", 1, 2)
again = create()
assert again.origin == "takeover" and wideep.read_segments()[0].state == "live"
again.record_tokens(10, 0)
del again
(segment,) = wideep.read_segments()
assert (segment.state, segment.prompt_tokens) == ("closed", 11)
""")
    assert only_segment(python.directory).tokens == (11, 2)


def test_a_forked_child_writes_nothing(python):
    python("""
w = create()
w.record_tokens(1, 1)
pid = os.fork()
if pid == 0:
    try:
        for call in (lambda: w.record_pass(loads, where, pass_=0), lambda: w.skip_pass(pass_=0), w.check,
                     lambda: w.record_eplb(np.ones(3), np.ones(3), pass_=0), w.rearrangement_begin,
                     lambda: w.record_dbo(phase="decode", outcome="other", pass_=0), lambda: w.record_tokens(1, 1)):
            assert refused(wideep.WideepError, call, "forked").errno == errno.ECHILD
        assert refused(wideep.WideepError, create).errno == errno.EBUSY
        assert w.pid == os.getppid()
        w.close()
        own = create(rank=1)
        own.record_tokens(2, 2)
        own.close()
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
w.record_tokens(1, 1)
w.check()
assert [(s.rank, s.state, s.prompt_tokens) for s in wideep.read_segments()] == [(0, "live", 2), (1, "closed", 2)]
""")


def test_killed_and_started_again(python):
    python("""
program = '''
import os, signal, wideep
w = wideep.Writer(engine=0, ep_size=2, models=[wideep.Model("m", 3, 4, 6)])
print(w.origin, flush=True)
w.record_tokens(4, 5)
os.kill(os.getpid(), signal.SIGKILL)
'''
for origin in ("fresh", "takeover"):
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert (out.returncode, out.stdout.strip()) == (-signal.SIGKILL, origin)
    assert wideep.read_segments()[0].state == "dead"
""")
    assert only_segment(python.directory).tokens == (8, 10)


def test_a_full_file_system(python, tmp_path):
    """Of its own, in a mount namespace, where that is allowed."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*probe, f"mount -t tmpfs -o size=16k none {tmp_path}"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    program = PRELUDE + """
assert refused(wideep.WideepError, create, "full").errno == errno.ENOSPC
assert os.listdir(os.environ["WIDEEP_SHM_DIR"]) == []
"""
    interpreter = run_path(python)
    env = {**os.environ, "WIDEEP_SHM_DIR": str(tmp_path)}
    done = subprocess.run([*probe, 'mount -t tmpfs -o size=16k none "$0" && exec "$1" -c "$2"', str(tmp_path),
                           interpreter, program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run_path(python):
    return python("print(sys.executable)").strip()


def test_a_directory_that_others_wipe(python):
    python("""
w = create()
w.record_tokens(3, 4)
os.unlink(w.path)
w.check()
w.record_tokens(3, 4)
assert wideep.read_segments()[0].prompt_tokens == 6
os.unlink(w.path)
os.mkdir(w.path)
assert refused(wideep.WideepError, w.check).errno == errno.EEXIST
w.record_tokens(3, 4)
os.rmdir(w.path)
w.check()
""")
    assert only_segment(python.directory).tokens == (9, 12)


def test_reading_agrees_with_the_independent_reader(python):
    out = python("""
w = create(models=[wideep.Model("mü", 3, 4, 6)])
for number in range(100):
    w.record_pass(loads, where, pass_=number, step=number)
w.record_dbo(phase="decode", outcome="engaged", ubatch_tokens=[1, 2, 3], pass_=100)
w.record_tokens(1, 2)
open(os.path.join(os.environ["WIDEEP_SHM_DIR"], "wideep.default.e9.r9"), "w").close()
assert refused(wideep.WideepError, lambda: wideep.read_segment(os.path.dirname(w.path) + "/wideep.default.e9.r9"),
               "empty").errno == errno.EBADMSG
assert refused(wideep.WideepError, lambda: wideep.read_segment("/nowhere")).errno == errno.ENOENT
assert wideep.read_segments(instance="other") == [] and len(wideep.read_segments(instance="default")) == 1
(segment,) = wideep.read_segments()
model = segment.models[0]
print(json.dumps([segment.lineage, segment.instance_id, model.name, model.recorded_passes,
                  np.asarray(model.rank_tokens).tolist(), model.expert_tokens.tolist(),
                  [[r.pass_, r.layer, r.step, r.avg, r.max_, r.rank_tokens] for r in segment.eplb],
                  [[d.pass_, d.phase, d.outcome, d.ubatch_tokens] for d in segment.dbo], segment.ubatch_sums]))
""")
    (python.directory / "wideep.default.e9.r9").unlink()
    lineage, instance_id, name, passes, ranks, experts, records, dbo, sums = json.loads(out)
    segment = only_segment(python.directory)
    assert (lineage, instance_id, name, passes) == (segment.lineage, segment.instance_id, "mü", 100)
    assert (ranks, experts) == ([list(row) for row in times(RANKS, 100)], [list(row) for row in times(EXPERTS, 100)])
    assert records == [[r["pass"], r["layer"], r["step"], r["avg"], r["max"], list(r["tokens"])]
                       for r in segment.records()]
    assert dbo == [[100, "decode", "engaged", [1, 2, 3]]] and sums == [1, 2, 3, 0]


def test_an_exporter_serves_what_python_recorded(python, built):
    program = PRELUDE + """
with create() as first, create(rank=1) as second, create(role="frontend", models=[wideep.Model("m")]) as front:
    sys.stdin.read()
    for number in range(20):
        first.record_pass(loads, where, pass_=number)
        second.record_pass(2 * loads, where, pass_=number)
    front.record_tokens(11, 13)
"""
    command = [built / "venv" / "bin" / "python", "-c", program]
    env = {**os.environ, "WIDEEP_SHM_DIR": str(python.directory)}
    with exporting(python.directory) as exporter, subprocess.Popen(command, stdin=subprocess.PIPE, env=env) as engine:
        # A rank that the exporter does not know yet is not waited for in a join.
        exporter.wait_page(lambda p: len(p.of("wideep_rank_up")) == 2 and sum(p.segments().values()) == 3)
        engine.stdin.close()
        assert engine.wait(timeout=120) == 0
        tokens = 20 * 3 * sum(range(18))
        page = exporter.wait_page(lambda p: sum(v for _, v in p.of("wideep_eplb_rank_tokens_total")) == tokens and
                                  sum(v for _, v in p.of("wideep_eplb_passes_total")) == 60 and
                                  sum(v for k, v in p.items() if re.match(r"\w*prompt_tokens_total\{", k)) == 11)
        assert page.incomplete() == {}
        assert sum(v for _, v in page.of("wideep_eplb_avg_tokens_total")) == tokens / 2


def test_the_examples_of_the_page_run_as_written(python):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) == 3
    out = python("\n".join(blocks))
    assert out.splitlines() == ["wideep.default.e0.fe0 closed 1200 0", "wideep.default.e0.r3 closed 0 100"]


def test_the_pages_examples_and_the_package_are_typed(built, tmp_path):
    """By the wheel's stub and py.typed, as a user's mypy sees them."""
    pytest.importorskip("mypy")
    pages = {"package": README, "repository": ROOT / "README.md"}
    for name, page in pages.items():
        (tmp_path / f"{name}.py").write_text("\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)))
    check = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "--python-executable",
             built / "venv" / "bin" / "python")
    run(*check, *(f"{name}.py" for name in pages), cwd=tmp_path)
    run(*check, "-p", "wideep", cwd=tmp_path)


def test_what_a_prompt_shows(python):
    """repr() is short enough for a notebook, help() names the arguments."""
    python("""
import inspect
with create() as w:
    assert repr(w) == f"<Writer {w.path}>"
    for number in range(50):
        w.record_pass(loads, None, pass_=number)
assert repr(w) == f"<Writer {w.path} (closed)>"
assert len(repr(wideep.read_segments())) < 4000
for name in dir(wideep._binding.Writer):
    method = getattr(wideep._binding.Writer, name)
    if not name.startswith("_") and callable(method):
        assert str(inspect.signature(method)).startswith("(self"), name
""")


def test_where_nothing_can_be_read(python):
    python("""
assert wideep.read_segments() == []
refused(FileNotFoundError, lambda: wideep.read_segments("/nowhere/at/all"), "/nowhere/at/all")
for path, number in (("/nowhere", errno.ENOENT), ("/tmp", errno.EINVAL), ("/etc/passwd", errno.EBADMSG)):
    error = refused(wideep.WideepError, lambda: wideep.read_segment(path))
    assert error.errno == number and "WIDEEP_SHM_DIR" not in error.strerror and error.filename == path
""")


def test_the_readmes_example_in_python(python):
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    python(example)
    segment = only_segment(python.directory)
    assert segment.closed and (segment.model_totals(0)[0], segment.tokens) == (1000, (0, 187000))


def test_the_stub_says_what_the_extension_has(python):
    stub = (ROOT / "shm-abi/python/src/wideep/_binding.pyi").read_text()
    said = set(re.findall(r"^    def ([a-z]\w+)\(", stub, re.M))
    had = json.loads(python("""
print(json.dumps([name for name in dir(wideep._binding.Writer) if not name.startswith("_")]))"""))
    assert said == set(had)
    documented = README.read_text()
    assert all(f"`{name}" in documented for name in had)
    assert python("print(wideep.__version__)").strip() in documented


def test_an_argument_whose_code_closes_the_writer(python):
    python("""
class Closing(Tensor):
    def __dlpack__(self, **_):
        w.close()
        return super().__dlpack__()
w = create()
assert refused(wideep.WideepError, lambda: w.record_pass(loads, Closing(where), pass_=0)).errno == errno.EINVAL
""")


def test_an_array_that_lies_about_its_device(python):
    python("""
class Lying(Tensor):
    def __dlpack_device__(self):
        return self.device
w = create()
for device in (1, None, (), ("cpu", 0), (1, 0, 0)):
    refused(TypeError, lambda: w.record_pass(Lying(loads, device), where, pass_=0))
""")


def test_other_threads_run_while_creation_waits(python):
    """Somebody claims the file of a dead writer and does not let go: creation gives up after two seconds."""
    python("""
import threading, time
create().close()
claim = claimed()
other, ticks, errors = create(engine=1), 0, []
def wait():
    try:
        create()
    except wideep.WideepError as error:
        errors.append(error.errno)
thread = threading.Thread(target=wait)
thread.start()
while thread.is_alive() and ticks < 20:
    time.sleep(0.01)
    other.record_tokens(1, 0)
    ticks += 1
assert ticks == 20 and thread.is_alive()
child = os.fork()  # the thread that creates is not in it
if child == 0:
    signal.alarm(60)
    create(engine=2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [s.engine for s in wideep.read_segments()] == [0, 1, 2]  # once the waiting is over
other.check()
thread.join()
assert errors == [errno.EBUSY], errors
claim.communicate()
assert create().origin == "takeover"
""")


def test_an_interpreter_ends_while_a_thread_creates(python):
    """And gives back the writers that it has, for which nothing may be left locked."""
    python("""
import threading, time
create().close()
claim = claimed()
sys.modules["kept"] = type(sys)("kept")  # whose contents are given back last
sys.modules["kept"].writer = create(engine=1)
def again():
    while True:
        try:
            create()
        except wideep.WideepError:
            pass
threading.Thread(target=again, daemon=True).start()
time.sleep(0.1)
""")


def test_torchs_tensors(python):
    """Where torch is installed."""
    out = python("""
try:
    import torch
except ImportError:
    print("no torch")
    sys.exit()
w = create()
w.record_pass(torch.from_numpy(loads), torch.from_numpy(where), pass_=0)
w.record_pass(torch.from_numpy(loads), torch.from_numpy(where.astype(np.int64)), pass_=1)
turned = torch.zeros(6, 3, dtype=torch.int32).T
refused(ValueError, lambda: w.record_pass(torch.from_numpy(loads), turned, pass_=2), "contiguous")
refused(TypeError, lambda: w.record_pass(torch.zeros(3, 6), torch.from_numpy(where), pass_=2), "int32")
w.record_eplb(torch.ones(3), torch.ones(3, dtype=torch.float64), pass_=2)
""")
    if "no torch" in out:
        pytest.skip("torch is not installed")
    segment = only_segment(python.directory)
    assert segment.plane(5, 0) == times(RANKS, 2) and segment.plane(6, 0) == times(EXPERTS, 2)


def test_arrays_are_given_back(python):
    python("""
import gc
w = create()
def count():
    gc.collect()
    return [sys.getrefcount(x) for x in (loads, where, None)][:2]
before = count()
for number in range(1000):
    w.record_pass(Tensor(loads), where, pass_=number)
    refused(ValueError, lambda: w.record_pass(Tensor(loads), where[:2], pass_=number))
    refused(ValueError, lambda: w.record_pass(loads[:2], where, pass_=number))
assert count() == before
a = bytearray(72)
w.record_pass(memoryview(a).cast("i", [3, 6]), None, pass_=2000)
a.append(1)  # nobody holds it
""")

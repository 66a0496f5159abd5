"""The same work by other clients of Prometheus, where Debian packages them: recorded by themselves, scraped by our
client. Each must show, on its page, what was recorded; else it is a fault and no figure.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess

from programs import (HERE, Failed, body_of, clean_environment, cpu_ns, free_port, like, load, need_module, python,
                      samples, shared_directory, started, value_of)
from report import percentile

MODEL = "deepseek-ai/DeepSeek-R1-0528"
LAYERS, EXPERTS, PASSES = 60, 256, 16
# Debian's, unless the environment says otherwise.
GO_PATH = pathlib.Path(os.environ.get("GOPATH", "/usr/share/gocode"))


def sample(name, **labels):
    """As Go and Python write it: labels sorted by name."""
    labels = {"model_name": MODEL, "engine": "0"} | labels
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "}"


def check_page(peer, page, debug):
    """16 passes: one fallout, and what the last pass set."""
    name = "vllm:expert_load_per_expert_tokens_DEBUG"
    expected = {sample("vllm:dbo_fallout_total", reason="empty_second_ubatch"): 1,
                sample("vllm:ubatch_token_count_count", ubatch_index="first"): PASSES,
                sample("vllm:ubatch_token_count_sum", ubatch_index="second"): 600 * PASSES,
                sample("vllm:eplb_max_tokens_per_rank", layer=LAYERS - 1): 130 + 2 * (LAYERS - 1)}
    if debug:
        expected[sample(name, layer=3, expert_id=5)] = (7 * 3 + 13 * 5) % 31
    wrong = {key: value_of(page, key) for key, value in expected.items() if value_of(page, key) != value}
    count = sum(line.startswith(name.encode() + b"{") for line in page.splitlines())
    if wrong or count != (LAYERS * EXPERTS if debug else 0):
        raise Failed(f"{peer} shows {wrong or count}, which was not recorded")


def measure_peer(settings, report, peer, command, environment):
    with environment() as variables:
        for found in samples([*command, "record", f"--ms={settings.ms(150)}"], settings.near, variables):
            report.add(f"peer.{peer}.{found['case']}", percentile(found["ns"], 0.5),
                       relative_to="plugin.recorded" if found["case"] == "pass" else None)
    for page, flags in (("aggregated", ()), ("debug", ("--debug",))):
        port = free_port()
        with environment() as variables, \
                started([*command, "serve", port, *flags], "ready", environment=variables) as (process, _):
            body = body_of(port)
            check_page(peer, body, page == "debug")
            before = cpu_ns(process.pid)
            (found,) = load(settings, like(port, body), ms=600)
            report.add_percentiles(f"peer.{peer}.{page}", found["ns"], f"server.{page}.plain.x1")
            # The load client's first request, which is not among its samples, counts too.
            report.add(f"peer.{peer}.{page}.cpu", (cpu_ns(process.pid) - before) / (len(found["ns"]) + 1),
                       relative_to=f"server.{page}.plain.x1.cpu")


@contextlib.contextmanager
def plain():
    yield clean_environment()


@contextlib.contextmanager
def multiprocess():
    with shared_directory() as directory:
        yield clean_environment(PROMETHEUS_MULTIPROC_DIR=str(directory))


def go_program(settings, report):
    """Built where Go and Debian's package of its sources are; else None."""
    if not shutil.which("go") or not (GO_PATH / "src/github.com/prometheus/client_golang").is_dir():
        report.note("client_golang is left out: it takes Debian's golang-go and "
                    "golang-github-prometheus-client-golang-dev")
        return None
    program = (settings.build / "tests/bench/go_peer").resolve()
    done = subprocess.run(["go", "build", "-o", str(program), str(HERE / "peers/go_peer.go")], capture_output=True,
                          text=True, env=os.environ | {"GOPATH": str(GO_PATH), "GO111MODULE": "off",
                                                       "GOCACHE": str(program.parent / "go-cache")})
    if done.returncode != 0:
        raise Failed(f"go build: {done.stderr.strip()[-300:]}")
    return program


def measure(settings, report):
    """Every other round: peers are slow, and their distance from us is larger than any noise."""
    if report.round % 2:
        return
    need_module("prometheus_client", "python3-prometheus-client")
    script = python(HERE / "peers/python_peer.py")
    measure_peer(settings, report, "python", script, plain)
    measure_peer(settings, report, "multiprocess", script, multiprocess)
    program = go_program(settings, report)
    if program:
        measure_peer(settings, report, "go", [program], plain)

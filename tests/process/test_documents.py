# SPDX-License-Identifier: Apache-2.0
"""The tests that the documents name as evidence exist, and what the documents show is as they say."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.request

import pytest

from exporter_helpers import BUILD, exporting, free_port, shared_directory, simulating, wait_for

TESTS = pathlib.Path(__file__).resolve().parents[1]


def defined():
    python = [text for path in TESTS.rglob("test_*.py") for text in re.findall(r"^def (\w+)\(", path.read_text(), re.M)]
    units = [text for path in TESTS.rglob("*.c") for text in re.findall(r"^START_TEST\((\w+)\)", path.read_text(), re.M)]
    return {*python, *units, *(path.name for path in TESTS.rglob("test_*.py"))}


def last_cells(text):
    """Of the tables whose last column is called "tests"."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        inside = line.startswith("|") and (inside or cells[-2] == "tests")
        if inside:
            yield cells[-2]


@pytest.mark.parametrize("document", [TESTS / "README.md", TESTS.parent / "README.md"], ids=["tests", "product"])
def test_every_named_test_exists(document):
    named = {name for cell in last_cells(document.read_text()) for name in re.findall(r"`([\w.]+)`", cell)}
    assert len(named) >= 10
    assert named <= defined(), named - defined()


def test_no_cell_of_ours_is_empty():
    rows = [line.split("|") for line in (TESTS / "README.md").read_text().splitlines() if re.match(r"\| [a-z`A-Z]", line)]
    rows = [[cell.strip() for cell in row[1:-1]] for row in rows if "feature" not in row[1]]
    assert len(rows) > 40
    assert all(row[2] and row[3] for row in rows)


def test_every_alert_has_its_section():
    """The anchors that the alerts name, no others, each once; and links to anchors lead somewhere."""
    deploy = TESTS.parent / "deploy"
    named = re.findall(r"^ +runbook: (\S+)$", (deploy / "prometheus" / "wideep-alerts.yml").read_text(), re.M)
    runbook = (deploy / "runbook.md").read_text()
    anchors = re.findall(r"^### (\S+)$", runbook, re.M)
    assert len(named) > 20
    assert sorted(named) == sorted(anchor for anchor in anchors if anchor.startswith("wideep-"))
    assert set(re.findall(r"\]\(#([\w-]+)\)", runbook)) <= set(anchors)
    assert runbook.startswith("# What to look at when throughput drops\n")


def fields(value, path="the object"):
    """Names by the place in the document that has them."""
    if isinstance(value, list):
        for item in value:
            yield from fields(item, path)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield path, name
            if not name.startswith(("vllm:", "wideep_")) and isinstance(inner, (dict, list)):
                where = name if path == "the object" else f"{path}.{name}"
                yield from fields(inner, where + ("[]" if isinstance(inner, list) else ""))


def test_fields_of_the_state_are_listed():
    """Those there are, no others, where the README says."""
    section = (TESTS.parent / "README.md").read_text().partition("### For scripts\n")[2].partition("\n#")[0]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in section.splitlines() if row.startswith("| ")]
    listed = {(place, name) for place, cell in rows[1:] for name in re.findall(r"`([\w:…]+)`", f"`{cell}`")}
    listed -= {(place, name) for place, name in listed if name in ("null", "wideep_segments")}
    with shared_directory() as shm, exporting(
            shm, "--debug.per-expert", "--advisor.interval=500ms") as exporter:
        def state():
            return json.loads(exporter.get("/api/v1/state?loads&experts=0")[1])

        with simulating(shm, "--scenario", "steady", "--engines", 1, "--passes", 100000, "--passes-per-second", 50):
            exporter.wait_page(lambda page: page.of("vllm:eplb_avg_tokens_per_rank"))
            wait_for(lambda: "worst" in state()["groups"][0]["balancedness"])
            wait_for(lambda: {"achievable", "expert_loads"} <= set(state()["groups"][0]))
            found = set(fields(state()))
    for place, name in found:
        assert any(place == where and re.fullmatch(pattern.replace("…", r"\w+"), name) for where, pattern in listed), (
            place, name)
    for where, pattern in listed:
        assert any(place == where and re.fullmatch(pattern.replace("…", r"\w+"), name) for place, name in found), (
            where, pattern)


def blocks(document, kind):
    return re.findall(rf"```{kind}\n(.*?)```", document.read_text(), re.S)


@contextlib.contextmanager
def prometheus(directory, port, text):
    (directory / "prometheus.yml").write_text("global: {scrape_interval: 1s}\n" + text)
    with open(directory / "prometheus.log", "wb") as log:
        process = subprocess.Popen(["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                                    f"--web.listen-address=127.0.0.1:{port}"], cwd=directory, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def scraped(port):
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=10) as answer:
            return [target["health"] for target in json.load(answer)["data"]["activeTargets"]] == ["up"]


@pytest.mark.skipif(not (shutil.which("htpasswd") and shutil.which("prometheus")), reason="no htpasswd or prometheus")
def test_tls_example(tmp_path):
    """Certificates, password, probe, curl and Prometheus, as written but for the port."""
    certificates, configuration, asking = blocks(TESTS.parent / "deploy" / "tls.md", "sh")
    (scrape_config,) = blocks(TESTS.parent / "deploy" / "tls.md", "yaml")
    port, prometheus_port = free_port(), free_port()
    env = {**os.environ, "PATH": f"{BUILD}:{os.environ['PATH']}",
           "WIDEEP_WEB_LISTEN_ADDRESS": f"localhost:{port}"}

    def run(script):
        return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=env, check=True, timeout=120,
                              stdout=subprocess.PIPE, text=True).stdout

    run(certificates)
    assert run("umask 077\n" + configuration) in (TESTS.parent / "deploy" / "tls.md").read_text().replace("\n    ", "\n")
    with shared_directory() as shm:
        with exporting(shm, f"--web.listen-address=127.0.0.1:{port}", "--web.config.file=web.yml", cwd=tmp_path):
            said = run(asking.replace(":9464", f":{port}"))
            assert said.startswith("wideep-exporter: alive, and asks for a client certificate\n")
            assert "\nwideep_build_info{" in said
            with prometheus(tmp_path, prometheus_port, scrape_config.replace(":9464", f":{port}")):
                wait_for(lambda: scraped(prometheus_port))

# SPDX-License-Identifier: Apache-2.0
"""The page at /, as far as that can be said without a browser; with one, see tests/live."""

import base64
import gzip
import hashlib
import json
import pathlib
import re

from exporter_helpers import exporting, shared_directory, simulating

SOURCE = (pathlib.Path(__file__).resolve().parent.parent.parent / "src/live.html").read_text()
(SCRIPT,) = re.findall(r"<script>(.*?)</script>", SOURCE, re.S)


def test_served():
    with shared_directory() as directory, exporting(directory, "--web.telemetry-path=/m") as exporter:
        response, body = exporter.get("/")
        assert response.status == 200 and response.getheader("Content-Type") == "text/html; charset=utf-8"
        assert response.getheader("Cache-Control") == "no-store"
        page, packed = body.decode(), exporter.get("/", headers={"Accept-Encoding": "gzip"})
        assert 'href="/m"' in page and "@METRICS@" not in page and "@VERSION@" not in page
        assert packed[0].getheader("Content-Encoding") == "gzip"
        assert gzip.decompress(packed[1]) == body and len(packed[1]) < 20000
        assert response.getheader("Vary") == packed[0].getheader("Vary") == "Accept-Encoding"

        policy = dict(part.split(" ", 1) for part in response.getheader("Content-Security-Policy").split("; "))
        assert list(policy)[0] == "default-src" and policy["default-src"] == "'none'"
        for element in ("script", "style"):
            (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.S)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert policy[f"{element}-src"] == f"'sha256-{digest}'"
        assert policy["connect-src"] == "'self'" and "unsafe" not in str(policy) and "*" not in str(policy)


def test_links():
    with shared_directory() as directory, exporting(directory, "--web.enable-admin-api") as exporter:
        links = re.findall(r'<a href="([^"]+)"', exporter.get("/")[1].decode())
        assert len(links) == 7
        for link in links:
            assert exporter.get("/" + link.lstrip("/"))[0].status == 200, link


def test_nothing_from_elsewhere():
    """No other address, and no way for text to become markup or code, or past the policy's hashes."""
    page = SOURCE.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:)?//[a-z][\w.]*\.\w", page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|createContextualFragment|DOMParser|srcdoc|"
                          r"setHTML|\beval\b|new Function|import\(|\.on\w+ *=|javascript:", page)
    assert not re.findall(r"<[^>]* (?:style|on\w+)=", page) and len(re.findall("<(?:script|style)[ >]", page)) == 2


def names_in(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


def test_reads_what_is_there():
    """Every field of the state that the script names is one, on a run that has them all."""
    with shared_directory() as directory, exporting(
            directory, "--debug.per-expert", "--advisor.interval=500ms", "--eplb.window=1s") as exporter, simulating(
            directory, "--engines", 1, "--passes-per-second", 50, "--seconds", 600) as sim:
        sim.started()
        exporter.wait_page(lambda page: page.of("wideep_eplb_drift_ratio") and page.of(
            "vllm:expert_load_per_expert_tokens_DEBUG") and page.of("vllm:eplb_balancedness_ratio"))
        state = json.loads(exporter.get("/api/v1/state?loads&experts=0")[1])
        families = {key.partition("{")[0] for key in exporter.scrape()}
    found = set(names_in(state))
    read = set(re.findall(r"\b(?:own|model|state|group|engine|g|m)\.((?:wideep_|process_)?[a-z_]+)\b(?! *=[^=])", SCRIPT))
    read |= set(re.findall(r"balancedness\.([a-z_]+)", SCRIPT)) | set(re.findall(r"model\[\"([^\"]+)\"\]", SCRIPT))
    assert len(read) > 20 and read <= found, read - found
    metrics = set(re.findall(r"\"((?:vllm:|wideep_)[a-zA-Z_:]+)\"", SCRIPT))
    known = families | {name.rpartition("_")[0] for name in families if name.endswith("_count")} | {"wideep_lb_state"}
    assert len(metrics) > 15 and metrics <= known, metrics - known

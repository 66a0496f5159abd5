# SPDX-License-Identifier: Apache-2.0
"""A Prometheus of a test's own, with the rules of deploy/prometheus."""

import contextlib
import json
import pathlib
import re
import subprocess
import urllib.parse
import urllib.request

from exporter_helpers import free_port

RULES = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
FILES = ("wideep-recording.yml", "wideep-alerts.yml")


class Prometheus:
    def __init__(self, port):
        self.own, self.url = f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{port}/api/v1/"

    def ask(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
            return json.load(answer)["data"]

    def resident_bytes(self):
        with urllib.request.urlopen(self.own, timeout=60) as answer:
            return float(re.search(r"^process_resident_memory_bytes (.+)$", answer.read().decode(), re.M)[1])

    def query(self, query, *names):
        """{values of the labels: value}."""
        rows = [(tuple(row["metric"][name] for name in names), float(row["value"][1]))
                for row in self.ask("query", query=query)["result"]]
        assert len(dict(rows)) == len(rows), (query, rows)
        return dict(rows)


@contextlib.contextmanager
def recording(directory, addresses, interval):
    """A Prometheus with our rules that scrapes all of the addresses."""
    port = free_port()
    (directory / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(RULES / name) for name in FILES],
        "scrape_configs": [{"job_name": "wideep", "static_configs": [{"targets": addresses}]}]}))
    with open(directory / "prometheus.log", "wb") as log:
        process = subprocess.Popen(["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                                    f"--web.listen-address=127.0.0.1:{port}"], cwd=directory, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()

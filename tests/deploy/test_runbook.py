# SPDX-License-Identifier: Apache-2.0
"""Each query of deploy/runbook.md, asked of a real Prometheus: it answers where there is the trouble that its section is
about, and, if it compares, stays empty where there is none."""

import contextlib
import pathlib
import re
import shutil
import signal

import pytest

from exporter_helpers import exporting, free_port, shared_directory, simulating, wait_for
from rules_prometheus import recording
from scale import distribute

RUNBOOK = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "runbook.md"

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")

# What goes on beside an exporter, by the simulator's scenario. The model is named as the trouble.
SCENARIOS = {
    "healthy": ("steady",),
    "hot": ("hot", "--engines", 4, "--redundant", 8),
    "stall": ("stall",),
    "async": ("async",),
    "overdue": ("default",),
    "fallout": ("fallout",),
    "death": ("death", "--passes", 200, "--linger", 1200),
    "sparse": ("sparse",),
    "mixed": ("steady", "--groups", 2),
    "lossy": ("steady", "--passes-per-second", 0),
    "series": ("steady",),
}
FLAGS = {"series": ("--limit.series=150",)}
SECTIONS = {
    "is-the-picture-complete": "down",
    "does-it-drop-at-all": "stall",
    "is-an-engine-blocked-or-dead": "stall",
    "which-share-of-time-is-lost": "stall",
    "wideep-imbalance-sustained": "hot",
    "wideep-imbalance-across-instances": "part",
    "wideep-rebalancing-too-long": "async",
    "wideep-engine-blocked": "stall",
    "wideep-rearrangement-overdue": "overdue",
    "wideep-dbo-fallout-empty-second-ubatch": "fallout",
    "wideep-dbo-fallout-coordination-failure": "overdue",
    "wideep-dbo-fallout-other": "overdue",
    "wideep-rank-lost": "death",
    "wideep-ranks-missing": "missing",
    "wideep-groups-mixed": "mixed",
    "wideep-records-lost": "lossy",
    "wideep-passes-incomplete": "lossy",
    "wideep-series-dropped": "series",
    "wideep-exporter-down": "down",
    "wideep-exporters-absent": "any",
    "wideep-directory-unreadable": "nowhere",
    "wideep-no-segments": "empty",
    "wideep-segments-rejected": "rejected",
    "wideep-snapshot-old": "healthy",
    "wideep-web-config-reload-failed": "config",
}
# Queries of a section that are about something else than its others.
OTHERS = {
    "wideep_shm_directory_readable == 0": "nowhere",
    'wideep_segments{state="rejected"} > 0': "rejected",
    "ep_group:wideep_ep_ranks_seen:ratio < 1": "missing",
    "wideep_rank_up == 0": "death",
    "max by (instance, model_name) (wideep_eplb_recording) == 0": "sparse",
}


def queries():
    """(anchor, query) of each line of the runbook's blocks."""
    found = []
    for section in RUNBOOK.read_text().split("\n### ")[1:]:
        for block in re.findall(r"```promql\n(.*?)```", section, re.S):
            found += [(section.partition("\n")[0], query) for query in block.splitlines()]
    return found


def compares(query):
    return re.search(r" (==|<|>) [\d.]+$| < wideep", query.rstrip(")")) is not None


class Site:
    """Exporters, each with a trouble of its own."""

    def __init__(self, stack, shm):
        self.stack, self.shm, self.addresses, self.exporters = stack, shm, {}, {}

    def export(self, name, *flags, directory=None, trouble=None):
        directory = directory or self.directory(name)
        exporter = self.stack.enter_context(exporting(directory, *flags))
        self.exporters[name] = exporter
        self.addresses.setdefault(trouble or name, []).append(f"127.0.0.1:{exporter.port}")
        return exporter

    def directory(self, name):
        (self.shm / name).mkdir()
        return self.shm / name

    def simulate(self, name, directory, scenario, *flags):
        return self.stack.enter_context(simulating(
            directory, "--model", name, "--scenario", scenario, "--layers", 2, "--experts", 16,
            "--passes-per-second", 20, "--seconds", 1200, *flags))

    def split(self, name, engines, *flags):
        """Two directories that see half of the engines each."""
        whole, parts = self.directory(f"{name}-whole"), [self.directory(f"{name}-{i}") for i in range(2)]
        self.simulate(name, whole, *flags, "--engines", engines)
        distribute(whole, parts, engines)
        return parts


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("runbook")
    with contextlib.ExitStack() as stack:
        site = Site(stack, stack.enter_context(shared_directory()))
        for name, (scenario, *flags) in SCENARIOS.items():
            exporter = site.export(name, *FLAGS.get(name, ()))
            site.simulate(name, exporter.directory, scenario, *flags)
        for number, part in enumerate(site.split("part", 4, "hot")):
            site.export(f"part-{number}", directory=part, trouble="part")
        site.export("missing", directory=site.split("missing", 2, "steady")[0])
        site.export("empty")
        site.export("nowhere", directory=site.shm / "does-not-exist")
        (site.export("rejected").directory / "wideep.default.e0.r0").write_bytes(b"no segment" * 1000)
        config = tmp / "web.yml"
        config.write_text("{}\n")
        site.export("config", f"--web.config.file={config}").wait_page(
            lambda page: page.one("wideep_web_config_reload_successful") == 1)
        site.addresses["down"] = [f"127.0.0.1:{free_port()}"]
        addresses = [address for several in site.addresses.values() for address in several]
        site.prometheus = stack.enter_context(recording(tmp, addresses, "500ms"))

        def up():
            with contextlib.suppress(OSError):
                return sum(site.prometheus.query("up", "instance").values()) == len(addresses) - 1

        wait_for(up)
        # Only from now on, for a rate needs to have seen the counter before.
        config.write_text("nonsense: 1\n")
        lossy = site.exporters["lossy"].process
        lossy.send_signal(signal.SIGSTOP)
        wait_for(lambda: site.prometheus.query("up", "instance")[(site.addresses["lossy"][0],)] == 0)
        lossy.send_signal(signal.SIGCONT)
        yield site


def rows_of(site, query, trouble):
    rows = site.prometheus.ask("query", query=query)["result"]
    return [row for row in rows if trouble == "any" or row["metric"].get("instance") in site.addresses[trouble]
            or row["metric"].get("model_name") == trouble]


def test_each_section_has_its_trouble():
    assert {anchor for anchor, _ in queries()} == set(SECTIONS)
    assert set(OTHERS) <= {query for _, query in queries()}


@pytest.mark.parametrize("anchor, query", queries())
def test_query(site, anchor, query):
    trouble = OTHERS.get(query, SECTIONS[anchor])
    # Some troubles come and go.
    rows = wait_for(lambda: rows_of(site, query, trouble), pause=0.2)
    assert all(float(row["value"][1]) == float(row["value"][1]) for row in rows), rows
    if compares(query) and trouble != "healthy":
        assert not rows_of(site, query, "healthy"), query

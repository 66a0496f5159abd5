#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What one Prometheus gets from 1, 8, 72 and 512 EP ranks, and what an exporter needs: prints the tables of
deploy/prometheus/README.md (`scale`, `sizing`, else both). Up to 72 ranks are simulated and measured; 512 are
calculated, series by the formulas below, which test_scale.py holds against pages."""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "process"))

from exporter_helpers import Page, exporting, shared_directory, simulating, wait_for  # noqa: E402
from rules_prometheus import recording  # noqa: E402

INTERVAL_S = 15
# What Prometheus 2 adds for each target: up, scrape_duration_seconds and three more.
SERIES_OF_A_SCRAPE = 5
ACCEPT = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"


@dataclasses.dataclass(frozen=True)
class Shape:
    """One EP group of one model: so many exporters, each beside so many engines of one rank."""

    exporters: int
    engines: int
    layers: int = 58
    experts: int = 256
    frontends: int = 1

    @property
    def ep_size(self):
        return self.exporters * self.engines


# ---- formulas ---------------------------------------------------------------------------------------------------


def histogram(bounds):
    return bounds + 3  # +Inf, sum, count


OWN = 123  # The exporter's word on itself, while only its metrics page is asked for.


def series_of_an_exporter(shape, per_expert=False):
    engine = 2 + 3 + 2 * histogram(14) + 2 * 6  # DBO: active, fallouts, two ubatches, passes
    model = 6 + 2 + histogram(12)  # EPLB of an engine: six figures, rearrangements by mode, their durations
    tokens = 2 + 2 * shape.frontends  # rates, and totals by front end
    rank = 2
    group = 2 + histogram(11) + 5 + 3  # ranks, balancedness of passes, incomplete passes, advice
    layer = 4  # sums of average and maximum, passes, what is achievable
    return (OWN + shape.engines * (engine + model + tokens + rank + 3 * shape.layers) + group
            + shape.layers * (layer + shape.ep_size) + (shape.layers * shape.experts if per_expert else 0))


def recorded_series(shape):
    """With all that can be: tokens, DBO, loads."""
    exporter = shape.layers + 3 + 6 + 2 * shape.engines + 1 + 1 + 3 + 2
    return shape.exporters * exporter + shape.layers * (shape.ep_size + 2) + 4


def series_in_prometheus(shape):
    return shape.exporters * (series_of_an_exporter(shape) + SERIES_OF_A_SCRAPE) + recorded_series(shape)


# ---- measuring --------------------------------------------------------------------------------------------------


def distribute(whole, directories, engines, seconds=120):
    """Gives each directory its engines' files as further names of theirs: an exporter there sees these ranks alone."""
    linked, end = set(), time.monotonic() + seconds
    while len(linked) < 2 * engines:
        assert time.monotonic() < end, f"only {len(linked)} of {2 * engines} files"
        for name in os.listdir(whole):
            engine = re.fullmatch(r"wideep\.default\.e(\d+)\.(?:r|fe)\d+", name)
            if engine and name not in linked:
                os.link(whole / name, directories[int(engine[1]) * len(directories) // engines] / name)
                linked.add(name)
        time.sleep(0.002)


@contextlib.contextmanager
def running(shape, *flags, passes_per_second=20):
    """The exporters of a group that runs, in its first pass or later."""
    with contextlib.ExitStack() as stack:
        shm = stack.enter_context(shared_directory())
        whole, pods = shm / "whole", [shm / f"pod{i}" for i in range(shape.exporters)]
        for path in (whole, *pods):
            path.mkdir()
        exporters = [stack.enter_context(exporting(path, *flags)) for path in pods]
        stack.enter_context(simulating(whole, "--engines", shape.engines * shape.exporters, "--layers", shape.layers,
                                       "--experts", shape.experts, "--redundant", -shape.experts % shape.ep_size,
                                       "--passes-per-second", passes_per_second, "--seconds", 600))
        distribute(whole, pods, shape.engines * shape.exporters)
        yield exporters


def settled(exporter, shape, per_expert=False):
    """The first page that has as many series as it should; else the last one after a while."""
    pages = []

    def complete():
        pages.append(exporter.scrape())
        return len(pages[-1].samples) == series_of_an_exporter(shape, per_expert)

    with contextlib.suppress(AssertionError):
        wait_for(complete, 60, 0.25)
    return pages[-1]


def sent(exporter):
    """(bytes, bytes compressed) of a page as Prometheus asks for it."""
    _, plain = exporter.get(headers={"Accept": ACCEPT})
    response, packed = exporter.get(headers={"Accept": ACCEPT, "Accept-Encoding": "gzip"})
    assert response.getheader("Content-Encoding") == "gzip" and gzip.decompress(packed).startswith(b"# ")
    return len(plain), len(packed)


def cpu_share(exporter, seconds):
    """Of a core, collections and one scrape in the middle."""
    def now():
        return exporter.scrape().one("process_cpu_seconds_total"), time.monotonic()

    (cpu, at), _ = now(), time.sleep(seconds)
    after, then = now()
    return (after - cpu) / (then - at)


def cost_in_prometheus(exporters, shape):
    """(bytes resident once it has all series and twenty scrapes of them, seconds that the rules took the last time)."""
    scraped = 'count({job="wideep",__name__!~"ALERTS.*|[a-z_]+:[a-z_]+:[a-z0-9_]+"})'
    addresses = [f"127.0.0.1:{exporter.port}" for exporter in exporters]
    with tempfile.TemporaryDirectory(prefix="wideep-scale-") as work:
        with recording(pathlib.Path(work), addresses, "2s") as prometheus:
            time.sleep(40)
            want = shape.exporters * (series_of_an_exporter(shape) + SERIES_OF_A_SCRAPE)
            wait_for(lambda: prometheus.query(scraped) == {(): want})
            return prometheus.resident_bytes(), sum(group["evaluationTime"] for group in prometheus.ask("rules")["groups"])


def bytes_a_sample(exporter, scrapes=120):
    """On disk, by blocks of pages a quarter of a second apart which are dated 15 s apart, as many as fill a chunk."""
    begin = 1_700_000_000 // 7200 * 7200
    with tempfile.TemporaryDirectory(prefix="wideep-scale-") as work:
        samples, path = 0, pathlib.Path(work) / "pages"
        with open(path, "w", encoding="utf-8") as out:
            for number in range(scrapes):
                lines = [line for line in exporter.scrape().text.splitlines() if line and not line.startswith("#")]
                out.writelines(f"{line} {begin + number * INTERVAL_S}\n" for line in lines)
                samples += len(lines)
                time.sleep(0.25)
            out.write("# EOF\n")
        subprocess.run(["promtool", "tsdb", "create-blocks-from", "openmetrics", path, f"{work}/data"], check=True,
                       stdout=subprocess.DEVNULL)
        chunks = sum(file.stat().st_size for file in pathlib.Path(work).glob("data/*/chunks/*"))
        index = sum(file.stat().st_size for file in pathlib.Path(work).glob("data/*/index"))
        # The index is written once for a block of two hours, which has four times as many samples.
        return (chunks + index * scrapes * INTERVAL_S / 7200) / samples


# ---- tables -----------------------------------------------------------------------------------------------------

SHAPES = [Shape(1, 1), Shape(1, 8), Shape(9, 8), Shape(64, 8)]


def thousands(number):
    return f"{number:,.0f}"


def print_scale():
    measured, cost, disk = {}, {}, None
    for shape in SHAPES[:-1]:
        rate = 20 if shape.ep_size <= 8 else 2
        with running(shape, passes_per_second=rate) as exporters:
            pages = [settled(exporter, shape) for exporter in exporters]
            counts = [len(page.samples) for page in pages]
            assert set(counts) == {series_of_an_exporter(shape)}, (shape, counts, series_of_an_exporter(shape))
            measured[shape] = sent(exporters[0])
            cost[shape] = cost_in_prometheus(exporters, shape)
            if shape.ep_size == 8:
                disk = bytes_a_sample(exporters[0])
    eight, many = SHAPES[1], SHAPES[2]
    more = series_of_an_exporter(many) - series_of_an_exporter(eight)
    each = [(b - a) / more for a, b in zip(measured[eight], measured[many])]
    print("| EP ranks | exporters | series of one | of all, with `up` and the like | recorded | samples/s | "
          "bytes a scrape of one: plain | gzip | received/s | on disk a day |")
    print("|" + "---:|" * 10)
    for shape in SHAPES:
        extra = series_of_an_exporter(shape) - series_of_an_exporter(many)
        plain, packed = measured.get(shape) or [b + extra * a for b, a in zip(measured[many], each)]
        total, recorded = series_in_prometheus(shape), recorded_series(shape)
        print(f"| {shape.ep_size}{'' if shape in measured else ' (calculated)'} | {shape.exporters} | "
              f"{thousands(series_of_an_exporter(shape))} | {thousands(total - recorded)} | {thousands(recorded)} | "
              f"{thousands(total / INTERVAL_S)} | {thousands(plain)} | {thousands(packed)} | "
              f"{thousands(shape.exporters * packed / INTERVAL_S)} | "
              f"{total / INTERVAL_S * 86400 * disk / 1e6:,.0f} MB |", flush=True)
    print(f"\n{disk:.2f} bytes a sample on disk; a Prometheus of "
          + ", ".join(f"{shape.ep_size} ranks {size / 2**20:.0f} MiB, its rules {1000 * seconds:.0f} ms"
                      for shape, (size, seconds) in cost.items()) + "\n")


def print_sizing():
    print("| engines | layers | experts | | resident | of a core at 50 passes/s | series |")
    print("|---:|---:|---:|---|---:|---:|---:|")
    base = Shape(1, 8)
    for shape, flags in [(Shape(1, 1), ()), (base, ()), (dataclasses.replace(base, layers=29), ()),
                         (dataclasses.replace(base, experts=64), ()), (base, ("--eplb.engine-label=first",)),
                         (base, ("--debug.per-expert",))]:
        with running(shape, *flags, passes_per_second=50) as (exporter,):
            page = exporter.wait_page(lambda page: page.of("wideep_eplb_rearrangement_gain_ratio"))
            share = cpu_share(exporter, 10)
            page = exporter.scrape()
            print(f"| {shape.engines} | {shape.layers} | {shape.experts} | {' '.join(f'`{flag}`' for flag in flags)} | "
                  f"{page.one('process_resident_memory_bytes') / 2**20:.1f} MiB | {100 * share:.2f} % | "
                  f"{thousands(len(page.samples))} |", flush=True)


if __name__ == "__main__":
    for section in sys.argv[1:] or ("scale", "sizing"):
        {"scale": print_scale, "sizing": print_sizing}[section]()

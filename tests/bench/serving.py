"""Scrapes: the exporter and a bare libmicrohttpd that sends the same bytes, by single requests in turn."""

import contextlib
import time

from programs import (Failed, body_of, cpu_ns, exporting, feeding, free_port, get, like, load, page_with,
                      shared_directory, started, value_of)
from reading import DEBUG, EXPERTS
from report import percentile

# One engine has the layers and experts of the peers' pages.
PAGES = {
    "aggregated": (("--layers=60",), (), "vllm:eplb_balancedness_ratio", 60),
    "debug": (("--layers=60", "--redundant=0"), DEBUG, EXPERTS, 60 * 256),
    "debug8": (("--groups=8", "--redundant=0"), DEBUG, EXPERTS, 8 * 58 * 256),
}
CONNECTIONS = (1, 8, 64)
PAIRS = 10_000  # over all rounds, where time allows
# The most that one combination takes in a round, in ms.
TIME = {("debug", "plain"): 4000}
OTHER_TIME = 1000
# The exporter cuts an answer off after so many seconds. A machine may be too slow for 64 of the largest page.
DEADLINE = 10
# Once a snapshot, at the default interval of 250 ms.
FIRST_PACE, FIRST_MS = 3, 1500


@contextlib.contextmanager
def bare(settings, directory, body, gzip):
    """(process, target of load())"""
    port, file = free_port(), directory / f"page-{gzip}"
    file.write_bytes(body)
    command = [settings.program("bare_mhd"), port, file, *(["--gzip"] if gzip else [])]
    with started(command, "ready") as (process, _):
        yield process, f"{port}:{len(body)}"


def pairs(settings, report, name, exporter, target, floor, floor_target, **options):
    before = cpu_ns(exporter.pid), cpu_ns(floor.pid)
    begin = time.monotonic()
    try:
        found = load(settings, target, floor_target, requests=max(1, PAIRS // settings.rounds), **options)
    except Failed as error:
        if "an answer was cut off" not in str(error) or time.monotonic() - begin < DEADLINE:
            raise
        report.note(f"{name} is left out: it takes longer than the {DEADLINE} s that the exporter has for an answer")
        return
    spent = cpu_ns(exporter.pid) - before[0], cpu_ns(floor.pid) - before[1]
    for row, one, cpu, against in ((f"{name}.floor", found[1], spent[1], None),
                                   (name, found[0], spent[0], f"{name}.floor")):
        report.add_percentiles(row, one["ns"], against)
        report.add(f"{row}.cpu", cpu / len(one["ns"]), relative_to=against and f"{against}.cpu")


def counts(port):
    """How often the exporter has collected, rendered the text page and compressed one."""
    page = body_of(port)
    found = [value_of(page, f"wideep_{name}") for name in (
        "collect_duration_seconds_count", 'render_duration_seconds_count{format="text"}',
        "compress_duration_seconds_count")]
    if None in found:
        raise Failed("the page lacks the exporter's own counts")
    return found


def first(settings, report, name, port, target, gzip):
    """Scrapes that find no page of their snapshot yet, as those of a server that asks every 15 seconds."""
    before = counts(port)
    (found,) = load(settings, target, ms=FIRST_MS, pace=FIRST_PACE, gzip=gzip)
    made = [now - then for now, then in zip(counts(port), before)][2 if gzip else 1]
    report.add(f"{name}.first", percentile(found["ns"], 0.5), relative_to=f"{name}.x1.floor.p50",
               samples=len(found["ns"]))
    if made < len(found["ns"]):
        report.note(f"{name}.first: {made:.0f} of {len(found['ns'])} scrapes found no page, the others one made before")


def measure_page(settings, report, page):
    shape, flags, family, count = PAGES[page]
    with shared_directory() as directory, feeding(settings, directory, "--pace=10", *shape), \
            exporting(settings, directory, "--web.max-requests=0", *flags) as (exporter, port):
        page_with(port, family, count)
        for encoding in ("plain", "gzip"):
            gzip = encoding == "gzip"
            first(settings, report, f"server.{page}.{encoding}", port, like(port, body_of(port, gzip)), gzip)
            before, body = counts(port), body_of(port, gzip)
            target = like(port, body)
            with bare(settings, directory, body, gzip) as (floor, floor_target):
                for connections in CONNECTIONS:
                    pairs(settings, report, f"server.{page}.{encoding}.x{connections}", exporter, target, floor,
                          floor_target, ms=TIME.get((page, encoding), OTHER_TIME), gzip=gzip, connections=connections)
            collected, _, made = (now - then for now, then in zip(counts(port), before))
            if gzip and collected:
                report.add(f"server.{page}.compressions_per_snapshot", made / collected, "")


def measure(settings, report):
    for page in PAGES:
        measure_page(settings, report, page)

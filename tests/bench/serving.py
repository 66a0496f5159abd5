"""Scrapes: the exporter and a bare libmicrohttpd that sends the same bytes, by single requests in turn."""

import contextlib
import time

from programs import (Failed, cpu_ns, exporting, feeding, free_port, get, load, page_with, shared_directory, started,
                      value_of)
from reading import DEBUG, EXPERTS

PAGES = {
    "aggregated": ((), (), "vllm:eplb_balancedness_ratio", 58),
    "debug": (("--redundant=0",), DEBUG, EXPERTS, 58 * 256),
    "debug8": (("--groups=8", "--redundant=0"), DEBUG, EXPERTS, 8 * 58 * 256),
}
CONNECTIONS = (1, 8, 64)
PAIRS = 10_000  # over all rounds, where time allows
# The most that one combination takes in a round, in ms.
TIME = {("debug", "plain"): 4000}
OTHER_TIME = 1000
# The exporter cuts an answer off after so many seconds. A machine may be too slow for 64 of the largest page.
DEADLINE = 10


@contextlib.contextmanager
def bare(settings, directory, body, gzip):
    """(process, its port and size as bench-load takes them)"""
    port, file = free_port(), directory / f"page-{gzip}"
    file.write_bytes(body)
    command = [settings.program("bare_mhd"), port, file, *(["--gzip"] if gzip else [])]
    with started(command, "ready") as (process, _):
        yield process, f"{port}:{len(body)}"


def body_of(port, gzip):
    status, body = get(port, **({"Accept-Encoding": "gzip"} if gzip else {}))
    if status != 200 or (body[:2] == b"\x1f\x8b") != gzip:
        raise Failed(f"status {status}, or not {'compressed' if gzip else 'plain'}")
    return body


def pairs(settings, report, name, exporter, port, floor, target, **options):
    before = cpu_ns(exporter.pid), cpu_ns(floor.pid)
    begin = time.monotonic()
    try:
        found = load(settings, port, target, requests=max(1, PAIRS // settings.rounds), **options)
    except Failed:
        if time.monotonic() - begin < DEADLINE:
            raise
        report.note(f"{name} is left out: it takes longer than the {DEADLINE} s that the exporter has for an answer")
        return
    spent = cpu_ns(exporter.pid) - before[0], cpu_ns(floor.pid) - before[1]
    for row, one, cpu, against in ((f"{name}.floor", found[1], spent[1], None),
                                   (name, found[0], spent[0], f"{name}.floor")):
        report.add_percentiles(row, one["ns"], against)
        report.add(f"{row}.cpu", cpu / len(one["ns"]), relative_to=against and f"{against}.cpu")


def compressions_and_collections(port):
    _, page = get(port)
    found = [value_of(page, f"wideep_{name}_duration_seconds_count") for name in ("compress", "collect")]
    if None in found:
        raise Failed("the page lacks the exporter's own counts")
    return found


def measure_page(settings, report, page):
    shape, flags, family, count = PAGES[page]
    with shared_directory() as directory, feeding(settings, directory, "--pace=10", *shape), \
            exporting(settings, directory, "--web.max-requests=0", *flags) as (exporter, port):
        page_with(port, family, count)
        for encoding in ("plain", "gzip"):
            gzip = encoding == "gzip"
            before = compressions_and_collections(port)
            with bare(settings, directory, body_of(port, gzip), gzip) as (floor, target):
                for connections in CONNECTIONS:
                    pairs(settings, report, f"server.{page}.{encoding}.x{connections}", exporter, port, floor, target,
                          ms=TIME.get((page, encoding), OTHER_TIME), gzip=gzip, connections=connections)
            made, collected = (now - then for now, then in zip(compressions_and_collections(port), before))
            if gzip and collected:
                report.add(f"server.{page}.compressions_per_snapshot", made / collected, "")


def measure(settings, report):
    for page in PAGES:
        measure_page(settings, report, page)

"""The exporter's own side: collections, rendering, memory, its share of a core, its start."""

import socket
import subprocess
import time

from programs import (PATIENCE, Failed, body_of, clean_environment, cpu_ns, exporting, feeding, free_port, like, load,
                      page_with, resident_bytes, samples, shared_directory)
from report import percentile

DEBUG = ("--debug.per-expert", "--debug.duration=1h")
EXPERTS = "vllm:expert_load_per_expert_tokens_DEBUG"
# A collection finds 12 passes of each rank, as at 50 passes/s and the default interval.
SHAPES = {
    "ranks1": ("--engines=1",),
    "ranks8": ("--engines=8",),
    "ranks8_idle": ("--engines=8", "--passes=0"),
    "ranks72": ("--engines=72",),
    "groups9x8": ("--groups=9", "--engines=8"),
    "experts1": ("--redundant=0", "--debug"),
    "experts8": ("--groups=8", "--redundant=0", "--debug"),
}
# Nine times as many ranks, in one group and in nine, by nine.
GROWTH = {"ranks72": "growth72", "groups9x8": "growth9x8"}
# Long enough for more generations of a page than the exporter keeps, at the default interval.
SLOW_READERS, SLOW_SECONDS = 12, 1.5


def collections(settings, report):
    for name, flags in SHAPES.items():
        with shared_directory() as directory:
            (found,) = samples([settings.program("reader"), directory, "collect",
                                f"--ms={settings.ms(300)}", *flags], settings.near)
        both = [a + b for a, b in zip(found["collect"], found["render"])]
        for part, values in (("collect", found["collect"]), ("render", found["render"]), ("collect_render", both),
                             ("compress", found["compress"])):
            report.add(f"reader.{name}.{part}", percentile(values, 0.5))
        report.add(f"reader.{name}.page", found["bytes"], "bytes")
        if name in GROWTH:
            report.add(f"reader.{GROWTH[name]}", percentile(found["collect"], 0.5) / 9,
                       relative_to="reader.ranks8.collect")


def drain(settings, report):
    with shared_directory() as directory:
        (found,) = samples([settings.program("reader"), directory, "drain", f"--ms={settings.ms(200)}"], settings.near)
    report.add("reader.drain", 1e9 / percentile(found["ns"], 0.5), "records/s")


def core_share(settings, report):
    """At the default interval, with eight ranks at 50 passes/s, and nobody who asks."""
    with shared_directory() as directory, feeding(settings, directory, "--engines=8"), \
            exporting(settings, directory) as (process, port):
        page_with(port, "wideep_rank_up", 8)
        before, begin = cpu_ns(process.pid), time.monotonic()
        time.sleep(settings.ms(2000) / 1e3)
        share = (cpu_ns(process.pid) - before) / 1e9 / (time.monotonic() - begin)
    report.add("reader.core_share", 100 * share, "%")


def answers(port):
    """Whether a page with a rank is there. A connection is refused until the exporter listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            page = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    except ConnectionError:
        return False
    return page.startswith(b"HTTP/1.1 200") and b"\nwideep_rank_up{" in page


def start(settings, report):
    port = free_port()
    with shared_directory() as directory, feeding(settings, directory, "--engines=8"):
        begin = time.monotonic()
        process = subprocess.Popen([settings.build / "wideep-exporter", f"--shm.dir={directory}",
                                    f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL,
                                   env=clean_environment())
        try:
            while not answers(port):
                if time.monotonic() > begin + PATIENCE or process.poll() is not None:
                    raise Failed("the exporter gives no page")
                time.sleep(0.0005)
            report.add("reader.start", (time.monotonic() - begin) * 1e9)
        finally:
            process.kill()
            process.wait()


def slow_readers(port):
    """Connections that ask, a few in each generation of the page, and do not read. Returned open."""
    connections = []
    for _ in range(SLOW_READERS):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections.append(connection)
        time.sleep(SLOW_SECONDS / SLOW_READERS)
    return connections


def memory(settings, report):
    for name, shape, flags, family, count in (
            ("aggregated", ("--engines=8",), (), "wideep_rank_up", 8),
            ("debug", ("--engines=1", "--layers=60", "--redundant=0"), DEBUG, EXPERTS, 60 * 256)):
        with shared_directory() as directory, feeding(settings, directory, *shape), \
                exporting(settings, directory, *flags) as (process, port):
            page_with(port, family, count)
            for gzip in (False, True):
                load(settings, like(port, body_of(port, gzip)), ms=500, gzip=gzip, connections=8)
            report.add(f"memory.{name}", resident_bytes(process.pid), "bytes")
            if name == "debug":
                connections = slow_readers(port)
                report.add("memory.debug_slow_readers", resident_bytes(process.pid), "bytes")
                for connection in connections:
                    connection.close()


MEASURES = (collections, drain, core_share, start, memory)

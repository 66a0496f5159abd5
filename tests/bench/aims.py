"""What is aimed for, by row."""

from report import Aim

MIB, US, MS = 1 << 20, 1e3, 1e6


def times(limit):
    return Aim(limit, of="ratio")


AIMS = {
    "writer.hot.c.eplb_record": Aim(8),
    "writer.hot.c.dbo": Aim(8),
    "writer.hot.c.work_a": Aim(0.6 * US),
    "writer.paced.c.work_a.p50": Aim(5 * US),
    "writer.hot.c.pass": Aim(12 * US),
    "writer.hot.python.pass": Aim(5 * US, of="excess"),
    "writer.hot.python.work_a": times(0.01),
    "writer.hot.python.work_b": times(0.01),
    "writer.brisk.c.work_a.scrapes20.p99": times(1.1),
    "writer.brisk.c.pass.scrapes20.p99": times(1.1),
    "reader.drain": Aim(20e6, "records/s", at_least=True),
    "reader.ranks8.collect_render": Aim(300 * US),
    "reader.experts8.collect_render": Aim(5 * MS),
    "instructions.growth9x8": times(1.2),
    "instructions.growth72": times(1.2),
    "reader.core_share": Aim(1, "%"),
    "reader.start": Aim(50 * MS),
    "memory.aggregated": Aim(8 * MIB, "bytes"),
    "memory.debug": Aim(24 * MIB, "bytes"),
    "memory.debug_slow_readers": Aim(24 * MIB, "bytes"),
    "server.debug.gzip.x1.p50": Aim(200 * US),
} | {
    f"server.{page}.compressions_per_snapshot": Aim(1, "") for page in ("aggregated", "debug", "debug8")
} | {
    f"server.{page}.plain.x{connections}.{label}": times(limit)
    for page in ("aggregated", "debug") for connections in (1, 8) for label, limit in (("p50", 1.1), ("p99", 1.5))
} | {
    # No more for many scrapers than the loopback takes.
    f"server.{page}.plain.x64.p50": times(1.1) for page in ("aggregated", "debug")
}

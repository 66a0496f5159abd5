"""What is aimed for, by row."""

from report import Aim

MIB, US, MS = 1 << 20, 1e3, 1e6

AIMS = {
    "writer.hot.c.eplb_record": Aim(8),
    "writer.hot.c.dbo": Aim(8),
    "writer.hot.c.work_a": Aim(0.6 * US),
    "writer.paced.c.work_a.p50": Aim(5 * US),
    "writer.hot.c.pass": Aim(12 * US),
    "writer.hot.python.pass": Aim(5 * US, of="excess"),
    "writer.hot.python.work_b": Aim(0.01, of="ratio"),
    "writer.brisk.c.work_a.scrapes20.p99": Aim(1.1, of="ratio"),
    "writer.brisk.c.pass.scrapes20.p99": Aim(1.1, of="ratio"),
    "reader.drain": Aim(20e6, at_least=True),
    "reader.ranks8.collect_render": Aim(300 * US),
    "reader.experts8.collect_render": Aim(5 * MS),
    "instructions.growth9": Aim(1.2, of="ratio"),
    "reader.core_share": Aim(1),
    "reader.start": Aim(50 * MS),
    "memory.aggregated": Aim(8 * MIB),
    "memory.debug": Aim(24 * MIB),
    "memory.debug_slow_readers": Aim(24 * MIB),
    "server.debug.gzip.x1.p50": Aim(200 * US),
} | {
    f"server.{page}.compressions_per_snapshot": Aim(1) for page in ("aggregated", "debug", "debug8")
} | {
    f"server.{page}.plain.x{connections}.{label}": Aim(limit, of="ratio")
    for page in ("aggregated", "debug") for connections in (1, 8) for label, limit in (("p50", 1.1), ("p99", 1.5))
}

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Everything at once: writers with books, scrapers of every kind, an exporter, and faults at random.

After each fault the books balance: what is served lies between what each writer has done and what it intended, and is
exactly that once they are idle. Between faults no counter moves back. Each reply parses. Records are lost only where a
fault explains it, and the exporter's anonymous memory and descriptors do not grow.

The seed is printed, and makes the same faults in the same order; what they strike depends on the machine's time.
"""

import argparse
import collections
import gzip
import http.client
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "process"))

WRITERS, PAUSE = 8, 0.25
SCRAPERS = {
    "text": ("/metrics", {}),
    "openmetrics": ("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"}),
    "gzip": ("/metrics", {"Accept-Encoding": "gzip"}),
    "name": ("/metrics?name[]=wideep_dbo_passes_total", {}),
    "lb": ("/lb", {}),
    "state": ("/api/v1/state", {}),
}
# Figures that the exporter makes itself, which begin again with it.
OWN = ("wideep_records", "wideep_http", "wideep_eplb_pass", "wideep_eplb_avg", "wideep_eplb_max", "wideep_series",
       "wideep_collect", "wideep_render", "wideep_compress", "wideep_snapshot", "wideep_web", "process_")
# How much may come over the time that is measured: less than one page kept at each scrape would make of it.
ANON_BOUND_BYTES, DESCRIPTORS_BOUND = 3 << 20, 8
STARVED_SECONDS = 0.5
LATE, LATE_SECONDS = b"a collection is under way for too long", 30


class Board:
    """What the scrapers are told: the port, and a number that is odd while replies may fail or counters restart."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def read(self, name):
        return int((self.directory / name).read_text())

    def write(self, name, value):
        new = self.directory / f"{name}.new"
        new.write_text(str(value))
        new.rename(self.directory / name)


def counters(families):
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families if f.type in ("counter", "histogram")
            for s in f.samples if not s.name.startswith(OWN) and not s.name.endswith("_created")}


def parse(kind, status, headers, body):
    """Counters that must not move back."""
    if kind == "lb":
        assert status in (200, 503), status
        assert "state" in json.loads(body)
        return {}
    assert status == 200, (status, body[:200])
    if kind == "state":
        assert "engines" in json.loads(body)
        return {}
    if headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    if kind == "openmetrics":
        from prometheus_client.openmetrics import parser
    else:
        from prometheus_client import parser
    return counters(parser.text_string_to_metric_families(body.decode("utf-8")))


def request(port, kind):
    path, headers = SCRAPERS[kind]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def scrape_for_ever(kind, board):
    before, since, answered = {}, None, time.monotonic()
    while True:
        generation = board.read("generation")
        try:
            status, headers, body = request(board.read("port"), kind)
            # Who was suspended may say that its figures are old, but must be back soon.
            if status == 503 and LATE in body and time.monotonic() - answered < LATE_SECONDS:
                time.sleep(PAUSE)
                continue
            now, answered = parse(kind, status, headers, body), time.monotonic()
        except (OSError, http.client.HTTPException, AssertionError):
            if generation % 2 == 0 and board.read("generation") == generation:
                raise
            time.sleep(PAUSE)
            continue
        if generation == since == board.read("generation"):
            back = {name: (before[name], now.get(name)) for name in before if now.get(name, -1) < before[name]}
            assert not back, f"{kind}: moved back: {list(back.items())[:3]}"
        before, since = now, generation if generation % 2 == 0 else None
        time.sleep(PAUSE)


class Writer:
    def __init__(self, program, directory, books, engine):
        self.command = [program, str(directory), str(books), str(engine)]
        self.books = books
        self.names = subprocess.run([program, "names", str(engine)], capture_output=True, check=True, text=True
                                    ).stdout.splitlines()
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def read(self):
        """{series: (intended, done)}"""
        data = self.books.read_bytes()
        return dict(zip(self.names, struct.iter_unpack("=QQ", data)))


class Sleeper(threading.Thread):
    """Finds out when the machine did not let anybody run."""

    def __init__(self):
        super().__init__(daemon=True)
        self.starved = 0
        self.start()

    def run(self):
        while True:
            begun = time.monotonic()
            time.sleep(0.05)
            self.starved += time.monotonic() - begun > STARVED_SECONDS


def slope(points):
    """Per second, by least squares."""
    n = len(points)
    if n < 2:
        return 0.0
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square


class Soak:
    def __init__(self, shm, state, build, seed, seconds):
        self.shm, self.board, self.random, self.seconds = shm, Board(state), random.Random(seed), seconds
        self.generation = 0
        self.board.write("generation", 0)
        self.writers = [Writer(str(build / "tests/soak/writer"), shm, pathlib.Path(state) / f"books.{n}", n)
                        for n in range(WRITERS)]
        self.scrapers, self.exporter = {}, None
        self.events, self.points = collections.Counter(), []
        self.lost, self.lost_explained, self.balances, self.sleeper, self.starved = 0, 0, 0, Sleeper(), 0
        self.begun = time.monotonic()

    # -- the processes

    def turn(self):
        self.generation += 1
        self.board.write("generation", self.generation)

    def start_exporter(self):
        from exporter_helpers import Exporter
        self.exporter = Exporter(self.shm, "--web.enable-admin-api", "--collect.interval=100ms").wait()
        self.exporter.scrape()
        self.board.write("port", self.exporter.port)
        self.lost = 0

    def start_scraper(self, kind):
        command = [sys.executable, __file__, "--scrape", kind, "--state", str(self.board.directory)]
        self.scrapers[kind] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def start(self):
        for writer in self.writers:
            assert writer.start() == "fresh"
        self.start_exporter()
        for kind in SCRAPERS:
            self.start_scraper(kind)

    def stop(self):
        for writer in self.writers:
            if writer.process:
                writer.kill()
        for scraper in self.scrapers.values():
            scraper.kill()
            scraper.wait()
        if self.exporter:
            self.exporter.stop()

    # -- what must hold

    def settled_page(self):
        """Whose collection began after the call: the second that is newer."""
        from exporter_helpers import wait_for
        seen = {self.exporter.scrape().one("wideep_snapshot_timestamp_seconds")}

        def page():
            got = self.exporter.scrape()
            seen.add(got.one("wideep_snapshot_timestamp_seconds"))
            return len(seen) > 2 and got

        return wait_for(page, 120)

    def balance(self, explains_loss, idle=False):
        low = [writer.read() for writer in self.writers]
        page = self.settled_page()
        bad = []
        for before, writer in zip(low, self.writers):
            for name, (intended, _) in writer.read().items():
                done, served = before[name][1], page.get(name)
                # Over a wipe the group's sum lacks what a fresh segment held when it was first seen: no lower bound then.
                if self.events["wipe"] and name.startswith("wideep_eplb_rank_tokens_total"):
                    done = 0
                if served is None or not done <= served <= intended:
                    bad.append((name, done, served, intended))
        assert not bad, f"{len(bad)} do not balance (name, done, served, intended): {bad[:4]}"
        if idle:  # a call that SIGKILL cut off leaves the two apart for good
            assert any(i == d for book in low for i, d in book.values())
        self.check_loss(page, explains_loss)
        for kind, scraper in self.scrapers.items():
            assert scraper.poll() is None, f"scraper {kind}: {scraper.communicate()[1][-1500:]}"
        assert self.exporter.process.poll() is None, self.exporter.log[-5:]
        self.balances += 1

    def check_loss(self, page, explained):
        lost = sum(value for _, value in page.of("wideep_records_lost_total"))
        starved, self.starved = self.sleeper.starved > self.starved, self.sleeper.starved
        if lost > self.lost:
            assert explained or starved, f"{lost - self.lost} records lost, and nothing explains it"
            self.lost_explained += lost - self.lost
        self.lost = lost

    def sample(self):
        pid = self.exporter.pid
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        anon = int(next(line for line in rollup.splitlines() if line.startswith("Anonymous:")).split()[1]) << 10
        self.points.append((time.monotonic(), anon, len(os.listdir(f"/proc/{pid}/fd"))))

    def check_growth(self):
        """Of the last life's points, without its first quarter, in which caches fill."""
        points = self.points[len(self.points) // 4:]
        span = points[-1][0] - points[0][0]
        for what, at, bound in (("anonymous bytes", 1, ANON_BOUND_BYTES), ("descriptors", 2, DESCRIPTORS_BOUND)):
            per_second = slope([(p[0], p[at]) for p in points])
            print(f"{what}: {points[0][at]} to {points[-1][at]}, slope {per_second * 3600:+.1f} an hour over "
                  f"{span:.0f} s; bound {bound / span * 3600:.0f} an hour")
            assert per_second * span < bound, f"{what} grow"

    # -- faults; each says whether records may be lost by it

    def kill_writer(self):
        writer = self.random.choice(self.writers)
        writer.kill()
        time.sleep(self.random.random() * 0.3)
        assert writer.start() == "takeover"
        return True

    def kill_exporter(self):
        self.turn()
        self.exporter.stop()
        self.start_exporter()
        self.points = []
        self.turn()
        return True

    def kill_scraper(self):
        kind = self.random.choice(sorted(self.scrapers))
        assert self.scrapers[kind].poll() is None, f"{kind}: {self.scrapers[kind].communicate()[1][-1500:]}"
        self.scrapers[kind].kill()
        self.scrapers[kind].communicate()
        self.start_scraper(kind)
        return False

    def hang_up(self):
        self.exporter.process.send_signal(signal.SIGHUP)
        return False

    def suspend(self, process):
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(0.2, 3))
        process.send_signal(signal.SIGCONT)

    def suspend_exporter(self):
        self.suspend(self.exporter.process)
        return True

    def suspend_writer(self):
        self.suspend(self.random.choice(self.writers).process)
        return False

    def delete_files(self):
        """Under live writers, which link them again."""
        from exporter_helpers import wait_for
        for path in self.shm.glob("wideep.*"):
            path.unlink()
        wait_for(lambda: len(list(self.shm.glob("wideep.*"))) >= WRITERS, 120)
        return False

    def wipe(self):
        """As the start script of an engine: all ranks dead, their files deleted. Lineages and books begin again."""
        self.turn()
        for writer in self.writers:
            writer.kill()
        for path in self.shm.glob("wideep.*"):
            path.unlink()
        for writer in self.random.sample(self.writers, WRITERS):
            writer.books.unlink()
            assert writer.start() == "fresh"
        self.settled_page()
        self.turn()
        return True

    def switch_debug(self):
        method = self.random.choice(("POST", "DELETE"))
        response, body = self.exporter.get("/-/debug/per-expert" + ("?duration=10s" if method == "POST" else ""), method)
        assert response.status in (200, 202, 204), (method, response.status, body)
        return False

    # -- the run

    def step(self):
        faults = [self.kill_writer] * 4 + [self.kill_scraper, self.hang_up, self.suspend_exporter, self.suspend_writer,
                                           self.delete_files, self.wipe, self.switch_debug]
        # Growth is measured over the rest, which is one life.
        if time.monotonic() - self.begun < self.seconds / 3:
            faults += [self.kill_exporter] * 2
        fault = self.random.choice(faults)
        self.events[fault.__name__] += 1
        self.balance(fault())
        self.sample()

    def run(self):
        self.start()
        while time.monotonic() - self.begun < self.seconds:
            self.step()
            time.sleep(self.random.uniform(0, 0.5))
        self.rest()
        self.check_growth()

    def rest(self):
        """Idle, each total is exactly what was done, unless SIGKILL cut off a call of it."""
        from exporter_helpers import wait_for
        for writer in self.writers:
            writer.process.send_signal(signal.SIGUSR1)
        last = []

        def quiet():
            last.append([writer.read() for writer in self.writers])
            return len(last) > 1 and last[-1] == last[-2]

        wait_for(quiet, 120, pause=0.5)
        self.balance(True, idle=True)

    def report(self):
        print("events: " + ", ".join(f"{name} {count}" for name, count in sorted(self.events.items())))
        series = sum(len(writer.names) for writer in self.writers)
        cut = sum(i != d for writer in self.writers for i, d in writer.read().values())
        print(f"books: {series} series balanced {self.balances} times; at the end {series - cut} exact, {cut} within a call"
              f" that was cut off; {self.lost_explained:.0f} ring records lost, all explained")
        print(f"{sum(self.events.values())} faults tried, all survived")


def main():
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--build", type=pathlib.Path, default=TESTS.parent / "build")
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options.add_argument("--scrape", choices=sorted(SCRAPERS), help=argparse.SUPPRESS)
    options.add_argument("--state", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.scrape:
        scrape_for_ever(arguments.scrape, Board(arguments.state))
    os.environ["WIDEEP_BUILD"] = str(arguments.build.resolve())
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s", flush=True)

    from exporter_helpers import shared_directory
    from faults import record_faults
    with shared_directory() as shm, tempfile.TemporaryDirectory() as state:
        soak = Soak(shm, state, arguments.build.resolve(), arguments.seed, arguments.seconds)
        try:
            soak.run()
            soak.report()
            record_faults("soak: killed, stopped, reloaded, wiped at random", sum(soak.events.values()))
        finally:
            soak.stop()


if __name__ == "__main__":
    main()

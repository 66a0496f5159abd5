# SPDX-License-Identifier: Apache-2.0
"""Starts wideep-exporter and wideep-sim, scrapes, and holds a page against what the simulator says it recorded."""

import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

BUILD = pathlib.Path(os.environ.get("WIDEEP_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
EXPORTER, SIM = str(BUILD / "wideep-exporter"), str(BUILD / "wideep-sim")

# What only the exporter can know by joining; it starts at 0 with the exporter.
JOINED = re.compile(r"wideep_eplb_(avg_tokens_total|max_tokens_total|passes_total|pass_balancedness\w*)\{")
# What speaks of the exporter and not of a segment.
OWN = re.compile(r"process_|wideep_(build_info|shm_directory_readable|segments|records|series_dropped|snapshot|collect|"
                 r"render|compress|http|web_config)")


def wait_for(condition, seconds=60, pause=0.05):
    """Calls until it returns something true, which is returned. An assertion in it counts as "not yet"."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = condition()
            if value:
                return value
            failure = None
        except AssertionError as error:
            failure = error
        if time.monotonic() > end:
            raise failure or AssertionError(f"still {value!r} after {seconds} s")
        time.sleep(pause)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def escape(text):
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def key(name, **labels):
    """A series as FILE writes it: labels sorted by name."""
    if not labels:
        return name
    return name + "{" + ",".join(f'{k}="{escape(str(v))}"' for k, v in sorted(labels.items())) + "}"


class Page(dict):
    """Series, written as FILE writes them, to values."""

    def __init__(self, text):
        super().__init__()
        self.text, self.families, self.samples = text, {}, []
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, f"{family.name} comes twice"
            self.families[family.name] = family
            for sample in family.samples:
                name = key(sample.name, **sample.labels)
                assert name not in self, f"{name} comes twice"
                self[name] = sample.value
                self.samples.append(sample)

    def of(self, name, **labels):
        """[(labels, value)] of the series of that name which have those labels."""
        labels = {k: str(v) for k, v in labels.items()}
        return [(s.labels, s.value) for s in self.samples
                if s.name == name and labels.items() <= s.labels.items()]

    def one(self, name, **labels):
        (found,) = self.of(name, **labels)
        return found[1]

    def segments(self):
        """{(state, reason): number} of those that are not 0."""
        return {(l["state"], l["reason"]): v for l, v in self.of("wideep_segments") if v}

    def incomplete(self):
        out = collections.Counter()
        for labels, value in self.of("wideep_eplb_passes_incomplete_total"):
            out[labels["cause"]] += value
        return {cause: value for cause, value in out.items() if value}

    def engine_series(self):
        """The names of all that comes from segments."""
        return {name for name in self if not OWN.match(name)}


def close_to(a, b):
    return a == b or abs(a - b) <= 1e-12 * abs(b)


def check_equal(page, expected, joined=True):
    """Counts to the last unit; seconds and sums of averages to what a double holds."""
    bad = []
    for name, value in expected.items():
        if not joined and JOINED.match(name):
            continue
        got = page.get(name)
        if got is None or (got != value and (isinstance(value, int) or not close_to(got, value))):
            bad.append((name, got, value))
    assert not bad, f"{len(bad)} of {len(expected)} differ, as {bad[:5]}; incomplete {page.incomplete()}"
    return True


class Lines(threading.Thread):
    """Reads a pipe to its end, so that nobody blocks on it."""

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file, self.lines = file, []
        self.start()

    def run(self):
        with self.file:
            for line in self.file:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))


class Exporter:
    """`prefix`: a command that is given the exporter's own; other keywords are Popen's."""

    def __init__(self, directory, *flags, env=None, program=EXPORTER, prefix=(), **popen):
        self.directory = directory
        command = [*prefix, program, f"--shm.dir={directory}", "--web.listen-address=127.0.0.1:0", *flags]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WIDEEP_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**clean, **(env or {})}, **popen)
        self.pid = self.process.pid
        self.reader = Lines(self.process.stderr)
        self.port = None

    @property
    def log(self):
        return list(self.reader.lines)

    def wait(self):
        def listening():
            found = [m for m in (re.search(r"msg=listening address=127\.0\.0\.1:(\d+)", x) for x in self.log) if m]
            if not found and self.process.poll() is not None:
                raise RuntimeError(f"exit status {self.process.returncode}: {self.log}")
            return found and int(found[0].group(1))

        self.port = wait_for(listening, pause=0.01)
        return self

    def connection(self):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60))

    def get(self, path="/metrics", method="GET", **kwargs):
        with self.connection() as connection:
            connection.request(method, path, **kwargs)
            response = connection.getresponse()
            return response, response.read()

    def scrape(self):
        """Waits for the first snapshot."""
        def page():
            response, body = self.get()
            assert response.status == 200 or (response.status == 503 and b"no snapshot" in body)
            return response.status == 200 and body

        return Page(wait_for(page, pause=0.02).decode("utf-8"))

    def wait_page(self, condition, seconds=60, pause=0.05):
        """The first page of which the condition is true."""
        def attempt():
            page = self.scrape()
            return condition(page) and page

        return wait_for(attempt, seconds, pause)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.reader.join()


@contextlib.contextmanager
def exporting(directory, *flags, **kwargs):
    exporter = Exporter(directory, *flags, **kwargs)
    try:
        exporter.wait()
        yield exporter
    finally:
        exporter.stop()


class Sim:
    def __init__(self, directory, *flags, name="expect"):
        self.directory = pathlib.Path(directory)
        self.file = self.directory / f"{name}.json"
        command = [SIM, "--shm.dir", str(directory), "--expect", str(self.file)]
        command += [x if isinstance(x, bytes) else str(x) for x in flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.out, self.err = Lines(self.process.stdout), Lines(self.process.stderr)

    @property
    def pids(self):
        """{("rank", engine, rank): pid}, the newest."""
        found = [re.fullmatch(r"(rank|frontend) engine=(\d+) (?:rank|frontend)=(\d+) pid=(\d+)", x)
                 for x in list(self.out.lines)]
        return {(m.group(1), int(m.group(2)), int(m.group(3))): int(m.group(4)) for m in found if m}

    def started(self):
        wait_for(lambda: "started" in self.out.lines or self.process.poll() is not None, pause=0.01)
        assert "started" in self.out.lines, self.err.lines
        return self

    def expected(self):
        """FILE, when it is there."""
        wait_for(lambda: self.file.exists() or self.process.poll() is not None, 400)
        assert self.file.exists(), self.err.lines
        return json.loads(self.file.read_bytes())

    def intended(self):
        return json.loads(self.file.with_name(self.file.name + ".intended").read_bytes())

    def files(self):
        return sorted(self.directory.glob("wideep.*"))

    def kill_all(self):
        """SIGKILL to the parent, whose death takes the ranks along."""
        pids = self.pids.values()
        self.process.kill()
        self.process.wait()
        wait_for(lambda: all(gone(pid) for pid in pids))

    def stop(self):
        if self.process.poll() is None:
            for pid in self.pids.values():  # one of them may be stopped; they are children of a living parent
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.process.kill()
        self.process.wait()


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def simulating(directory, *flags, name="expect"):
    sim = Sim(directory, *flags, name=name)
    try:
        yield sim
    finally:
        sim.stop()


@contextlib.contextmanager
def shared_directory():
    with tempfile.TemporaryDirectory(prefix="wideep-test-", dir="/dev/shm", ignore_cleanup_errors=True) as path:
        yield pathlib.Path(path)

"""Starting, pinning and watching the programs of a benchmark."""

import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 120


class Failed(Exception):
    """Something could not be run, or gave what it should not; the message says what."""


def need_module(name, package):
    if importlib.util.find_spec(name) is None:
        raise Failed(f"Python's {name} is missing: install Debian's {package}")


class Settings:
    """`scale`: how long one measurement takes, of the full form's time."""

    def __init__(self, build, rounds, scale):
        self.build, self.rounds, self.scale = pathlib.Path(build), rounds, scale
        cores = sorted(os.sched_getaffinity(0))
        # The engine's and the exporter's. A machine with one core has them share it.
        self.near, self.far = {cores[0]}, {cores[-1]}

    def ms(self, full):
        return max(1, round(full * self.scale))

    def program(self, name):
        return str(self.build / "tests/bench" / name)

    def built(self):
        programs = [self.program(name) for name in ("writer", "writer_cxx", "feed", "reader", "load", "bare_mhd")]
        return all(map(os.path.exists, (self.build / "wideep-exporter", self.build / "libwideep_shm.so", *programs)))

    @property
    def distribution(self):
        """Where the distribution `wideep` is, to be imported."""
        return (self.build / "bench/python").resolve()

    @property
    def has_distribution(self):
        return (self.distribution / "wideep").exists()


def clean_environment(**more):
    return {k: v for k, v in os.environ.items() if not k.startswith(("WIDEEP_", "PROMETHEUS_"))} | more


def pinned(command, cores):
    """On these cores only; on any for None."""
    return command if cores is None else ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]


def samples(command, cores=None, environment=None):
    """The objects that a program prints, one a line."""
    try:
        done = subprocess.run(pinned(list(map(str, command)), cores), env=environment or clean_environment(),
                              capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def started(command, ready, cores=None, environment=None, stream="stdout"):
    """(process, match) of a program that runs until the block ends, from the line on that `ready` matches."""
    pipes = {stream: subprocess.PIPE, ("stderr" if stream == "stdout" else "stdout"): subprocess.DEVNULL}
    try:
        process = subprocess.Popen(pinned(list(map(str, command)), cores), env=environment or clean_environment(),
                                   text=True, **pipes)
    except OSError as error:
        raise Failed(f"{command[0]}: {error}") from error
    pipe, lines = getattr(process, stream), []
    stop = threading.Timer(PATIENCE, process.kill)
    stop.start()
    try:
        match = None
        while match is None:
            line = pipe.readline()
            if not line:
                raise Failed(f"{' '.join(map(str, command))} did not start: {' '.join(lines[-3:])}")
            lines.append(line.strip())
            match = re.search(ready, line)
        stop.cancel()
        # Nobody may block on a pipe that is not read.
        threading.Thread(target=lambda: [None for _ in pipe], daemon=True).start()
        yield process, match
    finally:
        stop.cancel()
        process.kill()
        process.wait()


@contextlib.contextmanager
def shared_directory():
    with tempfile.TemporaryDirectory(prefix="wideep-bench-", dir="/dev/shm", ignore_cleanup_errors=True) as path:
        yield pathlib.Path(path)


def feeding(settings, directory, *flags, cores=None):
    """Live ranks."""
    return started([settings.program("feed"), directory, *flags], "ready", cores)


@contextlib.contextmanager
def exporting(settings, directory, *flags, cores=None):
    """(process, port) of an exporter."""
    command = [settings.build / "wideep-exporter", f"--shm.dir={directory}", "--web.listen-address=127.0.0.1:0", *flags]
    with started(command, r"msg=listening address=127\.0\.0\.1:(\d+)", cores, stream="stderr") as (process, match):
        yield process, int(match.group(1))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port, path="/metrics", **headers):
    """(status, body)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"GET {path}: {error!r}") from error


def body_of(port, gzip=False):
    """The page, plain or compressed."""
    status, body = get(port, **({"Accept-Encoding": "gzip"} if gzip else {}))
    if status != 200 or (body[:2] == b"\x1f\x8b") != gzip:
        raise Failed(f"status {status}, or not {'compressed' if gzip else 'plain'}")
    return body


def value_of(page, series):
    """The value of a sample, by the text before it, or None."""
    found = re.search(b"^" + re.escape(series.encode()) + rb" (\S+)$", page, re.M)
    return float(found.group(1)) if found else None


def page_with(port, family, count):
    """The first page with so many samples of a family."""
    end = time.monotonic() + PATIENCE
    while True:
        status, page = get(port)
        found = len(re.findall(rb"^" + re.escape(family.encode()) + rb"[{ ]", page, re.M))
        if status == 200 and found == count:
            return page
        if time.monotonic() > end:
            raise Failed(f"the page has {found} samples of {family}, not {count}")
        time.sleep(0.05)


def like(port, body):
    """A target of load() whose answers are half to twice as long as this one. Those of one page have as many lines and
    more or fewer digits: compressed, it grows by a third in its first seconds."""
    return f"{port}:{len(body) // 2}-{len(body) * 2}"


def load(settings, *targets, ms, **options):
    """One object a target; see load.c."""
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value]
    return samples([settings.program("load"), f"--ms={settings.ms(ms)}", *flags, *targets])


def cpu_ns(pid):
    """Of the process with its threads, ended ones too: its CPU clock, as clock_getcpuclockid(3) names it."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def resident_bytes(pid):
    """What is its own and what is of files; not the engine's shared memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.search(rf"^{name}:\s+(\d+) kB", status, re.M).group(1)) for name in ("RssAnon", "RssFile")) << 10


def python(*arguments):
    return [sys.executable, *arguments]

# SPDX-License-Identifier: Apache-2.0
"""The segments of this process: opened when first needed, tried again while they cannot be had, looked after by one
daemon thread. A forked child starts with none: a segment belongs to the process that opened it."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any, Callable, Optional

from ._hooks import log

RETRY_S = 2.0  # between attempts to open a segment
CHECK_S = 1.0  # between looks at whether the file is still there
FLUSH_S = 0.02  # between looks at copies under way; the exporter calls a rank late after a second


class Segment:
    """A Writer that may not be there (yet). `open_writer` makes it and raises OSError if it cannot."""

    def __init__(self, what: str, open_writer: Callable[[], Any]) -> None:
        self.what = what
        self.writer: Any = None
        self.flush: Optional[Callable[[], bool]] = None  # called by the daemon thread; True: there is more to come
        self._open_writer = open_writer
        self._lock = threading.Lock()
        self._again = 0.0
        self._said: set[Optional[int]] = set()
        self._closed = False

    def open(self) -> None:
        with self._lock:
            if self.writer is None and not self._closed:
                self._again = time.monotonic() + RETRY_S
                try:
                    self.writer = self._open_writer()
                    log.info("wideep: %s is recorded in %s", self.what, getattr(self.writer, "path", "its segment"))
                except OSError as error:
                    self.say(error)

    def record(self, call: Callable[[Any], Any]) -> None:
        """Calls it with the writer. While there is none, what would be recorded is lost."""
        writer = self.writer
        if writer is not None:
            try:
                call(writer)
            except OSError as error:
                self.say(error)

    def close(self) -> None:
        """Its counters stay on record and its gauges go."""
        with self._lock:
            self._closed = True
            if self.writer is not None:
                writer, self.writer = self.writer, None
                try:
                    writer.close()
                except OSError as error:
                    log.debug("wideep: closing: %s", error)

    def look_after(self) -> None:
        """A file that was removed is made anew, a segment that could not be opened is tried again."""
        if self.writer is None:
            if time.monotonic() >= self._again:
                self.open()
            return
        try:
            self.writer.check()
        except OSError as error:
            self.say(error)

    def say(self, error: OSError) -> None:
        """Each kind of error once: the engine's log is not ours."""
        if error.errno not in self._said:
            self._said.add(error.errno)
            place = f" ({error.filename})" if error.filename else ""
            log.warning("wideep: %s is not recorded for now: %s%s", self.what, error.strerror or error, place)


class Segments:
    """Those of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._all: list[Segment] = []
        self._wake = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def add(self, what: str, open_writer: Callable[[], Any]) -> Segment:
        segment = Segment(what, open_writer)
        self._all.append(segment)
        segment.open()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="wideep", daemon=True)
            self._thread.start()
            _at_exit(self)
        return segment

    def remove(self, segment: Segment) -> None:
        segment.close()
        self._all = [other for other in self._all if other is not segment]

    def wake(self) -> None:
        """A segment has something to flush, and there may be no later pass that does it."""
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        if os.getpid() == self.pid:
            for segment in list(self._all):
                if segment.flush:
                    segment.flush()
                segment.close()

    def _run(self) -> None:
        checked = time.monotonic()
        more = False
        while True:
            self._wake.wait(FLUSH_S if more else CHECK_S)
            if self._wake.is_set():
                time.sleep(FLUSH_S)  # the next pass may come first and do it
                self._wake.clear()
            try:
                segments = list(self._all)
                more = any([segment.flush() for segment in segments if segment.flush])
                if time.monotonic() >= checked + CHECK_S:
                    checked = time.monotonic()
                    for segment in segments:
                        segment.look_after()
            except Exception as error:  # pylint: disable=broad-except
                log.debug("wideep: %r", error)


def _at_exit(segments: Segments) -> None:
    """Processes of multiprocessing end without atexit, and others without its finalizers."""
    atexit.register(segments.close)
    try:
        from multiprocessing import util
        util.Finalize(None, segments.close, exitpriority=0)
    except ImportError:
        pass


_segments = Segments()


def segments() -> Segments:
    """Of this process."""
    return _segments


def _forget() -> None:
    """In a forked child: its parent's locks may be held by threads that are not here."""
    global _segments  # pylint: disable=global-statement
    _segments = Segments()


os.register_at_fork(after_in_child=_forget)

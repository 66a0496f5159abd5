"""Writers: what recording costs the engine, in three languages, alone and beside an exporter that is scraped."""

import contextlib
import time

from programs import (HERE, Failed, exporting, feeding, get, like, page_with, python, samples, shared_directory,
                      started, value_of)
from report import percentile

LANGUAGES = ("c", "cxx", "python")
PACE, BRISK_PACE = 50, 500
PACED_MS, BRISK_MS = 1600, 1200
# Cases that are the same work as another row's.
FLOORS = {"work_a": "copy_a", "work_b": "copy_b_doubles", "pass": "copy_pass", "pass_without_map": "copy_pass",
          "dbo": "clock", "eplb_call": "clock", "skip": "clock"}
LARGEST = ("--groups=8", "--engines=1", "--redundant=0", "--pace=1")
LARGEST_SERIES = 8 * 58 * 256


def command(settings, language, directory, how, *flags):
    if language == "python":
        binding = "extension" if settings.has_distribution else "ctypes"
        return ["env", f"PYTHONPATH={settings.distribution}", *python(HERE / "python_writer.py", settings.build / "libwideep_shm.so",
                                                          directory, how, f"--binding={binding}", *flags)]
    return [settings.program("writer" if language == "c" else "writer_cxx"), directory, how, *flags]


def reference(language, case):
    if language == "c":
        return FLOORS.get(case) and f"writer.hot.c.{FLOORS[case]}"
    if case in ("work_a", "work_b") and language == "python":
        return f"peer.multiprocess.{case}"
    return f"writer.hot.c.{case}"


def hot(settings, report, directory, condition):
    for language in LANGUAGES:
        for found in samples(command(settings, language, directory, "hot", f"--ms={settings.ms(40)}"), settings.near):
            case, name = found["case"], f"writer.hot.{language}.{found['case']}"
            value = percentile(found["ns"], 0.5)
            if condition == "alone":
                report.add(name, value, relative_to=reference(language, case))
            elif not case.startswith(("copy", "clock")):
                report.add(f"{name}.{condition}", value, relative_to=name)


def paced(settings, report, directory, condition, languages, ms):
    for language in languages:
        flags = (f"--ms={settings.ms(ms)}", f"--pace={PACE}")
        cases = () if language == "python" else ("eplb_call", "dbo", "tokens", "skip", "rearrangement", "work_a",
                                                 "work_b", "pass")
        for found in samples(command(settings, language, directory, "paced", *flags, *cases), settings.near):
            name = f"writer.paced.{language}.{found['case']}"
            alone = condition == "alone"
            report.add_percentiles(name if alone else f"{name}.{condition}", found["ns"], None if alone else name)


def brisk(settings, report, directory, condition):
    """At ten times the pace, for enough samples to tell the tails of the conditions apart."""
    flags = (f"--ms={settings.ms(BRISK_MS)}", f"--pace={BRISK_PACE}", "work_a", "pass")
    for found in samples(command(settings, "c", directory, "paced", *flags), settings.near):
        name = f"writer.brisk.c.{found['case']}"
        against = {"alone": None, "scrapes0": f"{name}.alone"}.get(condition, f"{name}.scrapes0")
        report.add_percentiles(f"{name}.{condition}", found["ns"], against)


def scrapes(port):
    """Whole pages sent so far."""
    name = "wideep_http_requests_total"
    return value_of(get(port, f"/metrics?name[]={name}")[1], name + '{handler="metrics",code="200"}')


@contextlib.contextmanager
def scraped(settings, report, port, page, pace):
    """Someone asks for the page so many times a second, on the exporter's core."""
    if pace == 0:
        yield
        return
    before, begin = scrapes(port), time.monotonic()
    command = [settings.program("load"), "--ms=1e9", f"--pace={pace}", like(port, page)]
    with started(command, "connected", settings.far, stream="stderr") as (process, _):
        yield
        if process.poll() is not None:
            raise Failed(f"the scrapes at {pace} a second ended early")
        report.add(f"writer.scrapes{pace}", (scrapes(port) - before) / (time.monotonic() - begin), "/s")


def measure(settings, report):
    if not settings.has_distribution:
        report.note("Python records by ctypes: make bench has not built the distribution wideep")
    with shared_directory() as directory:
        hot(settings, report, directory, "alone")
        paced(settings, report, directory, "alone", LANGUAGES, PACED_MS)
        brisk(settings, report, directory, "alone")
        with feeding(settings, directory, *LARGEST, cores=settings.far), \
                exporting(settings, directory, "--debug.per-expert", "--debug.duration=1h",
                          cores=settings.far) as (_, port):
            page = page_with(port, "vllm:expert_load_per_expert_tokens_DEBUG", LARGEST_SERIES)
            hot(settings, report, directory, "reader")
            for pace in (0, 5, 20):
                condition = f"scrapes{pace}"
                with scraped(settings, report, port, page, pace):
                    paced(settings, report, directory, condition, LANGUAGES if pace == 20 else ("c",), PACED_MS)
                    brisk(settings, report, directory, condition)

#!/usr/bin/python3
"""The benchmark: measures in interleaved rounds, prints the table, writes JSON lines. See README.md.

It never fails for being slow. Exit status 1: something could not be measured, or gave what it should not.
"""

import argparse
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

import instructions
import peers
import plugin
import reading
import recording
import serving
from aims import AIMS
from programs import ROOT, Failed, Settings
from report import Report

# (rounds, share of the full time of each measurement)
FORMS = {"full": (5, 1.0), "quick": (2, 0.1), "smoke": (1, 0.005)}
MEASURES = {"writer": (recording.measure,), "reader": reading.MEASURES, "server": (serving.measure,),
            "peer": (peers.measure,), "plugin": (plugin.measure,), "instructions": (instructions.measure,)}
BUILD = ROOT / "build"


def processor():
    found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return found.group(1) if found else platform.machine()


def commit():
    try:
        done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def head(settings, form):
    """What the figures are of."""
    return {"form": form, "rounds": settings.rounds, "processor": processor(), "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(), "compiler": instructions.compiler(settings),
            "commit": commit(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def measure_all(settings, report, sections):
    for report.round in range(settings.rounds):
        for section in sections:
            for measure in MEASURES[section]:
                begin = time.monotonic()
                try:
                    measure(settings, report)
                except Failed as error:
                    report.fail(f"{section}: {error}")
                print(f"round {report.round + 1} of {settings.rounds}: {measure.__module__}.{measure.__name__} "
                      f"[{time.monotonic() - begin:.1f} s]", file=sys.stderr, flush=True)


def renew(settings):
    try:
        instructions.renew(settings)
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def results(settings, options, failed):
    """Of a part, and of a run in which something failed, beside those of a whole one."""
    path = options.output or settings.build / "bench" / f"{'-'.join(['results', *(options.only or ())])}.jsonl"
    return path.with_suffix(f".failed{path.suffix}") if failed else path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=BUILD, help="directory of the programs [%(default)s]")
    parser.add_argument("--form", choices=FORMS, default="full", help="how long and how often [%(default)s]")
    parser.add_argument("--only", choices=MEASURES, action="append",
                        help="this section alone; may be repeated [all of them]")
    parser.add_argument("--output", type=pathlib.Path,
                        help="JSON lines [BUILD/bench/results.jsonl; with --only, results-SECTION.jsonl]; in "
                             "….failed.jsonl if anything could not be measured")
    parser.add_argument("--renew-baseline", action="store_true", help="count the instructions of baseline.json anew")
    options = parser.parse_args()
    rounds, scale = FORMS[options.form]
    settings = Settings(options.build, rounds, scale)
    if not settings.built():
        print("build first: make bench-quick", file=sys.stderr)
        return 1
    if options.renew_baseline:
        return renew(settings)
    report = Report(AIMS)
    begin = time.monotonic()
    measure_all(settings, report, options.only or MEASURES)
    output = results(settings, options, report.failures)
    output.parent.mkdir(parents=True, exist_ok=True)
    report.write(output, head(settings, options.form))
    print("\n".join(report.table()))
    print(f"{time.monotonic() - begin:.0f} s; {output}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

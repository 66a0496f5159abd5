#!/usr/bin/python3
"""The benchmark: measures in interleaved rounds, prints the table, writes JSON lines. See README.md.

It never fails for being slow. Exit status 1: something could not be measured, or a peer showed what was not recorded.
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
import reading
import recording
import serving
from aims import AIMS
from programs import ROOT, Failed, Settings
from report import Report

# (rounds, share of the full time of each measurement)
FORMS = {"full": (5, 1.0), "quick": (2, 0.1), "smoke": (1, 0.005)}
MEASURES = {"writer": (recording.measure,), "reader": reading.MEASURES, "server": (serving.measure,),
            "peer": (peers.measure,), "instructions": (instructions.measure,)}


def processor():
    found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return found.group(1) if found else platform.machine()


def head(settings, form):
    """What the figures are of."""
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {"form": form, "rounds": settings.rounds, "processor": processor(), "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(), "compiler": instructions.compiler(settings),
            "commit": commit.stdout.strip() or "unknown", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=ROOT / "build", help="directory of the programs")
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--only", choices=MEASURES, action="append", help="this section alone; may be repeated")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines [BUILD/bench/results.jsonl]")
    parser.add_argument("--renew-baseline", action="store_true", help="count the instructions of baseline.json anew")
    options = parser.parse_args()
    rounds, scale = FORMS[options.form]
    settings = Settings(options.build, rounds, scale)
    if options.renew_baseline:
        instructions.renew(settings)
        return 0
    report = Report(AIMS)
    begin = time.monotonic()
    measure_all(settings, report, options.only or MEASURES)
    output = options.output or settings.build / "bench/results.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    report.write(output, head(settings, options.form))
    print("\n".join(report.table()))
    print(f"{time.monotonic() - begin:.0f} s; {output}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

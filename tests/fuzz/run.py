#!/usr/bin/python3
"""Runs fuzz targets one after the other and says what came of it.

What a target found interesting stays in <build>/corpus/<target> for the next run, what it found wrong in
<build>/findings. The exit status is 0 when nothing was wrong.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# Beside tests/fuzz/corpus/<target>.
MORE_SEEDS = {"web_config": ["tests/web-config/good", "tests/web-config/bad"]}
SEEDING = {"segment"}
LENGTH_MAX = {"segment": 70000, "request": 8192, "accept": 6000, "options": 8192, "web_config": 16384}
# An input takes milliseconds; this many seconds are for a machine that has other things to do.
LIMITS = ["-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=512"]


def seed_directories(program, made):
    """What the target starts from: committed inputs, others' examples, and what it makes itself into `made`."""
    made.mkdir(parents=True, exist_ok=True)
    if program.name in SEEDING:
        subprocess.run([program], env=dict(os.environ, WIDEEP_FUZZ_SEEDS=str(made)), check=True)
    own = HERE / "corpus" / program.name
    others = [HERE.parent.parent / name for name in MORE_SEEDS.get(program.name, [])]
    return [d for d in [own, *others, made] if d.is_dir()]


def arguments(name, *more):
    return [*LIMITS, f"-max_len={LENGTH_MAX.get(name, 4096)}", "-print_final_stats=1", *more]


def read_log(text):
    """Of a run of libFuzzer: executions, edges covered, all edges, inputs kept, and what it found, or None."""
    executions = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    edges = re.findall(r"cov: (\d+)", text)
    kept = re.findall(r"corp: (\d+)/", text)
    counters = re.search(r"\((\d+) inline 8-bit counters\)", text)
    wrong = re.search(r"^(FUZZ: .*|.*runtime error: .*|.*ERROR: (?:AddressSanitizer|LeakSanitizer|libFuzzer): .*)$", text,
                      re.M)
    return (int(executions[-1]) if executions else 0, int(edges[-1]) if edges else 0,
            int(counters[1]) if counters else 0, int(kept[-1]) if kept else 0, wrong[1].strip() if wrong else None)


def fuzz(program, build, seconds):
    corpus, findings = build / "corpus" / program.name, build / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    log = build / f"{program.name}.log"
    command = [program, *arguments(program.name, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/{program.name}-"),
               corpus, *seed_directories(program, build / "seeds" / program.name)]
    start = time.monotonic()
    with open(log, "wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    took = time.monotonic() - start
    executions, edges, counters, kept, wrong = read_log(log.read_text(errors="replace"))
    print(f"{program.name:<12} {executions:>10} {executions / took:>8.0f} {edges:>7} of {counters:<6} {kept:>7}  "
          f"{(wrong or f'exit status {status}') + f', see {log}' if status else 'nothing'}", flush=True)
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="directory with the programs")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="+")
    args = parser.parse_args()
    print("target       executions    per s   edges covered  corpus  found", flush=True)
    good = [fuzz((args.build / name).resolve(), args.build.resolve(), args.seconds) for name in args.targets]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Instructions of the hot paths, counted by callgrind: the same on a noisy machine as on a quiet one.

baseline.json has those of an earlier state, and the compiler they are of; `make bench-baseline` renews it.
"""

import concurrent.futures
import json
import re
import subprocess

from programs import HERE, PATIENCE, Failed, clean_environment, shared_directory

BASELINE = HERE / "baseline.json"
# A collection without per-expert series does not look at them, and recording fewer is quicker.
FEW_EXPERTS, ONE_A_RANK = ("--experts=8", "--redundant=0"), ("--experts=72", "--redundant=0")
# name: program, arguments, the function that is counted with all it calls, calls, what a call is divided by
COUNTS = {
    "eplb_record": ("writer", ("count", "eplb_record"), "run_eplb", 100, 60),
    "dbo_record": ("writer", ("count", "dbo"), "run_dbo", 100, 1),
    "record_pass": ("writer", ("count", "pass"), "run_pass", 10, 1),
    "work_a": ("writer", ("count", "work_a"), "run_work_a", 100, 1),
    "work_b": ("writer", ("count", "work_b"), "run_work_b", 10, 1),
    "drained_record": ("reader", ("count", "drain"), "inside_drain", 3, None),
    "rendered_integer": ("reader", ("count", "wideep_eplb_rank_tokens_total", "--engines=8"), "snapshot_small_page", 10,
                         None),
    "rendered_double": ("reader", ("count", "vllm:eplb_balancedness_ratio", "--engines=8"), "snapshot_small_page", 10,
                        None),
    "collect_ranks8": ("reader", ("count", "collect", "--engines=8", *FEW_EXPERTS), "counted_collection", 5, 1),
    "collect_groups9x8": ("reader", ("count", "collect", "--groups=9", "--engines=8", *FEW_EXPERTS),
                          "counted_collection", 5, 1),
    "collect_ranks72": ("reader", ("count", "collect", "--engines=72", *ONE_A_RANK), "counted_collection", 5, 1),
}
# A collection of nine times the ranks, in nine groups and in one, by nine.
GROWTH = {"collect_groups9x8": "growth9x8", "collect_ranks72": "growth72"}


def count(settings, name):
    program, arguments, function, calls, units = COUNTS[name]
    with shared_directory() as directory:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={function}",
                   settings.program(program), str(directory), *arguments, f"--calls={calls}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=clean_environment())
        except FileNotFoundError as error:
            raise Failed("valgrind is missing: install Debian's valgrind") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"valgrind: {error}") from error
    found = re.search(r"Collected : (\d+)", done.stderr)
    # Each record or series that the program says a call came to.
    units = units or (done.returncode == 0 and json.loads(done.stdout)["units"])
    if done.returncode != 0 or not found or int(found.group(1)) == 0:
        raise Failed(f"{' '.join(command)}: nothing counted: {done.stderr.strip()[-300:]}")
    return int(found.group(1)) / calls / units


def count_all(settings):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(COUNTS, pool.map(lambda name: count(settings, name), COUNTS)))


def compiler(settings):
    """As the build noted it."""
    found = re.search(r'WIDEEP_COMPILER "(.*)"', (settings.build / "gen/version.h").read_text())
    return found.group(1) if found else "unknown"


def measure(settings, report):
    if report.round > 0:
        return
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"compiler": "", "counts": {}}
    if baseline["compiler"] != compiler(settings):
        report.note(f"the baseline's instructions are of another compiler, {baseline['compiler'] or 'none'}")
    for name, value in count_all(settings).items():
        report.add(f"instructions.{name}", value, "")
        before = baseline["counts"].get(name)
        if before:
            report.add(f"instructions.{name}.moved", 100 * (value / before - 1), "%")
        if name in GROWTH:
            report.add(f"instructions.{GROWTH[name]}", value / 9, "", "instructions.collect_ranks8")


def renew(settings):
    counts = {name: round(value, 2) for name, value in count_all(settings).items()}
    BASELINE.write_text(json.dumps({"compiler": compiler(settings), "counts": counts}, indent=2) + "\n")

#!/usr/bin/python3
"""Has spin go through every state of the models beside this file: slot.pml and takeover.pml.

Without arguments it checks the large configurations and prints how many states each has. Needs spin and gcc.
"""

import collections
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

SLOT = ("slot", {"COUNT": 2, "BATCH": 1, "RECORDS": 5, "DRAINS": 2})
SLOT_BATCH = ("slot", {"COUNT": 3, "BATCH": 2, "RECORDS": 6, "DRAINS": 2})
SLOT_LARGE = ("slot", {"COUNT": 4, "BATCH": 2, "RECORDS": 8, "DRAINS": 2})
TAKEOVER = ("takeover", {"STARTERS": 2, "DEATHS": 1, "DELETES": 1, "COUNTS": 1})
TAKEOVER_THREE = ("takeover", {"STARTERS": 3, "DEATHS": 1, "DELETES": 0, "COUNTS": 1})
TAKEOVER_LARGE = ("takeover", {"STARTERS": 2, "DEATHS": 2, "DELETES": 2, "COUNTS": 1})
TAKEOVER_LARGE_THREE = ("takeover", {"STARTERS": 3, "DEATHS": 1, "DELETES": 1, "COUNTS": 1})

Result = collections.namedtuple("Result", "errors states violated seconds")


def mutants(model):
    return sorted(set(re.findall(r"MUTANT_\w+", (HERE / f"{model}.pml").read_text())))


def check(configuration, mutant=None, cycles=False, optimize="-O0", seconds=900):
    """Has spin search all states of a configuration, of a mutant until the first error.

    `cycles`: looks for any cycle in the state space, instead of violated assertions and invalid end states. Below a
    million states the compiler is what takes the time, hence `optimize`.
    """
    model, values = configuration
    defines = [f"-D{name}={value}" for name, value in values.items()] + ([f"-D{mutant}"] if mutant else [])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wideep-model.") as directory:
        def run(*command):
            result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=seconds)
            assert result.returncode == 0, f"{shlex.join(command)}: {result.stdout}{result.stderr}"
            return result.stdout

        run("spin", "-a", *defines, str(HERE / f"{model}.pml"))
        run("gcc", "-w", optimize, "-DNP" if cycles else "-DSAFETY", "-o", "pan", "pan.c")
        text = run("./pan", "-m1000000", "-w22", *(["-l"] if cycles else []))
    # What was not searched in full proves nothing.
    assert not re.search(r"max search depth too small|out of memory|Search not completed", text) or mutant, text
    violated = re.search(r"^pan:1: (.*?)(?: \(at depth \d+\))?$", text, re.M)
    return Result(int(re.search(r"errors: (\d+)", text).group(1)), int(re.search(r"(\d+) states, stored", text).group(1)),
                  violated.group(1) if violated else "", time.monotonic() - began)


def main():
    bad = 0
    for configuration, cycles in ((SLOT, False), (SLOT_BATCH, False), (SLOT_LARGE, False), (TAKEOVER, False), (TAKEOVER, True),
                                  (TAKEOVER_THREE, False), (TAKEOVER_LARGE, False), (TAKEOVER_LARGE_THREE, False)):
        result = check(configuration, cycles=cycles, optimize="-O2")
        bad += result.errors
        print(f"{configuration[0]:9}{' '.join(f'{k}={v}' for k, v in configuration[1].items()):44}"
              f"{'cycles' if cycles else 'safety':8}{result.states:10} states {result.seconds:6.1f} s "
              f"{result.violated or 'holds'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

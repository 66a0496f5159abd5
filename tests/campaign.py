#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what the fault campaign's tests recorded (tests/process/faults.py) as a table, classes added up."""

import collections
import json
import pathlib
import sys

COLUMNS = ("tried", "survived", "lost", "let_in")


def main(path):
    rows = collections.defaultdict(collections.Counter)
    file = pathlib.Path(path)
    for line in file.read_text().splitlines() if file.exists() else ():
        record = json.loads(line)
        rows[record["fault"]].update({column: record[column] for column in COLUMNS})
    if not rows:
        sys.exit("no test recorded a fault")
    print(f"{'faults':56}" + "".join(f"{column.replace('_', ' '):>10}" for column in COLUMNS))
    for fault, counts in sorted(rows.items()):
        print(f"{fault:56}" + "".join(f"{counts[column]:>10}" for column in COLUMNS))


if __name__ == "__main__":
    main(sys.argv[1])

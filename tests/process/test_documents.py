# SPDX-License-Identifier: Apache-2.0
"""The tests that the documents name as evidence exist."""
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]


def defined():
    python = [text for path in TESTS.rglob("test_*.py") for text in re.findall(r"^def (\w+)\(", path.read_text(), re.M)]
    units = [text for path in TESTS.rglob("*.c") for text in re.findall(r"^START_TEST\((\w+)\)", path.read_text(), re.M)]
    return {*python, *units, *(path.name for path in TESTS.rglob("test_*.py"))}


def last_cells(text):
    """Of the tables whose last column is called "tests"."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        inside = line.startswith("|") and (inside or cells[-2] == "tests")
        if inside:
            yield cells[-2]


@pytest.mark.parametrize("document", [TESTS / "README.md", TESTS.parent / "README.md"], ids=["tests", "product"])
def test_every_named_test_exists(document):
    named = {name for cell in last_cells(document.read_text()) for name in re.findall(r"`([\w.]+)`", cell)}
    assert len(named) >= 10
    assert named <= defined(), named - defined()


def test_no_cell_of_ours_is_empty():
    rows = [line.split("|") for line in (TESTS / "README.md").read_text().splitlines() if re.match(r"\| [a-z`A-Z]", line)]
    rows = [[cell.strip() for cell in row[1:-1]] for row in rows if "feature" not in row[1]]
    assert len(rows) > 40
    assert all(row[2] and row[3] for row in rows)

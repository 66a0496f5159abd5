# SPDX-License-Identifier: Apache-2.0
"""The formulas of scale.py are what exporters serve, to the last series, and what deploy/prometheus/README.md says."""

import pathlib
import re

import pytest

import scale

README = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "README.md"


@pytest.mark.parametrize("shape, flags", [
    (scale.Shape(1, 1, 2, 8), ()),
    (scale.Shape(1, 3, 4, 12), ()),
    (scale.Shape(2, 2, 3, 16), ()),
    (scale.Shape(1, 2, 5, 16), ("--debug.per-expert",)),
], ids=str)
def test_series_by_formula(shape, flags):
    with scale.running(shape, *flags) as exporters:
        for exporter in exporters:
            page = scale.settled(exporter, shape, bool(flags))
            assert len(page.samples) == scale.series_of_an_exporter(shape, bool(flags))
            assert page.one("wideep_ep_size") == shape.ep_size


def test_table_is_current():
    """The columns that are calculated."""
    rows = re.findall(r"^\| (\d+)(?: \(calculated\))? \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|",
                      README.read_text(), re.M)
    assert [tuple(int(cell.replace(",", "")) for cell in row) for row in rows] == [
        (shape.ep_size, shape.exporters, scale.series_of_an_exporter(shape),
         scale.series_in_prometheus(shape) - scale.recorded_series(shape), scale.recorded_series(shape),
         round(scale.series_in_prometheus(shape) / scale.INTERVAL_S)) for shape in scale.SHAPES]


def test_formula_of_the_readme():
    (formula,) = re.findall(r"^    (123 \+ .*)$", README.read_text(), re.M)
    for text, python in (("×", "*"), ("front ends", "1"), ("EP ranks", "shape.ep_size"),
                         ("engines", "shape.engines"), ("layers", "shape.layers")):
        formula = formula.replace(text, python)
    for shape in scale.SHAPES:
        assert eval(formula, {"shape": shape}) == scale.series_of_an_exporter(shape)

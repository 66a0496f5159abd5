"""Figures of a run: rows of one value a round, their aims, the table and the JSON lines.

A row's name is a path, `writer.hot.c.work_a`. Its ratio is the median over rounds of its value by that of another row
in the same round, so that what slows a whole round down does not count.
"""

import dataclasses
import json
import math
import statistics


@dataclasses.dataclass
class Row:
    name: str
    unit: str  # ns, bytes, or what is printed behind the number
    relative_to: str | None
    values: dict[int, float] = dataclasses.field(default_factory=dict)  # by round
    samples: int = 0  # that the values are made of

    @property
    def median(self):
        return statistics.median(self.values.values())


@dataclasses.dataclass(frozen=True)
class Aim:
    """`of`: the median itself, its `ratio`, or its `excess` over the other row."""

    limit: float
    of: str = "value"
    at_least: bool = False

    def met(self, figure):
        return figure >= self.limit if self.at_least else figure <= self.limit


def percentile(samples, share):
    """Nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def shown(value, unit):
    scales = {"ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
              "bytes": ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))}
    for scale, name in scales.get(unit, ()):
        if abs(value) >= scale or scale == 1:
            return f"{value / scale:.3g} {name}" if abs(value / scale) < 1000 else f"{value / scale:.0f} {name}"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


class Report:
    def __init__(self, aims):
        self.aims, self.rows, self.notes, self.failures = aims, {}, [], []
        self.round = 0

    def add(self, name, value, unit="ns", relative_to=None, samples=1):
        row = self.rows.setdefault(name, Row(name, unit, relative_to))
        row.values[self.round] = value
        row.samples += samples

    def add_percentiles(self, name, samples, relative_to=None):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            self.add(f"{name}.{label}", percentile(samples, share),
                     relative_to=relative_to and f"{relative_to}.{label}", samples=len(samples))

    def note(self, text):
        """Worth reading, and no fault: something optional is not there."""
        if text not in self.notes:
            self.notes.append(text)

    def fail(self, text):
        """Something could not be measured, or gave what it should not."""
        if text not in self.failures:
            self.failures.append(text)

    def compared(self, row, how):
        """Median over rounds of how(value, other row's value), or None."""
        other = self.rows.get(row.relative_to)
        pairs = [(v, other.values[r]) for r, v in row.values.items() if r in other.values] if other else []
        return statistics.median(how(a, b) for a, b in pairs) if pairs else None

    def ratio(self, row):
        return self.compared(row, lambda a, b: a / b if b else float("inf"))

    def judged(self, row):
        """(the aim as text, met or not) or (None, None)."""
        aim = self.aims.get(row.name)
        if aim is None:
            return None, None
        sign = "≥" if aim.at_least else "≤"
        if aim.of == "value":
            return f"{sign} {shown(aim.limit, row.unit)}", aim.met(row.median)
        figure = self.ratio(row) if aim.of == "ratio" else self.compared(row, lambda a, b: a - b)
        text = f"{sign} {aim.limit:.3g} ×" if aim.of == "ratio" else f"{sign} {shown(aim.limit, row.unit)} more"
        return text, None if figure is None else aim.met(figure)

    def table(self):
        width = max((len(name) for name in self.rows), default=4)
        yield f"{'':{width}}  {'median':>12} {'min':>12} {'max':>12}  {'ratio':<44} aim"
        section = None
        for row in self.rows.values():
            if row.name.split(".")[0] != section:
                section = row.name.split(".")[0]
                yield ""
            ratio, (aim, met) = self.ratio(row), self.judged(row)
            against = f"{ratio:.3g} × {row.relative_to}" if ratio is not None else ""
            verdict = "" if met is None else f"  {'met' if met else 'NOT MET'}"
            values = row.values.values()
            columns = " ".join(f"{shown(v, row.unit):>12}" for v in (row.median, min(values), max(values)))
            yield f"{row.name:{width}}  {columns}  {against:<44} {aim or ''}{verdict}".rstrip()
        yield from self.verdicts()
        yield from (f"note: {text}" for text in self.notes)
        yield from (f"FAILED: {text}" for text in self.failures)

    def verdicts(self):
        judged = [(row, *self.judged(row)) for row in self.rows.values()]
        judged = [(row, aim, met) for row, aim, met in judged if met is not None]
        yield ""
        yield f"{sum(met for _, _, met in judged)} of {len(judged)} aims met"
        for row, aim, met in judged:
            ratio = self.ratio(row)
            if not met:
                yield (f"not met: {row.name}: {shown(row.median, row.unit)}"
                       + (f", {ratio:.3g} × {row.relative_to}" if ratio is not None else "") + f"; aim {aim}")

    def write(self, path, head):
        with open(path, "w", encoding="utf-8") as file:
            for line in (head, *map(self.json_of, self.rows.values())):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def json_of(self, row):
        aim, met = self.judged(row)
        values = list(row.values.values())
        return {"row": row.name, "unit": row.unit, "median": row.median, "min": min(values), "max": max(values),
                "rounds": values, "samples": row.samples, "relative_to": row.relative_to, "ratio": self.ratio(row),
                "aim": aim, "met": met}

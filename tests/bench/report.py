"""Figures of a run: rows of one value a round, their aims, the table and the JSON lines.

A row's name is a path, `writer.hot.c.work_a`. Its ratio is the median over rounds of its value by that of another row
in the same round, so that what slows a whole round down does not count. A 99th percentile takes more samples than a
round has: it, and its ratio, is of the samples of all rounds together.
"""

import dataclasses
import itertools
import json
import math
import os
import statistics


@dataclasses.dataclass
class Row:
    name: str
    unit: str  # ns, bytes, or what is printed behind the number
    relative_to: str | None
    values: dict[int, float] = dataclasses.field(default_factory=dict)  # by round
    samples: int = 0  # that the values are made of
    pool: dict[int, list] = dataclasses.field(default_factory=dict)  # of a 99th percentile: its samples, by round

    @property
    def value(self):
        return self.p99(self.pool) if self.pool else statistics.median(self.values.values())

    def p99(self, rounds):
        """Of the samples of these rounds together."""
        return percentile([x for r in rounds for x in self.pool[r]], 0.99)

    def spread(self):
        """How far a 99th percentile is from itself: the most that it differs between two halves of the rounds."""
        halves = [(half, self.pool.keys() - set(half))
                  for half in itertools.combinations(self.pool, len(self.pool) // 2) if half]
        return max((max(self.p99(a) / self.p99(b), self.p99(b) / self.p99(a)) for a, b in halves), default=1.0)


@dataclasses.dataclass(frozen=True)
class Aim:
    """`of`: the row's value itself, its `ratio`, or its `excess` over the other row."""

    limit: float
    unit: str = "ns"
    of: str = "value"
    at_least: bool = False

    def met(self, figure):
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self):
        limit = f"{self.limit:.3g} ×" if self.of == "ratio" else shown(self.limit, self.unit)
        return f"{'≥' if self.at_least else '≤'} {limit}{' more' if self.of == 'excess' else ''}"


def percentile(samples, share):
    """Nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


SCALES = {"ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
          "bytes": ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
          "records/s": ((1e6, "M/s"), (1e3, "k/s"), (1, "/s"))}


def shown(value, unit):
    for scale, name in SCALES.get(unit, ()):
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
        return row

    def add_percentiles(self, name, samples, relative_to=None):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            row = self.add(f"{name}.{label}", percentile(samples, share),
                           relative_to=relative_to and f"{relative_to}.{label}", samples=len(samples))
        row.pool[self.round] = samples

    def note(self, text):
        """Worth reading, and no fault: something optional is not there."""
        if text not in self.notes:
            self.notes.append(text)

    def fail(self, text):
        """Something could not be measured, or gave what it should not."""
        if text not in self.failures:
            self.failures.append(text)

    def compared(self, row, how):
        """how(value, other row's value) over the rounds that both have, or None."""
        other = self.rows.get(row.relative_to)
        rounds = [r for r in row.values if r in other.values] if other else []
        if not rounds:
            return None
        if row.pool:
            return how(row.p99(rounds), other.p99(rounds))
        return statistics.median(how(row.values[r], other.values[r]) for r in rounds)

    def ratio(self, row):
        return self.compared(row, lambda a, b: a / b if b else float("inf"))

    def verdict(self, name):
        """Of a row with an aim: met, not met, within noise, or not measured."""
        aim, row = self.aims[name], self.rows.get(name)
        figure = None
        if row:
            figure = (row.value if aim.of == "value" else self.ratio(row) if aim.of == "ratio"
                      else self.compared(row, lambda a, b: a - b))
        if figure is None:
            return "not measured"
        if aim.met(figure):
            return "met"
        if aim.of == "ratio" and row.pool and aim.met(figure / self.rows[row.relative_to].spread()):
            return "within noise"
        return "not met"

    def line(self, row):
        """The row's columns."""
        ratio, aim = self.ratio(row), self.aims.get(row.name)
        columns = " ".join(f"{shown(v, row.unit):>12}" for v in (row.value, min(row.values.values()),
                                                                 max(row.values.values())))
        against = f"{ratio:.3g} × {row.relative_to}" if ratio is not None else ""
        return f"{columns}  {against:<44} {f'{aim}  {self.verdict(row.name)}' if aim else ''}".rstrip()

    def table(self):
        width = max(map(len, [*self.rows, *self.aims]), default=4)
        yield f"{'':{width}}  {'value':>12} {'min':>12} {'max':>12}  {'ratio':<44} aim"
        section = None
        for row in self.rows.values():
            if row.name.split(".")[0] != section:
                section = row.name.split(".")[0]
                yield ""
            yield f"{row.name:{width}}  {self.line(row)}"
        yield ""
        yield from self.verdicts(width)
        yield from (f"note: {text}" for text in self.notes)
        yield from (f"FAILED: {text}" for text in self.failures)

    def verdicts(self, width):
        """How many are met of all that is aimed for, measured or not, and those that are not."""
        verdicts = {name: self.verdict(name) for name in self.aims}
        counts = [f"{list(verdicts.values()).count(verdict)} {verdict}" for verdict in ("within noise", "not measured")]
        yield f"{list(verdicts.values()).count('met')} of {len(verdicts)} aims met, {', '.join(counts)}"
        for name, verdict in verdicts.items():
            if verdict != "met":
                yield f"{name:{width}}  " + (self.line(self.rows[name]) if name in self.rows
                                             else f"{'':{3 * 12 + 2}}  {'':44} {self.aims[name]}  {verdict}")

    def write(self, path, head):
        """Whole or not at all."""
        beside = path.with_name(path.name + ".new")
        head |= {"notes": self.notes, "failures": self.failures,
                 "not_measured": [name for name in self.aims if self.verdict(name) == "not measured"]}
        with open(beside, "w", encoding="utf-8") as file:
            for line in (head, *map(self.json_of, self.rows.values())):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        os.replace(beside, path)

    def json_of(self, row):
        values, aim = list(row.values.values()), self.aims.get(row.name)
        return {"row": row.name, "unit": row.unit, "value": row.value, "min": min(values), "max": max(values),
                "rounds": values, "samples": row.samples,
                "relative_to": row.relative_to if row.relative_to in self.rows else None, "ratio": self.ratio(row),
                "aim": aim and str(aim), "verdict": aim and self.verdict(row.name)}

# SPDX-License-Identifier: Apache-2.0
"""Reads segments by their documented layout, with nothing but struct: neither the header's code nor the exporter's."""
import pathlib
import struct

OUTCOMES = ["engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other"]
PHASES = ["prefill", "decode"]
REDUCED, PARTIAL = 1, 2


class Segment:
    """A segment by its layout: identity, totals, token planes, EPLB records."""

    def __init__(self, path):
        self.data = data = pathlib.Path(path).read_bytes()
        assert data[:8] == b"WIDEEPSM"
        (self.sections_count, _, self.model_count, _, self.role, self.engine, self.rank, self.ep_size, self.tp_rank,
         self.tp_size, self.dp_rank, self.dp_size, self.flags) = struct.unpack_from("<13I", data, 44 - 8)
        self.group, self.instance_id, self.lineage = struct.unpack_from("<3Q", data, 88)
        self.models = []
        for m in range(self.model_count):
            at = 768 + 288 * m
            length, layers, logical, physical, _ = struct.unpack_from("<5I", data, at + 256)
            self.models.append((data[at : at + length], layers, logical, physical))
        self.sections = {}
        for i in range(self.sections_count):
            kind, stride, offset, length, count, batch = struct.unpack_from("<IIQQII", data, 256 + 32 * i)
            self.sections[kind] = (offset, stride, count)
            if kind == 3:
                self.batch = batch
        self.live = self.sections[1][0]
        self.totals = self.sections[2][0]

    def word(self, at):
        return struct.unpack_from("<Q", self.data, at)[0]

    def words(self, at, count):
        return struct.unpack_from(f"<{count}Q", self.data, at)

    @property
    def closed(self):
        return self.word(self.live + 8) != 0

    @property
    def tokens(self):
        return self.words(self.totals, 2)

    def dbo(self):
        flat = self.words(self.totals + 16, 12)
        return {(PHASES[i // 6], OUTCOMES[i % 6]): v for i, v in enumerate(flat)}

    def ubatches(self):
        sums = self.words(self.totals + 112, 4)
        return [(sums[i], self.words(self.totals + 144 + 120 * i, 15)) for i in range(4)]

    def model_totals(self, m):
        at = self.totals + 640 + 256 * m
        return self.word(at), self.word(at + 8), self.words(at + 16, 13), self.words(at + 16 + 104, 13)

    def plane(self, kind, m):
        """[layer][rank or expert] of a token plane."""
        width = lambda model: self.ep_size if kind == 5 else model[2]
        at = self.sections[kind][0] + 8 * sum(x[1] * width(x) for x in self.models[:m])
        wide = width(self.models[m])
        return [self.words(at + 8 * wide * layer, wide) for layer in range(self.models[m][1])]

    def live_model(self, m):
        return self.words(self.live + 64 + 64 * m, 8)

    def records(self):
        """All EPLB records that the ring still holds, oldest first."""
        if 3 not in self.sections:
            return
        offset, stride, count = self.sections[3]
        head = self.word(offset)
        # The oldest pass may be half overwritten, for good where the writer was killed.
        for n in range(max(0, head + self.batch - count), head):
            at = offset + 128 + n % count * stride
            seq, number, when, tags = self.words(at, 4)
            assert seq == 2 * n + 2
            avg, top, balance = struct.unpack_from("<3d", self.data, at + 32)
            yield {
                "pass": number, "model": tags & 255, "flags": tags >> 8 & 255, "layer": tags >> 16 & 0xFFFF,
                "step": tags >> 32, "time": when, "avg": avg, "max": top, "duration": self.word(at + 56),
                # Those of a REDUCED record mean nothing.
                "tokens": struct.unpack_from(f"<{self.ep_size}I", self.data, at + 64)
                if tags >> 8 & PARTIAL else (0,) * self.ep_size,
            }


def segments(directory):
    return [Segment(p) for p in sorted(directory.iterdir()) if p.name.startswith("wideep.")]


def ranks_of(directory):
    return sorted((s for s in segments(directory) if s.role == 1), key=lambda s: (s.engine, s.rank))

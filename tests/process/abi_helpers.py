"""What the tests of the ABI share: a writer that is told what to do, and a reader of segments.

The reader was written from the tables of shm-abi/README.md alone. It must not be changed to agree with wideep_shm.h
where the page says otherwise.
"""

import ctypes
import fcntl
import mmap
import os
import pathlib
import signal
import struct
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WIDEEP_BUILD", ROOT / "build"))

ROLES = {1: "rank", 2: "frontend"}
PHASES = ("prefill", "decode")
OUTCOMES = ("engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other")
DURATION_BOUNDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120]
UBATCH_BOUNDS = [2**i for i in range(14)]


def program(name):
    return str(BUILD / name)


CHAR, U32, U64 = ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64


class ModelConfig(ctypes.Structure):
    _fields_ = [("name", CHAR), ("layers", U32), ("logical_experts", U32), ("physical_experts", U32)]


class Config(ctypes.Structure):
    _fields_ = [("directory", CHAR), ("instance", CHAR)] + [
        (name, U32) for name in ("role", "engine", "rank", "ep_size", "tp_rank", "tp_size", "dp_rank", "dp_size", "flags",
                                 "model_count")] + [("group", U64), ("rearrangement_interval", U64),
                                                    ("models", ModelConfig * 4)]


class Pass(ctypes.Structure):
    _fields_ = [("number", U64), ("model", U32), ("step", U32), ("rearrangement_duration_ns", U64)]


def library():
    """The header's functions, for a writer within the test's own process."""
    return ctypes.CDLL(program("libwideep_shm.so"), use_errno=True)


def alive(path):
    """Whether some other process holds a write lock on byte 0."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
    finally:
        os.close(fd)


class Refused(Exception):
    """The file is no segment; the reason is the first argument."""


class Segment:
    """A segment as shm-abi/README.md describes it."""

    IDENTITY = (
        ("magic", "8s"), ("abi_major", "I"), ("abi_minor", "I"), ("endian", "I"), ("word_bits", "I"),
        ("total_size", "Q"), ("identity_size", "I"), ("section_count", "I"), ("section_size", "I"),
        ("model_count", "I"), ("model_size", "I"), ("role", "I"), ("engine", "I"), ("rank", "I"), ("ep_size", "I"),
        ("tp_rank", "I"), ("tp_size", "I"), ("dp_rank", "I"), ("dp_size", "I"), ("flags", "I"), ("group", "Q"),
        ("instance_id", "Q"), ("lineage", "Q"), ("boot_id", "16s"), ("start_realtime_ns", "Q"),
        ("start_boottime_ns", "Q"), ("pid_namespace", "Q"), ("process_start_ticks", "Q"), ("pid", "I"),
        ("instance_length", "I"), ("instance", "64s"), ("reserved", "24s"),
    )

    def __init__(self, path):
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise Refused("empty")
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if len(self.map) < 4096:
            raise Refused("truncated")
        self.words = memoryview(self.map)[: len(self.map) // 8 * 8].cast("Q")
        fields = struct.unpack_from("=" + "".join(kind for _, kind in self.IDENTITY), self.map, 0)
        self.identity = dict(zip((name for name, _ in self.IDENTITY), fields))
        self._check()
        self.instance = self.identity["instance"][: self.identity["instance_length"]].decode("ascii")
        self.models = []
        for i in range(self.identity["model_count"]):
            at = 768 + 288 * i
            length, layers, logical, physical, ranks = struct.unpack_from("=5I", self.map, at + 256)
            self.models.append({"name": self.map[at : at + length], "layers": layers, "logical": logical,
                                "physical": physical, "ep_ranks": ranks})
        self.sections = {}
        for i in range(self.identity["section_count"]):
            kind, stride, offset, length, count, batch = struct.unpack_from("=IIQQII", self.map, 256 + 32 * i)
            assert offset % 64 == 0 and offset >= 4096 and offset + length <= self.identity["total_size"]
            assert kind not in self.sections
            self.sections[kind] = {"stride": stride, "offset": offset, "length": length, "count": count, "batch": batch}

    def _check(self):
        identity = self.identity
        if identity["magic"] != b"WIDEEPSM":
            raise Refused("bad_magic")
        if identity["endian"] != 0x01020304:
            raise Refused("bad_endian")
        if identity["word_bits"] != 64:
            raise Refused("bad_word_size")
        if identity["abi_major"] != 1:
            raise Refused("bad_version")
        if (identity["identity_size"], identity["section_size"], identity["model_size"]) != (1920, 32, 288):
            raise Refused("bad_size")
        if identity["total_size"] > len(self.map):
            raise Refused("truncated")

    def _u64(self, at, count=1):
        assert at % 8 == 0
        return list(self.words[at // 8 : at // 8 + count])

    def live(self):
        at = self.sections[1]["offset"]
        names = ("activity", "closed_ns", "dbo_active", "dbo_passes", "dbo_time_ns", "rearrangement_interval")
        live = dict(zip(names, self._u64(at, 6)))
        names = ("passes", "pass_time_ns", "rebalancing_since_ns", "rebalancing_mode", "since_rearrangement", "recording",
                 "recorded_time_ns")
        live["models"] = [dict(zip(names, self._u64(at + 64 + 64 * m, 7))) for m in range(len(self.models))]
        return live

    def totals(self):
        at = self.sections[2]["offset"]
        totals = {"prompt_tokens": self._u64(at)[0], "generation_tokens": self._u64(at + 8)[0]}
        totals["dbo_passes"] = {phase: dict(zip(OUTCOMES, self._u64(at + 16 + 48 * i, 6))) for i, phase in enumerate(PHASES)}
        totals["ubatch_sum"] = self._u64(at + 112, 4)
        totals["ubatch_bucket"] = [self._u64(at + 144 + 120 * i, 15) for i in range(4)]
        totals["models"] = []
        for m in range(len(self.models)):
            model = at + 640 + 256 * m
            totals["models"].append({"recorded_passes": self._u64(model)[0], "rearrangement_sum_ns": self._u64(model + 8)[0],
                                     "rearrangement_bucket": {"sync": self._u64(model + 16, 13),
                                                              "async": self._u64(model + 16 + 104, 13)}})
        return totals

    def rank_tokens(self, m):
        """[layer][ep rank]"""
        ranks = self.identity["ep_size"]
        at = self.sections[5]["offset"] + 8 * ranks * sum(model["layers"] for model in self.models[:m])
        return [self._u64(at + 8 * ranks * layer, ranks) for layer in range(self.models[m]["layers"])]

    def expert_tokens(self, m):
        """[layer][logical expert]"""
        experts = self.models[m]["logical"]
        at = self.sections[6]["offset"] + 8 * sum(model["layers"] * model["logical"] for model in self.models[:m])
        return [self._u64(at + 8 * experts * layer, experts) for layer in range(self.models[m]["layers"])]

    def _ring(self, kind):
        """Yields (n, bytes of the slot) of what can be read, (n, None) of what is lost."""
        ring = self.sections[kind]
        head = self._u64(ring["offset"])[0]
        for n in range(max(0, head + ring["batch"] - ring["count"]), head):
            at = ring["offset"] + 128 + n % ring["count"] * ring["stride"]
            seq = self._u64(at)[0]
            slot = struct.pack(f"={ring['stride'] // 8}Q", *self._u64(at, ring["stride"] // 8))
            yield n, slot if seq == 2 * n + 2 and self._u64(at)[0] == seq else None

    def head(self, kind):
        return self._u64(self.sections[kind]["offset"])[0]

    def eplb(self):
        records = []
        for n, slot in self._ring(3):
            if slot is None:
                continue
            number, time_ns, tags = struct.unpack_from("=QQQ", slot, 8)
            avg, maximum, balancedness, duration_ns = struct.unpack_from("=dddQ", slot, 32)
            records.append({
                "n": n, "pass": number, "time_ns": time_ns, "model": tags & 255, "flags": tags >> 8 & 255,
                "layer": tags >> 16 & 65535, "step": tags >> 32, "avg": avg, "max": maximum,
                "balancedness": balancedness, "duration_ns": duration_ns,
                # Those of a REDUCED record mean nothing.
                "rank_tokens": [0] * self.identity["ep_size"] if tags >> 8 & 1
                else list(struct.unpack_from(f"={self.identity['ep_size']}I", slot, 64)),
            })
        return records

    def dbo(self):
        records = []
        for n, slot in self._ring(4):
            if slot is None:
                continue
            number, time_ns, tags, first, second = struct.unpack_from("=QQQQQ", slot, 8)
            reason = tags >> 32 & 255
            records.append({
                "n": n, "pass": number, "time_ns": time_ns, "phase": PHASES[tags & 255],
                "prefill_active": tags >> 8 & 255, "decode_active": tags >> 16 & 255, "outcome": OUTCOMES[tags >> 24 & 255],
                "fallout_reason": OUTCOMES[reason + 2] if reason else None, "ubatches": tags >> 40 & 255,
                "tokens": [first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32],
            })
        return records


class Writer:
    """The helper program `writer` (or `writer_cxx`, or the given command), told line by line what to do."""

    def __init__(self, name="writer", command=None, **popen):
        self.process = subprocess.Popen(command or [program("tests/abi/" + name)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1, **popen)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def say(self, *words):
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, f"the writer is gone: {self.process.wait()}"
        return [int(word) for word in line.split()]

    def ask(self, *words):
        """The first number of the answer, which is the return value."""
        self.say(*words)
        return self.hear()[0]

    def create(self, directory, models=((b"m", 1, 2, 0),), **fields):
        """Returns (error, origin, lineage, instance_id), or (error,)."""
        words = [f"dir={directory}"] + [f"{key}={value}" for key, value in fields.items()]
        words += [f"model={name.hex()}:{layers}:{logical}:{physical}" for name, layers, logical, physical in models]
        self.say("create", *words)
        return tuple(self.hear())

    def kill(self):
        if self.process.poll() is None:
            try:
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


FRESH, TAKEOVER, REPLACED = 1, 2, 3


def load(model, number, layer, p, rank):
    return (31 * number + 7 * layer + 13 * p + 5 * rank + 3 * model) % 97


def expert(number, layer, p, logical):
    return (3 * p + layer + number) % (logical + 1) - 1


def sum_of_loads(model, layer, p, rank, passes):
    """Of passes 0 … passes - 1; 31 and 97 have no common divisor, so 97 passes have every remainder once."""
    whole, rest = divmod(passes, 97)
    return whole * (96 * 97 // 2) + sum(load(model, n, layer, p, rank) for n in range(rest))

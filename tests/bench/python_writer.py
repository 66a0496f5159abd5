#!/usr/bin/python3
"""What recording costs from Python, by the distribution `wideep` or by ctypes and libwideep_shm.so.

    python_writer.py LIBRARY DIRECTORY hot|paced [--binding=BINDING] [--ms=N] [--pace=N] [CASE]...

Samples are as writer.c has them: means of batches when hot, single calls when paced. The collector of garbage is left
on, as an engine would.
"""

import argparse
import array
import ctypes as c
import json
import random
import struct
import time

MODEL = b"deepseek-ai/DeepSeek-R1-0528"
WORK_LAYERS, WORK_EXPERTS, PASS_LAYERS, PASS_SLOTS, EP_SIZE = 60, 256, 58, 288, 32
STEP_UNKNOWN = 0xFFFFFFFF
DECODE, ENGAGED, EMPTY_SECOND_UBATCH = 1, 0, 3
BATCH_NS = 50_000


class Model(c.Structure):
    _fields_ = [("name", c.c_char_p)] + [(n, c.c_uint32) for n in ("layers", "logical_experts", "physical_experts")]


class Config(c.Structure):
    _fields_ = ([("directory", c.c_char_p), ("instance", c.c_char_p)]
                + [(n, c.c_uint32) for n in ("role", "engine", "rank", "ep_size", "tp_rank", "tp_size", "dp_rank",
                                             "dp_size", "flags", "model_count")]
                + [("group", c.c_uint64), ("rearrangement_interval", c.c_uint64), ("models", Model * 4)])


class Pass(c.Structure):
    _fields_ = [("number", c.c_uint64), ("model", c.c_uint32), ("step", c.c_uint32), ("duration_ns", c.c_uint64)]


class Dbo(c.Structure):
    _fields_ = [("number", c.c_uint64), ("phase", c.c_uint32), ("outcome", c.c_uint32), ("ubatches", c.c_uint32),
                ("tokens", c.c_uint32 * 4), ("reserved", c.c_uint32)]


class Ctypes:
    """One segment, written through ctypes: arguments are made once and changed in place."""

    def __init__(self, library, directory, engine, layers, slots):
        shm = c.CDLL(library)
        self.writer = c.c_void_p()
        config = Config(directory=directory.encode(), engine=engine, ep_size=EP_SIZE, model_count=1)
        config.models[0] = Model(MODEL, layers, WORK_EXPERTS, slots)
        error = shm.wideep_create(c.byref(self.writer), c.byref(config))
        if error:
            raise SystemExit(f"wideep_create: {error}")
        self.this_pass, self.this_dbo = Pass(step=STEP_UNKNOWN), Dbo(phase=DECODE, ubatches=2)
        self.pass_pointer, self.dbo_pointer = c.byref(self.this_pass), c.byref(self.this_dbo)
        self.record_pass, self.record_eplb = shm.wideep_record_pass, shm.wideep_record_eplb
        self.record_dbo, self.record_tokens = shm.wideep_record_dbo, shm.wideep_record_tokens

    @staticmethod
    def matrix(memory, layers, slots):
        return c.c_void_p(memory.buffer_info()[0])

    def layers_of(self, packed):
        return c.c_void_p(c.addressof(c.c_char.from_buffer(packed)))

    def loads(self, number, loads, logical):
        self.this_pass.number = number
        return self.record_pass(self.writer, self.pass_pointer, loads, logical)

    def layers(self, number, layers, count):
        self.this_pass.number = number
        return self.record_eplb(self.writer, self.pass_pointer, layers, count)

    def dbo(self, number, outcome, first, second):
        stats = self.this_dbo
        stats.number, stats.outcome, stats.tokens[0], stats.tokens[1] = number, outcome, first, second
        return self.record_dbo(self.writer, self.dbo_pointer)

    def tokens(self, prompt, generation):
        return self.record_tokens(self.writer, c.c_uint64(prompt), c.c_uint64(generation))


class Extension:
    """The compiled binding, as an engine would use it."""

    def __init__(self, _, directory, engine, layers, slots):
        import wideep
        self.writer = wideep.Writer(engine=engine, directory=directory, ep_size=EP_SIZE,
                                    models=[wideep.Model(MODEL.decode(), layers, WORK_EXPERTS, slots)])
        self.tokens = self.writer.record_tokens
        self.outcomes = {ENGAGED: "engaged", EMPTY_SECOND_UBATCH: "empty_second_ubatch"}

    @staticmethod
    def matrix(memory, layers, slots):
        return memoryview(memory).cast("B").cast("i", (layers, slots))

    def layers_of(self, packed):
        """Averages and maxima, as the columns of what was packed."""
        values = array.array("d", bytes(packed))
        return values[1::3], values[2::3]

    def loads(self, number, loads, logical):
        self.writer.record_pass(loads, logical, pass_=number)

    def layers(self, number, layers, count):
        self.writer.record_eplb(*layers, pass_=number)

    def dbo(self, number, outcome, first, second):
        self.writer.record_dbo(phase="decode", outcome=self.outcomes[outcome], ubatch_tokens=(first, second),
                               pass_=number)


BINDINGS = {"ctypes": Ctypes, "extension": Extension}


class Cases:
    def __init__(self, binding, library, directory):
        chance = random.Random(1)
        self.number = 0
        self.work = BINDINGS[binding](library, directory, 100, WORK_LAYERS, WORK_EXPERTS)
        self.whole = BINDINGS[binding](library, directory, 101, PASS_LAYERS, PASS_SLOTS)
        # What the engine has: floats of each layer, or matrices of loads that are in memory already.
        self.layers = [x for i in range(WORK_LAYERS) for x in (i, 0, 100.0 + i, 130.0 + 2 * i)]
        self.packer = struct.Struct("=" + "IIdd" * WORK_LAYERS)
        self.packed = bytearray(self.packer.size)
        self.packer.pack_into(self.packed, 0, *self.layers)
        self.ready = self.work.layers_of(self.packed)
        shapes = ((WORK_LAYERS, WORK_EXPERTS), (PASS_LAYERS, PASS_SLOTS))
        # As numpy or torch would hold them.
        self.memory = [(array.array("i", (chance.randrange(32) for _ in range(layers * slots))),
                        array.array("i", ((i * 7 + 3) % slots % WORK_EXPERTS for _ in range(layers)
                                          for i in range(slots)))) for layers, slots in shapes]
        self.matrices = [[self.work.matrix(memory, *shape) for memory in both]
                         for shape, both in zip(shapes, self.memory)]

    def dbo(self):
        self.number += 1
        number = self.number
        return self.work.dbo(number, ENGAGED if number % 16 else EMPTY_SECOND_UBATCH, 700, 600)

    def tokens(self):
        return self.work.tokens(3, 5)

    def eplb_ready(self):
        """The layers lie in memory as the call wants them."""
        self.number += 1
        return self.work.layers(self.number, self.ready, WORK_LAYERS)

    def work_a(self):
        """From floats of Python's own, as prometheus_client takes them."""
        self.packer.pack_into(self.packed, 0, *self.layers)
        self.ready = self.work.layers_of(self.packed)
        return self.eplb_ready() or self.dbo()

    def work_a_ready(self):
        return self.eplb_ready() or self.dbo()

    def work_b(self):
        self.number += 1
        return self.work.loads(self.number, *self.matrices[0])

    # `pass` is a keyword.
    def pass_(self):
        self.number += 1
        return self.whole.loads(self.number, *self.matrices[1])

    def named(self, name):
        return getattr(self, name + "_" if name == "pass" else name)


CASES = ("dbo", "tokens", "eplb_ready", "work_a", "work_a_ready", "work_b", "pass")


def batch_ns(call, calls):
    begin = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return time.perf_counter_ns() - begin


def hot(calls, ms):
    for name, call in calls.items():
        count, samples = 1, []
        batch_ns(call, 50)
        while batch_ns(call, count) < BATCH_NS:
            count *= 2
        end = time.perf_counter() + ms / 1e3
        while not samples or time.perf_counter() < end:
            samples.append(batch_ns(call, count) / count)
        yield name, samples


def paced(calls, ms, pace):
    samples = {name: [] for name in calls}
    step = 1 / pace / len(calls)
    begin = time.perf_counter() + step
    for i in range(max(len(calls), int(ms / 1e3 / step))):
        name = list(calls)[i % len(calls)]
        time.sleep(max(0, begin + i * step - time.perf_counter()))
        samples[name].append(batch_ns(calls[name], 1))
    yield from samples.items()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("directory")
    parser.add_argument("how", choices=("hot", "paced"))
    parser.add_argument("--binding", choices=BINDINGS, default="ctypes")
    parser.add_argument("--ms", type=float, default=50)
    parser.add_argument("--pace", type=float, default=50)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    cases = Cases(options.binding, options.library, options.directory)
    calls = {name: cases.named(name) for name in options.cases or CASES}
    for name, call in calls.items():
        if call() not in (0, None):
            raise SystemExit(f"{name} failed")
    measured = hot(calls, options.ms) if options.how == "hot" else paced(calls, options.ms, options.pace)
    for name, samples in measured:
        print(json.dumps({"case": name, "ns": samples}), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""A server on the fake vLLM: a front end, which is this process, and one process per rank, which take part in passes by
a schedule that all of them know. Each keeps books of what it did, written from the schedule and the tensors alone.

    engine.py OUT '{"ranks": 4, ...}'      prints "ready PID...", waits for "go" on stdin, prints "done", and lives on,
                                           idle, until stdin ends. OUT/rank<N>.npz, OUT/rank<N>.json, OUT/frontend.json
"""

import collections
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import struct
import subprocess
import sys
import threading
import time

import numpy

DEFAULTS = {"ranks": 4, "passes": 120, "interval": 40, "window": 20, "async": False, "newer": False, "eplb": True,
            "dbo": True, "ubatches": 2, "start": "spawn", "device": "cpu", "pace": 0.005, "delay": 0.0, "layers": 4,
            "logical": 10, "physical": 16, "draft": True, "seed": 1, "model": "fake/model", "served": "served-name",
            "frontend": True, "port": 29500, "tokens": 40, "stuck": []}

# Tokens of each rank and whether it decodes; None: idle.
KINDS = (
    lambda r: [(64, True)] * r,
    lambda r: [(8, True)] * r,
    lambda r: [(600 + 30 * i, False) for i in range(r)],
    lambda r: [(2000 if i == 1 else 600, False) for i in range(r)],
    lambda r: [(20 if i == r - 1 else 64 + i, True) for i in range(r)],
    lambda r: [None if i == 2 % r else (64 + i, True) for i in range(r)],
    lambda r: [(600, False)] + [(64, True)] * (r - 1),
    lambda r: [None if i != 0 else (700, False) for i in range(r)],
    lambda r: [(100 + i, True) for i in range(r)],
)
QUERY = 2  # tokens of one request: one speculative token


def schedule(options, number):
    random = numpy.random.default_rng((options["seed"], number))
    return KINDS[random.integers(len(KINDS))](options["ranks"])


def loads_of(options, rank, number, model, shape):
    random = numpy.random.default_rng((options["seed"], rank, number, model))
    return random.zipf(1.6, shape).clip(0, 500).astype(numpy.int32)


def threshold(decode):
    return 32 if decode else 512


def dbo_expected(options, batches, rank):
    """(phase, outcome) of a rank's pass, from what all ranks had to do."""
    mine = batches[rank]
    batches = [batch or (1, True) for batch in batches]
    tokens = [n for n, _ in batches]
    if options["newer"]:
        decode = all(uniform for _, uniform in batches) if mine[1] else False
        bound = threshold(decode)
        if min(tokens) >= bound:
            outcome = "engaged"
        elif min(tokens) <= QUERY:
            outcome = "idle_rank"
        else:
            outcome = "coordination_failure" if mine[0] >= bound else "below_threshold"
        return "decode" if decode else "prefill", outcome
    small = [n for n, uniform in batches if n < threshold(uniform)]
    if len(small) == len(batches):
        outcome = "below_threshold"
    elif small:
        outcome = "coordination_failure" if any(n > QUERY for n in small) else "idle_rank"
    else:
        n = options["ubatches"]
        outcome = "empty_second_ubatch" if max(tokens) // n * (n - 1) >= min(tokens) else "engaged"
    return "decode" if mine[1] else "prefill", outcome


class Books:
    def __init__(self, options, rank):
        self.options, self.rank = options, rank
        self.current, self.residue, self.serving = {}, True, False
        self.recorded, self.dbo, self.passes = [], [], 0

    def models(self, vllm_config):
        from vllm.config import ModelConfig
        options = self.options
        target = (vllm_config.model_config, (options["layers"], options["logical"], options["physical"]))
        draft = (ModelConfig(options["model"] + "-draft", options["served"]), (1, options["logical"], options["physical"]))
        return [draft, target] if options["draft"] else [target]

    def warm(self):
        self.residue, self.serving = True, True

    def passed(self, state, is_dummy):
        """Just before EplbState.step()."""
        import torch
        self.passes += 1
        if not state.recording:
            return
        if self.residue or not self.serving:
            self.residue = False
            return
        entry = {}
        for number, (key, model) in enumerate(state.model_states.items()):
            table = model.physical_to_logical_map
            host = torch.empty(tuple(table.shape), dtype=table.dtype)
            host.copy_(table, non_blocking=True)
            shape = tuple(model.expert_load_pass.shape)
            loads = numpy.zeros(shape, numpy.int32) if is_dummy else self.current[number]
            entry["draft" if key.endswith("-draft") else "target"] = (loads, host)
        self.recorded.append(entry)

    def save(self, out, rearrangements):
        arrays = {}
        for name in self.recorded[0] if self.recorded else ():
            arrays[name + "_loads"] = numpy.stack([entry[name][0] for entry in self.recorded])
            arrays[name + "_maps"] = numpy.stack([entry[name][1].numpy() for entry in self.recorded])
        numpy.savez(out / f"rank{self.rank}.npz", **arrays)
        summary = {"passes": self.passes, "recorded": len(self.recorded), "dbo": self.dbo, "rearrangements": rearrangements}
        (out / f"rank{self.rank}.json").write_text(json.dumps(summary))


def configuration(options, rank):
    from vllm.config import EPLBConfig, ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig
    eplb = EPLBConfig(options["window"], options["interval"], options["async"])
    parallel = ParallelConfig(data_parallel_size=options["ranks"], data_parallel_rank=rank, enable_eplb=options["eplb"],
                              eplb_config=eplb, enable_dbo=options["dbo"], num_ubatches=options["ubatches"],
                              data_parallel_master_port=options["port"])
    return VllmConfig(ModelConfig(options["model"], options["served"]), parallel, SpeculativeConfig(1))


def set_up_logging():
    """As vLLM sets up its own logger and nobody else's."""
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(message)s", force=True)
    logging.getLogger("vllm").setLevel(logging.INFO)


def run_rank(options, out, address, rank):
    set_up_logging()
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    import torch
    from vllm import found
    from vllm.v1.worker.gpu_worker import Worker

    hub, control = (multiprocessing.connection.Client(address) for _ in range(2))
    hub.send(("hub", rank))
    control.send(("control", rank))
    books = Books(options, rank)
    worker = Worker(configuration(options, rank), hub, options["ranks"], options["device"])
    worker.load_model(options["newer"], books)
    worker.determine_available_memory()
    found(worker, "compile_or_warm_up_model")()
    books.warm()
    torch.delay = options["delay"]
    if options["device"] != "cpu":
        torch.sync_is_error = True  # as VLLM_GPU_SYNC_CHECK=error
    control.send(os.getpid())
    while (order := control.recv()) != "stop":
        runner, ahead = worker.model_runner, collections.deque()
        for number in range(options["passes"]):
            if rank == 1 and number in options["stuck"]:  # the first of two: the device stops; the second: it goes on
                (torch._stream.going.clear if number == options["stuck"][0] else torch._stream.going.set)()
            batches = schedule(options, number)
            if batches[rank] is None:
                worker.execute_dummy_batch()
            else:
                states = runner.eplb_state.model_states.values() if runner.eplb_state else ()
                books.current = {i: loads_of(options, rank, number, i, tuple(state.expert_load_pass.shape))
                                 for i, state in enumerate(states)}
                slices = runner.execute_model(*batches[rank], books.current)
                phase, outcome = dbo_expected(options, batches, rank)
                assert (outcome == "engaged") == (len(slices) > 1), (batches, slices)
                books.dbo.append([phase, outcome, slices])
            if options["device"] != "cpu" and not options["stuck"]:  # no engine runs many passes ahead of its device
                ahead.append(torch.cuda.Event())
                ahead[-1].record()
                if len(ahead) > 3:
                    ahead.popleft().done.wait()
            time.sleep(options["pace"])
        if options["device"] != "cpu":
            torch.sync_is_error = False
            torch._stream.wait()
        books.save(out, runner.eplb_state.rearrangements if runner.eplb_state else 0)
        control.send(order)


def add_up(connections):
    """The collectives of all ranks, who call them alike."""
    try:
        while True:
            parts = [connection.recv_bytes() for connection in connections]
            size = struct.unpack_from("i", parts[0])[0]
            total = sum(numpy.frombuffer(part, numpy.int64, size, 4) for part in parts)
            for connection in connections:
                connection.send_bytes(total.tobytes())
    except (EOFError, OSError):
        pass


def serve_tokens(options, out, loggers):
    """What the front end reports of each engine: sums, and what it told."""
    from vllm.v1.metrics.stats import IterationStats, PromptTokenStats
    random = numpy.random.default_rng(options["seed"])
    totals = {}
    for _ in range(options["tokens"]):
        for engine, engine_loggers in enumerate(loggers):
            prompt, cached, generation = (int(n) for n in random.integers(0, 1000, 3))
            stats = IterationStats(prompt + cached, generation, PromptTokenStats(prompt)) if prompt % 5 else None
            for logger in engine_loggers:
                record(logger, stats, engine)
            sums = totals.setdefault(str(engine), [0, 0])
            if stats:
                sums[0] += prompt
                sums[1] += generation
    (out / "frontend.json").write_text(json.dumps(totals))


def record(logger, stats, engine):
    from vllm import CHANGE
    if CHANGE == "record:added":
        logger.record(None, "extra", stats, mm_cache_stats=None, engine_idx=engine)
    else:
        logger.record(None, stats, mm_cache_stats=None, engine_idx=engine)


def start_ranks(options, out, address):
    if options["start"] == "exec":
        return [subprocess.Popen([sys.executable, __file__, str(out), json.dumps(options), address, str(rank)])
                for rank in range(options["ranks"])]
    context = multiprocessing.get_context(options["start"])
    processes = [context.Process(target=run_rank, args=(options, out, address, rank)) for rank in range(options["ranks"])]
    for process in processes:
        process.start()
    return processes


def serve(options, out):
    set_up_logging()
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    loggers = []
    if options["frontend"]:
        from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories
        factories = load_stat_logger_plugin_factories()
        loggers = [[factory(configuration(options, 0), engine) for factory in factories]
                   for engine in range(options["ranks"])]
    assert not any(name.startswith("vllm.v1.worker.") for name in sys.modules), "a front end has imported the worker"

    address = str(out / "socket")
    listener = multiprocessing.connection.Listener(address, backlog=64)
    processes = start_ranks(options, out, address)
    connections = {}
    for _ in range(2 * options["ranks"]):
        connection = listener.accept()
        connections[tuple(connection.recv())] = connection
    listener.close()
    hubs, controls = ([connections[kind, rank] for rank in range(options["ranks"])] for kind in ("hub", "control"))
    threading.Thread(target=add_up, args=(hubs,), daemon=True).start()
    pids = [control.recv() for control in controls]
    for logger in (logger for engine in loggers for logger in engine):
        logger.log_engine_initialized()
    print("ready", *pids, flush=True)
    for line in sys.stdin:
        for control in controls:
            control.send(line.strip())
        serve_tokens(options, out, loggers)
        for control in controls:
            control.recv()
        print("done", flush=True)
    for control in controls:
        control.send("stop")
    for process in processes:
        process.wait() if options["start"] == "exec" else process.join()


def main():
    out, options = pathlib.Path(sys.argv[1]), {**DEFAULTS, **json.loads(sys.argv[2])}
    if len(sys.argv) > 3:
        run_rank(options, out, sys.argv[3], int(sys.argv[4]))
    else:
        serve(options, out)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs an engine's thread per forward pass, in µs: EplbState.step() of the fake engine with the hooks
and without, in turns, for 58 MoE layers of 256 experts and 32 redundant ones on 32 ranks. The tensors are on the CPU, so
that the loads are read at once; from a device, the thread starts the copy, and records an earlier pass.

    PYTHONPATH=fake:shim python cost.py [--json]      in an environment that has wideep installed, and numpy or torch
"""

import json
import os
import statistics
import sys
import tempfile
import time

import numpy

LAYERS, LOGICAL, PHYSICAL, RANKS = 58, 256, 288, 32
BATCH, ROUNDS = 50, 40


def main():
    import wideep.vllm
    wideep.vllm.register()
    import torch
    from engine import DEFAULTS, configuration
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.v1.worker import gpu_worker
    from vllm.v1.worker.gpu_model_runner import Model
    from wideep.vllm import _engine

    parallel_state.initialize(0, RANKS, None)
    config = configuration({**DEFAULTS, "ranks": RANKS, "interval": 1 << 30, "window": 1 << 30}, 0)

    class Owner(gpu_worker.Worker):
        def __init__(self):  # pylint: disable=super-init-not-called
            self.vllm_config = config

    owner = Owner()
    state = EplbState(config.parallel_config, "cpu")
    state.add_model(Model(LAYERS, LOGICAL, PHYSICAL), config.model_config)
    (model,) = state.model_states.values()
    loads = torch.from_numpy(numpy.random.default_rng(1).zipf(1.5, (LAYERS, PHYSICAL)).clip(0, 4000).astype(numpy.int32))
    current = _engine.rank()
    current.seen(owner)
    current.warm = True
    plain = EplbState.step
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__

    def measure(step, **how):
        total = 0
        for _ in range(BATCH):
            model.expert_load_pass.copy_(loads)
            begin = time.perf_counter_ns()
            step(state, **how)
            total += time.perf_counter_ns() - begin
        return total / BATCH / 1000

    def cost(window, **how):
        state.expert_load_window_size = window
        return statistics.median([measure(EplbState.step, **how) - measure(plain, **how) for _ in range(ROUNDS)])

    measure(EplbState.step)
    results = {"recorded": cost(1 << 30), "recorded_dummy": cost(1 << 30, is_dummy=True), "not_recorded": cost(0)}
    if "--json" in sys.argv:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:16} {value:7.1f} µs a pass")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.environ["WIDEEP_SHM_DIR"] = directory
        main()

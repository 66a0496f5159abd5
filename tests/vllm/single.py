# SPDX-License-Identifier: Apache-2.0
"""One rank of the fake engine by itself, for what is not worth a group: its collectives come back as if all had sent alike.
test_vllm.py runs it with statements that use `rank`, a Rank."""

import struct

import numpy
import torch
import wideep.vllm
from engine import DEFAULTS, Books, configuration

wideep.vllm.register()

from vllm.distributed import parallel_state  # pylint: disable=wrong-import-position
from vllm.v1.worker.gpu_worker import Worker  # pylint: disable=wrong-import-position


class Alike:
    def __init__(self, size):
        self.size, self.data = size, b""

    def send_bytes(self, data):
        size = struct.unpack_from("i", data)[0]
        self.data = (numpy.frombuffer(data, numpy.int64, size, 4) * self.size).tobytes()

    def recv_bytes(self):
        return self.data


class Rank:
    def __init__(self, index=0, **options):
        groups = {name: options.pop(name) for name in ("tp", "pp") if name in options}
        self.options = {**DEFAULTS, "draft": False, "window": 1 << 30, **options}
        size = self.options["ranks"]
        self.books = Books(self.options, 0)
        self.config = configuration(self.options, 0)
        self.config.parallel_config.data_parallel_index = index
        self.worker = Worker(self.config, Alike(size), size, "cpu")
        for name, (number, others) in groups.items():
            parallel_state._GROUPS[name] = parallel_state.GroupCoordinator(number, others, None)
        self.worker.load_model(False, self.books)
        self.worker.determine_available_memory()
        self.worker.compile_or_warm_up_model()
        self.books.warm()
        self.state = self.worker.model_runner.eplb_state
        (self.model,) = self.state.model_states.values()

    def go(self, passes=1):
        for _ in range(passes):
            loads = numpy.ones(tuple(self.model.expert_load_pass.shape), numpy.int32)
            self.books.current = {0: loads}
            self.worker.model_runner.execute_model(64, True, self.books.current)

    def grow(self, size):
        """Elastic EP: other groups, other tensors, and a rearrangement outside of any step."""
        parallel_state.initialize(0, size, Alike(size))
        self.config.parallel_config.data_parallel_size = size
        layers, physical = self.model.expert_load_pass.shape
        physical = physical // self.options["ranks"] * size
        table = numpy.tile(numpy.arange(physical) % self.options["logical"], (layers, 1))
        self.model.model.num_physical_experts = physical
        self.model.expert_load_pass = torch.zeros(layers, physical, dtype=torch.int32)
        self.model.physical_to_logical_map = torch.from_numpy(table)
        self.state.rearrange(False)


def segment():
    (found,) = (s for s in wideep.read_segments() if s.role == "rank" and s.engine == 0)
    return found


def seen():
    """(passes, recorded ones, rearrangements by mode, under way) of the target."""
    model = segment().models[0]
    buckets = model.rearrangement_buckets
    return model.passes, model.recorded_passes, sum(buckets["sync"]), sum(buckets["async"]), model.rebalancing_mode

# SPDX-License-Identifier: Apache-2.0
import numpy
import torch

from vllm import change, found
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.v1.worker.dp_utils import coordinate_batch_across_dp


class Model:
    def __init__(self, layers, logical, physical):
        self.num_moe_layers, self.num_logical_experts, self.num_physical_experts = layers, logical, physical


class GPUModelRunner:
    def __init__(self, vllm_config, device, books):
        self.vllm_config, self.parallel_config, self.device = vllm_config, vllm_config.parallel_config, device
        self.books, self.eplb_state, self.passes = books, None, 0

    def load_model(self):
        if self.parallel_config.enable_eplb:
            self.eplb_state = EplbState(self.parallel_config, self.device)
            for config, sizes in self.books.models(self.vllm_config):  # the draft model first
                self.eplb_state.add_model(Model(*sizes), config)

    def profile_run(self):
        found(self, "_dummy_run")(1024, is_profile=True, uniform_decode=False)

    def coordinate(self, tokens, uniform_decode):
        """How many ubatches, and of what size before the last one is padded."""
        should, padded, _ = coordinate_batch_across_dp(tokens, True, self.parallel_config, num_tokens_padded=tokens,
                                                       uniform_decode=uniform_decode)
        coordinate_batch_across_dp(tokens, False, self.parallel_config)  # the draft model
        return (self.parallel_config.num_ubatches if should else 1), tokens if padded is None else max(padded.tolist())

    def _dummy_run(self, num_tokens, cudagraph_runtime_mode=None, force_attention=False, uniform_decode=False,
                   allow_microbatching=True, skip_eplb=False, is_profile=False):
        del cudagraph_runtime_mode, force_attention, allow_microbatching
        self.coordinate(num_tokens, uniform_decode)
        self.forward(None)
        if not skip_eplb:
            self.eplb_step(is_dummy=True, is_profile=is_profile)

    def execute_model(self, tokens, uniform_decode, loads):
        ubatches, padded = self.coordinate(tokens, uniform_decode)
        slices = []
        if ubatches > 1:
            points = [padded // ubatches * i for i in range(ubatches)] + [padded]
            slices = [len(range(start, min(end, tokens))) for start, end in zip(points, points[1:])]
        self.forward(loads)
        self.eplb_step()
        return slices

    def forward(self, loads):
        """Adds to the loads while they are recorded. A dummy run routes its own tokens too."""
        if self.eplb_state is None:
            return
        for index, state in enumerate(self.eplb_state.model_states.values()):
            if loads is None:
                state.expert_load_pass.add_(torch.from_numpy(numpy.full(state.expert_load_pass.shape, 3, numpy.int32)))
            elif self.eplb_state.recording:
                state.expert_load_pass.add_(torch.from_numpy(loads[index]))

    def eplb_step(self, is_dummy=False, is_profile=False):
        if self.eplb_state is not None:
            if not is_profile:
                self.books.passed(self.eplb_state, is_dummy)
            found(self.eplb_state, "step")(is_dummy, is_profile, False)


def _dummy_added(function):
    def dummy_run(self, num_tokens, *args, seed=0, **kwargs):
        del seed
        return function(self, num_tokens, *args, **kwargs)
    return dummy_run


change(GPUModelRunner, "_dummy_run", added=_dummy_added)

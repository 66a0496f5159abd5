# SPDX-License-Identifier: Apache-2.0
import os
import threading
import time

import numpy
import torch

from vllm import change, found
from vllm.distributed.parallel_state import get_ep_group

STALL = float(os.environ.get("FAKE_STALL", "0.05"))


class EplbModelState:
    def __init__(self, model, model_name, physical_to_logical_map, expert_load_pass):
        self.model, self.model_name = model, model_name
        self.physical_to_logical_map, self.expert_load_pass = physical_to_logical_map, expert_load_pass
        self.rebalanced, self.pending_result = False, None


class EplbState:
    def __init__(self, parallel_config, device):
        self.parallel_config, self.device = parallel_config, device
        self.model_states = {}
        config = parallel_config.eplb_config
        self.is_async = config.use_async
        self.expert_load_window_size = config.window_size
        self.expert_rearrangement_step_interval = config.step_interval
        self.expert_rearrangement_step = max(0, config.step_interval - config.step_interval // 4)
        self.recording = False  # what the routers see
        self.rearrangements = 0

    def add_model(self, model, model_config, global_expert_load=None, old_global_expert_indices=None, rank_mapping=None):
        del global_expert_load, old_global_expert_indices, rank_mapping
        table = numpy.arange(model.num_physical_experts, dtype=numpy.int64) % model.num_logical_experts
        table = numpy.tile(table, (model.num_moe_layers, 1))
        loads = numpy.random.default_rng(7).integers(0, 1000, table.shape, dtype=numpy.int32)  # residue
        self.model_states[model_config.compute_hash()] = EplbModelState(
            model, model_config.model, torch.from_numpy(table).to(self.device), torch.from_numpy(loads).to(self.device))
        self._update_layer_should_record()

    def _should_record_current_step(self, log_stats=False):
        del log_stats
        left = self.expert_rearrangement_step_interval - self.expert_rearrangement_step
        return left <= self.expert_load_window_size

    def _update_layer_should_record(self, log_stats=False):
        self.recording = bool(found(self, "_should_record_current_step")(log_stats=log_stats))

    def step(self, is_dummy=False, is_profile=False, log_stats=False):
        if is_profile:
            found(self, "rearrange")(True)
            return
        if is_dummy:
            for state in self.model_states.values():
                state.expert_load_pass.zero_()
        elif found(self, "_should_record_current_step")(log_stats=log_stats):
            for state in self.model_states.values():
                state.expert_load_pass.zero_()
        self.expert_rearrangement_step += 1
        if self.is_async:
            for state in self.model_states.values():
                if state.rebalanced and self._all_ranks_result_ready(state):
                    _move_to_workspace(state, get_ep_group().rank_in_group)
        busy = self.is_async and any(state.rebalanced for state in self.model_states.values())
        if self.expert_rearrangement_step >= self.expert_rearrangement_step_interval and not busy:
            self.expert_rearrangement_step = 0
            found(self, "rearrange")()
        self._update_layer_should_record(log_stats)

    def rearrange(self, is_profile=False, rank_mapping=None):
        del rank_mapping
        get_ep_group().barrier()
        if is_profile:
            return
        self.rearrangements += 1
        for number, state in enumerate(self.model_states.values()):
            table = self._new_map(state, number)
            if self.is_async:
                state.rebalanced = True
                threading.Thread(target=_transfer, args=(state, table), daemon=True).start()
            else:
                time.sleep(STALL)
                found(globals(), "_commit_eplb_maps")(state, torch.from_numpy(table))

    def _new_map(self, state, number):
        """Alike on all ranks; some slots stay empty."""
        random = numpy.random.default_rng((self.rearrangements, number))
        model = state.model
        table = random.integers(0, model.num_logical_experts, (model.num_moe_layers, model.num_physical_experts))
        table[:, -1] = -1
        return table

    def _all_ranks_result_ready(self, state):
        group = get_ep_group()
        return int(group.all_reduce([state.pending_result is not None])[0]) == group.world_size


def _transfer(state, table):
    for layer in range(state.model.num_moe_layers):
        time.sleep(STALL / 20)
        state.pending_result = layer, torch.from_numpy(table[layer].copy())
        while state.pending_result is not None:
            time.sleep(0.0005)


def _move_to_workspace(model_state, ep_rank):
    del ep_rank
    layer, table = model_state.pending_result
    found(globals(), "_commit_eplb_maps_for_layer")(model_state, new_physical_to_logical_map=table, layer=layer)
    if layer == model_state.model.num_moe_layers - 1:
        model_state.rebalanced = False
    model_state.pending_result = None


def _commit_eplb_maps(model_state, new_physical_to_logical_map):
    if tuple(model_state.physical_to_logical_map.shape) == tuple(new_physical_to_logical_map.shape):
        model_state.physical_to_logical_map.copy_(new_physical_to_logical_map, non_blocking=True)
    else:
        model_state.physical_to_logical_map = new_physical_to_logical_map.to(model_state.physical_to_logical_map.device)


def _commit_eplb_maps_for_layer(model_state, new_physical_to_logical_map, layer):
    model_state.physical_to_logical_map[layer].copy_(new_physical_to_logical_map, non_blocking=True)


# ---- what later versions might do ------------------------------------------------------------------------------

def _step_added(function):
    def step(self, is_dummy=False, is_profile=False, urgency=0, log_stats=False):
        del urgency
        return function(self, is_dummy, is_profile, log_stats)
    return step


def _step_renamed(function):
    def step(self, is_idle=False, is_profile=False, log_stats=False):
        return function(self, is_idle, is_profile, log_stats)
    return step


def _rearrange_added(function):
    def rearrange(self, is_profile=False, drain=True, rank_mapping=None):
        del drain
        return function(self, is_profile, rank_mapping)
    return rearrange


def _rearrange_renamed(function):
    def rearrange(self, rehearse=False, rank_mapping=None):
        return function(self, rehearse, rank_mapping)
    return rearrange


change(EplbState, "step", added=_step_added, renamed=_step_renamed)
change(EplbState, "rearrange", added=_rearrange_added, renamed=_rearrange_renamed)
change(EplbState, "_should_record_current_step",
       returns=lambda function: lambda self, log_stats=False: int(function(self, log_stats)))
change(globals(), "_commit_eplb_maps",
       renamed=lambda function: lambda state, new_map: function(state, new_map))
change(globals(), "_commit_eplb_maps_for_layer")

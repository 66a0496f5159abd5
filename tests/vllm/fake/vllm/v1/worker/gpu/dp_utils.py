# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import numpy

from vllm import change, found
from vllm.distributed.parallel_state import get_dp_group
from vllm.v1.worker.ubatch_utils import check_ubatch_thresholds


@dataclass
class BatchExecutionDescriptor:
    cg_mode: int
    num_tokens: int
    num_reqs: int
    num_ubatches: int = 1


@dataclass
class DPSyncState:
    num_tokens_across_dp: object


def sync_cudagraph_and_dp_padding(cudagraph_manager, desired_batch_desc, num_tokens, num_reqs, uniform_token_count, dp_size,
                                  dp_rank, max_query_len=None, num_active_loras=0, parallel_config=None,
                                  allow_ubatching=False, uniform_decode=False):
    del cudagraph_manager, desired_batch_desc, num_active_loras
    assert dp_size > 1
    rows = numpy.zeros((6, dp_size), numpy.int64)
    rows[:, dp_rank] = [num_tokens, 0, uniform_token_count or 0, max_query_len or -1, allow_ubatching, num_reqs]
    tokens, _, uniform, _, allowed, _ = get_dp_group().all_reduce(rows)
    if not tokens.any():
        return BatchExecutionDescriptor(0, 0, 0), None
    if (allowed == 1).all():
        decode = bool(uniform_decode and (uniform == (uniform_token_count or 0)).all())
        if found(globals(), "check_ubatch_thresholds")(parallel_config, int(tokens.min()), uniform_decode=decode):
            most = int(tokens.max())
            return BatchExecutionDescriptor(0, most, num_reqs, parallel_config.num_ubatches), DPSyncState(tokens)
    return BatchExecutionDescriptor(0, num_tokens, num_reqs), DPSyncState(tokens)


@dataclass
class Other:
    """Another way to say the same."""
    desc: object
    sync: object

    def __iter__(self):
        return iter((self.desc, self.sync))


def _moved(function):
    def sync(cudagraph_manager, desired_batch_desc, allow_ubatching, uniform_decode, dp_rank, num_tokens, num_reqs,
             uniform_token_count, dp_size, parallel_config, max_query_len):
        return function(cudagraph_manager, desired_batch_desc, num_tokens, num_reqs, uniform_token_count, dp_size, dp_rank,
                        max_query_len, 0, parallel_config, allow_ubatching, uniform_decode)
    return sync


change(globals(), "sync_cudagraph_and_dp_padding", moved=_moved,
       returns=lambda function: lambda *, num_tokens, allow_ubatching, uniform_decode, **more: Other(*function(
           num_tokens=num_tokens, allow_ubatching=allow_ubatching, uniform_decode=uniform_decode, **more)))
change(globals(), "check_ubatch_thresholds")

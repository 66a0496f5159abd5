# SPDX-License-Identifier: Apache-2.0
import numpy
import torch

from vllm import change, found
from vllm.distributed.parallel_state import get_dp_group
from vllm.v1.worker.ubatch_utils import check_ubatch_thresholds


def _post_process_ubatch(tensor, num_ubatches):
    tokens, padded, votes = tensor[:3].tolist()
    if not all(vote == 1 for vote in votes):
        return False
    return not (max(padded) // num_ubatches) * (num_ubatches - 1) >= min(tokens)


def coordinate_batch_across_dp(num_tokens_unpadded, allow_microbatching, parallel_config, num_tokens_padded=None,
                               uniform_decode=None, cudagraph_mode=0):
    if parallel_config.data_parallel_size == 1:
        return False, None, cudagraph_mode
    attempt = False
    if allow_microbatching:
        assert uniform_decode is not None
        attempt = found(globals(), "check_ubatch_thresholds")(parallel_config, num_tokens_unpadded,
                                                              uniform_decode=uniform_decode)
    rows = numpy.zeros((4, parallel_config.data_parallel_size), numpy.int64)
    rows[:, parallel_config.data_parallel_rank] = [num_tokens_unpadded, num_tokens_padded or num_tokens_unpadded, attempt,
                                                   cudagraph_mode]
    tensor = torch.from_numpy(get_dp_group().all_reduce(rows).astype(numpy.int32))
    should = found(globals(), "_post_process_ubatch")(tensor, parallel_config.num_ubatches)
    return bool(should), tensor[1], cudagraph_mode


change(globals(), "_post_process_ubatch",
       added=lambda function: lambda tensor, num_ubatches, strict=False: function(tensor, num_ubatches),
       renamed=lambda function: lambda rows, num_ubatches: function(rows, num_ubatches),
       returns=lambda function: lambda tensor, num_ubatches: int(function(tensor, num_ubatches)))
change(globals(), "check_ubatch_thresholds",
       renamed=lambda function: lambda config, num_tokens, uniform_decode=None, **more: function(config, num_tokens,
                                                                                                uniform_decode))

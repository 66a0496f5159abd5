# SPDX-License-Identifier: Apache-2.0
from vllm.v1.worker import gpu_model_runner as older
from vllm.v1.worker.gpu import dp_utils


class GPUModelRunner(older.GPUModelRunner):
    """The newer runner: another agreement between the ranks."""

    def coordinate(self, tokens, uniform_decode):
        from vllm import found
        parallel = self.parallel_config
        desc, _ = found(vars(dp_utils), "sync_cudagraph_and_dp_padding")(
            cudagraph_manager=None, desired_batch_desc=None, num_tokens=tokens, num_reqs=1,
            uniform_token_count=1 if uniform_decode else None, dp_size=parallel.data_parallel_size,
            dp_rank=parallel.data_parallel_rank, max_query_len=None, parallel_config=parallel,
            allow_ubatching=parallel.use_ubatching, uniform_decode=uniform_decode)
        return desc.num_ubatches, desc.num_tokens

    def _dummy_run(self, num_tokens, *args, skip_attn=True, **kwargs):
        del skip_attn
        return super()._dummy_run(num_tokens, *args, **kwargs)

# SPDX-License-Identifier: Apache-2.0
from vllm import change, found
from vllm.distributed import parallel_state


class Worker:
    """One rank. In vLLM the worker of tensor parallel size 1 lives in the process of its EngineCore."""

    def __init__(self, vllm_config, connection, world, device):
        self.vllm_config, self.device = vllm_config, device
        self.rank = vllm_config.parallel_config.data_parallel_rank
        parallel_state.initialize(self.rank, world, connection)
        self.model_runner = None

    def load_model(self, newer, books):
        if newer:
            from vllm.v1.worker.gpu.model_runner import GPUModelRunner
        else:
            from vllm.v1.worker.gpu_model_runner import GPUModelRunner
        self.model_runner = GPUModelRunner(self.vllm_config, self.device, books)
        self.model_runner.load_model()

    def determine_available_memory(self):
        self.model_runner.profile_run()

    def compile_or_warm_up_model(self):
        for tokens in (512, 64, 1):
            found(self.model_runner, "_dummy_run")(tokens, uniform_decode=tokens == 1)
        return 1.5

    def execute_dummy_batch(self):
        found(self.model_runner, "_dummy_run")(1, uniform_decode=True)


change(Worker, "compile_or_warm_up_model")

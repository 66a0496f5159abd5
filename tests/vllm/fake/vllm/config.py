# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class EPLBConfig:
    window_size: int = 1000
    step_interval: int = 3000
    use_async: bool = True
    log_balancedness: bool = False


@dataclass
class ParallelConfig:
    data_parallel_size: int = 1
    data_parallel_rank: int = 0
    data_parallel_index: int = 0
    tensor_parallel_size: int = 1
    data_parallel_master_ip: str = "127.0.0.1"
    data_parallel_master_port: int = 29500
    enable_eplb: bool = False
    eplb_config: EPLBConfig = field(default_factory=EPLBConfig)
    enable_dbo: bool = False
    num_ubatches: int = 2
    dbo_decode_token_threshold: int = 32
    dbo_prefill_token_threshold: int = 512
    use_sequence_parallel_moe: bool = False
    _api_process_rank: int = 0

    @property
    def use_ubatching(self):
        return self.enable_dbo


@dataclass
class ModelConfig:
    model: str
    served_model_name: str

    def compute_hash(self):
        return "hash-" + self.model


@dataclass
class SpeculativeConfig:
    num_speculative_tokens: int = 1


@dataclass
class VllmConfig:
    model_config: ModelConfig
    parallel_config: ParallelConfig
    speculative_config: Optional[Any] = None

# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field


@dataclass
class PromptTokenStats:
    computed: int = 0


@dataclass
class IterationStats:
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    prompt_token_stats: PromptTokenStats = field(default_factory=PromptTokenStats)

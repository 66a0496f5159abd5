# SPDX-License-Identifier: Apache-2.0
def check_ubatch_thresholds(config, num_tokens, uniform_decode):
    if not config.use_ubatching:
        return False
    return num_tokens >= (config.dbo_decode_token_threshold if uniform_decode else config.dbo_prefill_token_threshold)

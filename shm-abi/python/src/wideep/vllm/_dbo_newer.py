# SPDX-License-Identifier: Apache-2.0
"""Dual Batch Overlap of the newer model runner: the agreement in vllm.v1.worker.gpu.dp_utils."""

from __future__ import annotations

from typing import Any, Optional, Sequence

from . import _engine
from ._dbo import query_length, record, ubatch_sizes, watched
from ._hooks import Hook, Unfit, Wrapper, find, wrap

hook = Hook("dbo (newer runner)", "DBO is not recorded", "vllm.v1.worker.gpu.dp_utils")

_asked: Optional[tuple[Any, int, bool]] = None  # configuration, tokens of the smallest rank, all decode uniformly


class Check(Wrapper):
    """check_ubatch_thresholds(): here the smallest rank's tokens are held against the threshold of the agreed phase."""

    hook = hook
    required: Sequence[str] = ("config", "num_tokens", "uniform_decode")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        global _asked  # pylint: disable=global-statement
        get = self.parameters.get
        _asked = (get("config", args, kwargs), int(get("num_tokens", args, kwargs)),
                  bool(get("uniform_decode", args, kwargs)))


class Agreement(Wrapper):
    """sync_cudagraph_and_dp_padding()"""

    hook = hook
    required: Sequence[str] = ("num_tokens", "allow_ubatching", "uniform_decode")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        global _asked  # pylint: disable=global-statement
        _asked = None

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        get = self.parameters.get
        if not get("allow_ubatching", args, kwargs) or not watched(_engine.dummy_run_newer):
            return
        config = _engine.rank().vllm_config
        if config is None or not config.parallel_config.use_ubatching:
            return
        ubatches = getattr(result[0], "num_ubatches", None) if isinstance(result, tuple) and result else None
        if not isinstance(ubatches, int):
            raise Unfit(f"sync_cudagraph_and_dp_padding() returns {type(result).__name__} without num_ubatches")
        own = int(get("num_tokens", args, kwargs))
        if _asked is None:  # another rank did not allow it
            record("decode" if get("uniform_decode", args, kwargs) else "prefill", "other")
            return
        parallel, smallest, decode = _asked
        phase = "decode" if decode else "prefill"
        if ubatches > 1:
            record(phase, "engaged", ubatch_sizes(own, int(result[0].num_tokens), ubatches))
            return
        threshold = int(parallel.dbo_decode_token_threshold if decode else parallel.dbo_prefill_token_threshold)
        record(phase, agreement_outcome(own, smallest, threshold, query_length(config)))


def agreement_outcome(own: int, smallest: int, threshold: int, query: int) -> str:
    """Why the ranks did not split, of which this one knows only its own tokens and the smallest number of any."""
    if smallest <= query:
        return "idle_rank"
    return "coordination_failure" if own >= threshold > smallest else "below_threshold"


def imported(module: Any) -> None:
    """vllm.v1.worker.gpu.dp_utils"""
    def both() -> None:
        find(module, "check_ubatch_thresholds")
        wrap(module, "sync_cudagraph_and_dp_padding", Agreement)
        wrap(module, "check_ubatch_thresholds", Check)

    hook.fit(both)

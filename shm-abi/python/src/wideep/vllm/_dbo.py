# SPDX-License-Identifier: Apache-2.0
"""Dual Batch Overlap of the older model runner: the votes in vllm.v1.worker.dp_utils."""

from __future__ import annotations

from typing import Any, Optional, Sequence

from . import _engine
from ._hooks import Hook, Unfit, Wrapper, wrap

hook = Hook("dbo", "DBO is not recorded", "vllm.v1.worker.dp_utils")

MAX_UBATCHES = 4  # that the segment has room for
DEAD = 2**31 - 1  # tokens that the engine writes down for a rank that is gone, with a yes


def query_length(config: Any) -> int:
    """Tokens of one decoding request in a pass: the most that a rank with nothing to do can show."""
    speculative = getattr(config, "speculative_config", None)
    return 1 + int(getattr(speculative, "num_speculative_tokens", 0) or 0)


def ubatch_sizes(own: int, padded: int, ubatches: int) -> list[int]:
    """This rank's tokens in each ubatch, padding left out: all ranks split at the same places."""
    split = padded // ubatches
    starts = [i * split for i in range(ubatches)]
    ends = [*starts[1:], max(own, padded)]
    return [max(0, min(own, end) - start) for start, end in zip(starts, ends)][:MAX_UBATCHES]


def vote_outcome(tokens: Sequence[int], padded: Sequence[int], votes: Sequence[int], ubatches: int, query: int) -> str:
    """Why the ranks did not split. A rank that decodes a single request votes as one that has nothing to do."""
    no = [n for n, vote in zip(tokens, votes) if vote != 1]
    if len(no) == sum(n != DEAD for n in tokens):
        return "below_threshold"
    if no:
        return "coordination_failure" if max(no) > query else "idle_rank"
    return "empty_second_ubatch" if (max(padded) // ubatches) * (ubatches - 1) >= min(tokens) else "other"


def record(phase: str, outcome: str, sizes: Sequence[int] = ()) -> None:
    """Of the pass that is about to run."""
    current = _engine.rank()
    number = current.loads.passes if current.loads is not None else current.dbo_passes
    current.dbo_passes += 1
    current.record(lambda writer: writer.record_dbo(phase=phase, outcome=outcome, ubatch_tokens=sizes, pass_=number))


def watched(dummy_run: Hook) -> bool:
    """Whether this is a real pass. Where that cannot be told, nothing is."""
    current = _engine.rank()
    if not dummy_run.on or current.dummy or current.cold:
        return False
    current.real_pass()
    return True


_asked: Optional[tuple[Any, str]] = None  # configuration and phase of the vote that is under way


class Check(Wrapper):
    """check_ubatch_thresholds(): called just before the vote, and only for the target's passes that may be split."""

    hook = hook
    required: Sequence[str] = ("config", "uniform_decode")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        global _asked  # pylint: disable=global-statement
        get = self.parameters.get
        _asked = get("config", args, kwargs), "decode" if get("uniform_decode", args, kwargs) else "prefill"


class Vote(Wrapper):
    """_post_process_ubatch(): reads what all ranks voted."""

    hook = hook
    required: Sequence[str] = ("tensor", "num_ubatches")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        global _asked  # pylint: disable=global-statement
        asked, _asked = _asked, None
        return asked

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if token is None or not watched(_engine.dummy_run):
            return
        config, phase = token
        if not config.use_ubatching:
            return
        if not isinstance(result, bool):
            raise Unfit(f"_post_process_ubatch() returns {type(result).__name__}")
        ubatches = int(self.parameters.get("num_ubatches", args, kwargs))
        # The engine has just read the same tensor, so this waits for nothing new.
        tokens, padded, votes = self.parameters.get("tensor", args, kwargs)[:3].tolist()
        if result:
            record(phase, "engaged", ubatch_sizes(tokens[config.data_parallel_rank], max(padded), ubatches))
        else:
            query = query_length(_engine.rank().vllm_config)
            record(phase, vote_outcome(tokens, padded, votes, ubatches, query))


def imported(module: Any) -> None:
    """vllm.v1.worker.dp_utils"""
    def both() -> None:
        wrap(module, "check_ubatch_thresholds", Check)
        wrap(module, "_post_process_ubatch", Vote)

    hook.fit(both)

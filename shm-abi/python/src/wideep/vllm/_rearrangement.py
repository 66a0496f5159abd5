# SPDX-License-Identifier: Apache-2.0
"""Rearrangements of experts: EplbState.rearrange(), and what EplbState.step() finds of those in the background."""

from __future__ import annotations

from typing import Any, Sequence

from . import _engine, _loads
from ._hooks import Hook, Wrapper, find, wrap

hook = Hook("rearrangement", "rearrangements are not recorded", _loads.MODULE)
_engine.eplb_hooks.append(hook)

_under_way: dict[int, Any] = {}  # index of the model: the writer in whose segment it began
_in_step = False


def _begin(index: int, mode: str) -> None:
    def action(writer: Any) -> None:
        writer.rearrangement_begin(model=index, mode=mode)
        _under_way[index] = writer

    if index not in _under_way:
        _engine.rank().record(action)


def _finish(index: int, counted: bool) -> None:
    """In a segment that was replaced meanwhile, nothing has begun."""
    begun = _under_way.pop(index, None)
    if begun is not None and begun is _engine.rank().writer:
        _engine.rank().record(
            lambda writer: (writer.rearrangement_end if counted else writer.rearrangement_abort)(model=index))


def _abort_all() -> None:
    for index in list(_under_way):
        _finish(index, counted=False)


hook.cleanup = _abort_all  # a flag left standing would keep a load balancer away for ever


def _models(state: Any) -> list[tuple[int, Any]]:
    return [(model.index, model.state) for model in _loads.tracker(state).members]


class Step(Wrapper):
    """EplbState.step(): one in the background is under way while model_state.rebalanced is true. One that ends within
    a step is done; one that ended between two was given up."""

    hook = hook
    required: Sequence[str] = ("is_profile",)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        global _in_step  # pylint: disable=global-statement
        state = args[0]
        _in_step = True
        if not self.parameters.get("is_profile", args, kwargs):
            for index, model in _models(state):
                if state.is_async and not model.rebalanced:
                    _finish(index, counted=False)

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        global _in_step  # pylint: disable=global-statement
        state = args[0]
        _in_step = False
        if not self.parameters.get("is_profile", args, kwargs) and state.is_async:
            for index, model in _models(state):
                if model.rebalanced:
                    _begin(index, "async")
                else:
                    _finish(index, counted=True)

    def failed(self, token: Any) -> None:
        global _in_step  # pylint: disable=global-statement
        _in_step = False


class Rearrange(Wrapper):
    """EplbState.rearrange(): in a step, where it blocks unless it only starts one in the background; outside, elastic
    EP, which makes another group."""

    hook = hook
    required: Sequence[str] = ("is_profile",)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = args[0]
        if self.parameters.get("is_profile", args, kwargs):
            return "profile"
        if not _in_step:
            _abort_all()
            return "elastic"
        for index, model in _models(state):
            if not state.is_async:
                _begin(index, "sync")
            elif not model.rebalanced:
                _finish(index, counted=True)  # the one before has ended in this very step
        return "async" if state.is_async else "sync"

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if token == "sync":
            for index in list(_under_way):
                _finish(index, counted=True)
        elif token == "elastic":
            _loads.tracker(args[0]).restart()

    def failed(self, token: Any) -> None:
        if token == "sync":
            _abort_all()


def imported(module: Any) -> None:
    """vllm.distributed.eplb.eplb_state"""
    def both() -> None:
        state_class = find(module, "EplbState")
        wrap(state_class, "rearrange", Rearrange)
        wrap(state_class, "step", Step)

    hook.fit(both)

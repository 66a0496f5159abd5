# SPDX-License-Identifier: Apache-2.0
"""What the environment says. Read when asked, so that it may be set as late as the engine's own variables."""

from __future__ import annotations

import logging
import os

from ._hooks import log

_NO = frozenset({"off", "0", "no", "false"})
_YES = frozenset({"", "on", "1", "yes", "true"})
_KNOWN = {"WIDEEP_VLLM": _NO | _YES, "WIDEEP_RECORD": frozenset({"", "always"})}

_said: set[str] = set()  # also in a process that was forked since


def _value(name: str) -> str:
    return os.environ.get(name, "").strip().lower()


def _say(level: int, text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.log(level, "wideep: %s", text)


def check() -> None:
    """Says once what a setting is taken for, where its author may have meant something else."""
    for name, known in _KNOWN.items():
        if _value(name) not in known:
            _say(logging.WARNING, f"{name}={os.environ[name]} is none of {', '.join(sorted(known - {''}))}: ignored")
    if not enabled():
        _say(logging.INFO, "off, as WIDEEP_VLLM says")


def enabled() -> bool:
    """WIDEEP_VLLM=off leaves the engine alone altogether."""
    return _value("WIDEEP_VLLM") not in _NO


def record_always() -> bool:
    """WIDEEP_RECORD=always makes the engine record the loads of every pass and not only of those before a
    rearrangement. It must be set alike on all ranks of a group."""
    return _value("WIDEEP_RECORD") == "always"

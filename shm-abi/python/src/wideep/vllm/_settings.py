# SPDX-License-Identifier: Apache-2.0
"""What the environment says. Read when asked, so that it may be set as late as the engine's own variables."""

from __future__ import annotations

import os

_NO = frozenset({"off", "0", "no", "false"})


def enabled() -> bool:
    """WIDEEP_VLLM=off leaves the engine alone altogether."""
    return os.environ.get("WIDEEP_VLLM", "on").strip().lower() not in _NO


def record_always() -> bool:
    """WIDEEP_RECORD=always makes the engine record the loads of every pass and not only of those before a
    rearrangement. It must be set alike on all ranks of a group."""
    return os.environ.get("WIDEEP_RECORD", "").strip().lower() == "always"

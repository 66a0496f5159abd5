# SPDX-License-Identifier: Apache-2.0
"""vLLM's expert load balance, rearrangements, Dual Batch Overlap and tokens, for wideep-exporter; see deploy/vllm.md.

vLLM finds this through two entry points: `register` in the group vllm.general_plugins, which it calls in every process,
and `StatLogger` in vllm.stat_logger_plugins. Neither torch nor vLLM is imported from here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["StatLogger", "register"]  # pylint: disable=undefined-all-variable


def register() -> None:
    """Puts the hooks in place: now in what is imported, else when it will have been. May be called more than once, and
    raises nothing."""
    from ._settings import enabled
    if not enabled():
        return
    from . import _dbo, _dbo_newer, _engine, _loads, _rearrangement
    from ._importing import when_imported
    worker = "vllm.v1.worker."
    when_imported("vllm.distributed.eplb.eplb_state", _loads.imported)
    when_imported("vllm.distributed.eplb.eplb_state", _rearrangement.imported)
    when_imported(worker + "gpu_worker", _engine.worker_imported)
    when_imported(worker + "gpu_model_runner", _engine.runner_imported)
    when_imported(worker + "gpu.model_runner", _engine.newer_runner_imported)
    when_imported(worker + "dp_utils", _dbo.imported)
    when_imported(worker + "gpu.dp_utils", _dbo_newer.imported)


def __getattr__(name: str) -> Any:
    if name != "StatLogger":
        raise AttributeError(name)
    from ._tokens import stat_logger_class
    try:
        globals()[name] = stat_logger_class()
    except Exception as error:
        raise AttributeError(f"this vLLM has no stat loggers: {error}") from error
    return globals()[name]

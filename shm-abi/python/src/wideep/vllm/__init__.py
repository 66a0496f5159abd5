# SPDX-License-Identifier: Apache-2.0
"""vLLM's expert load balance, rearrangements, Dual Batch Overlap and tokens, for wideep-exporter; see deploy/vllm.md.

vLLM finds this through two entry points: `register` in the group vllm.general_plugins, which it calls in every process,
and `StatLogger` in vllm.stat_logger_plugins. Neither torch nor vLLM is imported from here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["StatLogger", "hooks", "register"]  # pylint: disable=undefined-all-variable


def register() -> None:
    """Puts the hooks in place: now in what is imported, else when it will have been. May be called more than once, and
    raises nothing."""
    from ._settings import check, enabled
    check()
    if not enabled():
        return
    from . import _dbo, _dbo_newer, _engine, _loads, _rearrangement
    from ._importing import when_imported
    when_imported(_loads.hook.module, _loads.imported)
    when_imported(_rearrangement.hook.module, _rearrangement.imported)
    when_imported(_engine.warm_up.module, _engine.worker_imported)
    when_imported(_engine.dummy_run.module, _engine.runner_imported)
    when_imported(_engine.dummy_run_newer.module, _engine.newer_runner_imported)
    when_imported(_dbo.hook.module, _dbo.imported)
    when_imported(_dbo_newer.hook.module, _dbo_newer.imported)


def hooks() -> dict[str, str]:
    """The hooks of this process by name: `in place`, `off: ` and why, or `waiting: ` and for what."""
    from ._hooks import hooks as known
    return {hook.name: hook.state for hook in known}


def __getattr__(name: str) -> Any:
    if name != "StatLogger":
        raise AttributeError(name)
    from ._tokens import stat_logger_class
    try:
        globals()[name] = stat_logger_class()
    except Exception as error:
        raise AttributeError(f"this vLLM has no stat loggers: {error}") from error
    return globals()[name]

# SPDX-License-Identifier: Apache-2.0
"""Prompt and generation tokens: a stat logger of the front end."""

from __future__ import annotations

import abc
import importlib
from typing import Any, Optional

from ._hooks import Hook, Parameters, Unfit, served_name
from ._segments import Segment, segments
from ._settings import enabled

MODULE = "vllm.v1.metrics.loggers"

hook = Hook("tokens", "prompt and generation tokens are not recorded", MODULE)


class Frontend:
    """One engine's tokens, as this API process sees them."""

    def __init__(self, vllm_config: Any, engine: int) -> None:
        self._config = vllm_config
        self._engine = engine
        self._segment: Optional[Segment] = None
        self._segments = segments()

    def open(self) -> Segment:
        current = segments()
        if self._segment is None or self._segments is not current:
            number = max(0, int(getattr(self._config.parallel_config, "_api_process_rank", 0)))
            name = served_name(self._config)

            def open_writer() -> Any:
                import wideep
                return wideep.Writer(engine=self._engine, rank=number, role="frontend", models=[wideep.Model(name)])

            self._segments = current
            self._segment = current.add(f"front end {number} of engine {self._engine}", open_writer)
        return self._segment

    def record(self, stats: Any) -> None:
        segment = self.open()
        if stats is not None:
            prompt, generation = prompt_tokens(stats), int(stats.num_generation_tokens)
            segment.record(lambda writer: writer.record_tokens(prompt, generation))


def prompt_tokens(stats: Any) -> int:
    """Those that were computed here. Cached ones, and those that another engine has sent the keys and values of, are in
    num_prompt_tokens too."""
    computed = getattr(getattr(stats, "prompt_token_stats", None), "computed", None)
    return int(stats.num_prompt_tokens if computed is None else computed)


def stat_logger_class() -> Any:
    """The front end insists on a real subclass of its own base, and is there when it asks for one."""
    base = importlib.import_module(MODULE).StatLoggerBase
    asked = hook.guard(Parameters, base.record, "iteration_stats", "engine_idx") if enabled() else None
    hook.in_place = asked is not None

    class StatLogger(base):  # type: ignore[misc, valid-type]
        """Records tokens; prints nothing."""

        def __init__(self, vllm_config: Any, engine_index: int = 0, *args: Any, **kwargs: Any) -> None:
            self.engine_index = engine_index
            self._vllm_config = vllm_config
            self._frontends: dict[int, Frontend] = {}

        def _frontend(self, engine: int) -> Frontend:
            if engine not in self._frontends:
                self._frontends[engine] = Frontend(self._vllm_config, engine)
            return self._frontends[engine]

        def record(self, *args: Any, **kwargs: Any) -> None:
            if asked is not None:
                hook.guard(self._record, (self, *args), kwargs)

        def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            engine = asked.get("engine_idx", args, kwargs)
            if not isinstance(engine, int):
                raise Unfit(f"engine_idx is a {type(engine).__name__}")
            self._frontend(engine).record(asked.get("iteration_stats", args, kwargs))

        def log(self, *args: Any, **kwargs: Any) -> None:
            """Nothing to print."""

        def log_engine_initialized(self, *args: Any, **kwargs: Any) -> None:
            if asked is not None:
                hook.guard(lambda: self._frontend(self.engine_index).open())

    for name in getattr(StatLogger, "__abstractmethods__", ()):  # of a newer engine
        setattr(StatLogger, name, lambda self, *args, **kwargs: None)
    return abc.update_abstractmethods(StatLogger) if hasattr(abc, "update_abstractmethods") else StatLogger

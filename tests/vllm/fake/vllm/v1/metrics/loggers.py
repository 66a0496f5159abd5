# SPDX-License-Identifier: Apache-2.0
from abc import ABC, abstractmethod

from vllm import CHANGE
from vllm.plugins import load_plugins_by_group


class StatLoggerBase(ABC):
    @abstractmethod
    def __init__(self, vllm_config, engine_index=0): ...

    if CHANGE == "record:renamed":
        @abstractmethod
        def record(self, scheduler_stats, frontend_stats, mm_cache_stats=None, engine_idx=0): ...
    elif CHANGE == "record:added":
        @abstractmethod
        def record(self, scheduler_stats, extra, iteration_stats, mm_cache_stats=None, engine_idx=0): ...
    else:
        @abstractmethod
        def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): ...

    @abstractmethod
    def log_engine_initialized(self): ...

    def log(self):
        pass

    if CHANGE == "record:abstract":
        @abstractmethod
        def record_sleep_state(self, sleep=0): ...


def load_stat_logger_plugin_factories():
    factories = []
    for name, kind in load_plugins_by_group("vllm.stat_logger_plugins").items():
        if not isinstance(kind, type) or not issubclass(kind, StatLoggerBase):
            raise TypeError(f"Stat logger plugin {name!r} must be a subclass of StatLoggerBase (got {kind!r}).")
        factories.append(kind)
    return factories

# SPDX-License-Identifier: Apache-2.0
"""Calls back when a module has been imported by somebody else. Nothing is imported because of us: a front end never
needs the worker's modules and must not load them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Optional, Sequence

Callback = Callable[[ModuleType], None]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: asks the others for the modules in question and makes their loader call back."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[Callback]] = {}
        self._busy: set[str] = set()

    def find_spec(self, fullname: str, path: Optional[Sequence[str]],
                  target: Optional[ModuleType] = None) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname not in self.wanted or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec: Optional[importlib.machinery.ModuleSpec] = None
                if find is not None and finder is not self:
                    spec = find(fullname, path, target)
                if spec is not None:
                    self._observe(spec.loader, self.wanted[fullname])
                    return spec
            return None
        finally:
            self._busy.discard(fullname)

    @staticmethod
    def _observe(loader: Any, callbacks: list[Callback]) -> None:
        """The loader stays the object that it is, as inspect and linecache ask it for the source."""
        if not hasattr(loader, "exec_module"):
            return
        execute: Callable[[ModuleType], None] = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)
            execute(module)
            for callback in callbacks:
                callback(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:  # such a loader cannot be observed; its module stays as it is
            pass


_finder = _Finder()


def when_imported(name: str, callback: Callback) -> None:
    """Calls back with the module: now if it is there, else when it has been imported. The callback must not raise."""
    callbacks = _finder.wanted.setdefault(name, [])
    if callback in callbacks:
        return
    callbacks.append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    module = sys.modules.get(name)
    if module is not None:
        callback(module)

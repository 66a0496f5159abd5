# SPDX-License-Identifier: Apache-2.0
"""python -m wideep.vllm: does each hook fit the vLLM that is installed here? Its modules are imported, no engine is
started and no device is needed. Exit status 1 if a hook is off, or
there is no vLLM."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging

from . import register
from ._hooks import hooks
from ._settings import enabled


def _version() -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def main() -> int:
    logging.getLogger("vllm.wideep").setLevel(logging.ERROR)  # the table says it
    register()
    from . import _tokens
    if not enabled():
        print("WIDEEP_VLLM switches all hooks off")
        return 0
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed for this Python")
        return 1
    print(f"vLLM {_version()}")
    missing = {}
    for module in dict.fromkeys(hook.module for hook in hooks):
        try:
            importlib.import_module(module)
        except Exception as error:  # pylint: disable=broad-except
            missing[module] = f"not there: {error}"
    if _tokens.MODULE not in missing:
        _tokens.hook.guard(_tokens.stat_logger_class)
    for hook in hooks:
        print(f"{hook.name:26}{missing.get(hook.module, hook.state)}")
    return int(any(not hook.on for hook in hooks))


if __name__ == "__main__":
    raise SystemExit(main())

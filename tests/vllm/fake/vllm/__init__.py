# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vLLM: the modules, functions, signatures, tensors and order of calls that the plugin meets there,
written from what is known of them, with none of the serving. FAKE_CHANGE alters one function as a later version might."""

import os

CHANGE = os.environ.get("FAKE_CHANGE", "")


def change(owner, name, **ways):
    """FAKE_CHANGE=NAME:WAY puts ways[WAY] in the place of that function of a module's globals or of a class. `gone`
    leaves it reachable for the engine alone, as if it had got another name."""
    wanted, _, way = CHANGE.partition(":")
    if wanted != name:
        return
    table = owner if isinstance(owner, dict) else None
    function = table[name] if table is not None else vars(owner)[name]
    put = table.__setitem__ if table is not None else lambda key, value: setattr(owner, key, value)
    if way == "gone":
        put("renamed_" + name, function)
        if table is not None:
            del table[name]
        else:
            delattr(owner, name)
    else:
        put(name, ways[way](function))


def found(owner, name):
    """How the engine calls a function that may have been renamed."""
    get = owner.get if isinstance(owner, dict) else lambda key: getattr(owner, key, None)
    return get(name) or get("renamed_" + name)

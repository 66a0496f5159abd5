# SPDX-License-Identifier: Apache-2.0
"""Wrapping an engine's functions so that the engine cannot notice.

A hook is one thing that is watched, through one or more functions. The first time that it does not fit the installed
engine, or raises, it says so in one line and is off from then on; the engine's own function runs in any case, once.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any, Callable, Optional, Sequence

# A child of the engine's logger: its handlers and level hold for us, without anything of it being imported.
log = logging.getLogger("vllm.wideep")

_WRAPPED = "__wideep_wrapped__"


class Unfit(Exception):
    """The installed engine is not as this hook knows it."""


hooks: list[Hook] = []  # all that this process knows


class Hook:
    """One thing that is watched. `loses` says in the log what will be missing when it is off; `module` is where the
    functions are that it wraps."""

    def __init__(self, name: str, loses: str, module: str) -> None:
        self.name = name
        self.loses = loses
        self.module = module
        self.on = True
        self.in_place = False
        self.why = ""  # it is off
        hooks.append(self)
        self.cleanup: Optional[Callable[[], None]] = None  # what must not be left standing when it goes off

    def off(self, why: object) -> None:
        if self.on:
            self.on = False
            if self.cleanup:
                try:
                    self.cleanup()
                except Exception as error:  # pylint: disable=broad-except
                    log.debug("wideep: after %s: %r", self.name, error)
            text = " ".join(str(why).split()) or type(why).__name__
            self.why = text if isinstance(why, (str, Unfit)) else f"{type(why).__name__}: {text}"
            log.warning("wideep: %s hook is off, %s: %s", self.name, self.loses, self.why)

    def guard(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls it while the hook is on; None if it is off or fails."""
        if self.on:
            try:
                return function(*args)
            except Exception as error:  # pylint: disable=broad-except
                self.off(error)
        return None

    def fit(self, put_in_place: Callable[[], Any]) -> None:
        """Wraps what it wraps; off if that is not there."""
        self.guard(put_in_place)
        self.in_place = self.on

    @property
    def state(self) -> str:
        if not self.on:
            return f"off: {self.why}"
        return "in place" if self.in_place else f"waiting: nobody has imported {self.module}"


def summary() -> str:
    """One line: which hooks work, and which do not. One whose module never comes has nothing to say by itself."""
    groups = {"in place": [hook.name for hook in hooks if hook.on and hook.in_place],
              "off": [hook.name for hook in hooks if not hook.on],
              "not imported by this engine": [hook.name for hook in hooks if hook.on and not hook.in_place]}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items() if names)


class Parameters:
    """The arguments of a call by name, wherever the engine's version has them in its signature. Much cheaper than
    inspect.Signature.bind()."""

    def __init__(self, function: Callable[..., Any], *required: str) -> None:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise Unfit(f"{function!r} has no signature") from error
        missing = [name for name in required if name not in signature.parameters]
        if missing:
            raise Unfit(f"{getattr(function, '__qualname__', function)}() has no argument {', '.join(missing)}")
        self._at = {name: i for i, (name, parameter) in enumerate(signature.parameters.items())
                    if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)}
        self._default = {name: None if parameter.default is parameter.empty else parameter.default
                         for name, parameter in signature.parameters.items()}

    def get(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """None if the function has no such argument."""
        if name in kwargs:
            return kwargs[name]
        at = self._at.get(name)
        return args[at] if at is not None and at < len(args) else self._default.get(name)


def find(owner: Any, name: str) -> Callable[..., Any]:
    """A function of a module or class that a hook needs."""
    function: Optional[Callable[..., Any]] = getattr(owner, name, None)
    if function is None or not callable(function):
        raise Unfit(f"{getattr(owner, '__name__', owner)} has no function {name}")
    return function


class Wrapper:
    """Around one function. Subclasses override what they need; `before` returns what `after` and `failed` are given."""

    hook: Hook
    required: Sequence[str] = ()

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.parameters = Parameters(function, *self.required)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs before the engine's function; what it raises switches the hook off."""
        return None

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Runs when the engine's function has returned."""

    def failed(self, token: Any) -> None:
        """Runs when the engine's function has raised."""

    def wrapped(self) -> Callable[..., Any]:
        function, hook = self.function, self.hook

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not hook.on:
                return function(*args, **kwargs)
            token = hook.guard(self.before, args, kwargs)
            try:
                result = function(*args, **kwargs)
            except BaseException:
                hook.guard(self.failed, token)
                raise
            hook.guard(self.after, token, args, kwargs, result)
            return result

        setattr(call, _WRAPPED, self)
        return call


def wrap(owner: Any, name: str, kind: type[Wrapper]) -> None:
    """Puts a wrapper in the place of owner.name, once of its kind. Raises Unfit."""
    function = find(owner, name)
    inner: Any = function
    while inner is not None:
        if type(getattr(inner, _WRAPPED, None)) is kind:
            return
        inner = getattr(inner, "__wrapped__", None)
    setattr(owner, name, kind(function).wrapped())


def served_name(vllm_config: Any) -> str:
    """The label model_name of the engine's own metrics."""
    model_config = vllm_config.model_config
    name: Optional[Any] = getattr(model_config, "served_model_name", None) or getattr(model_config, "model", None)
    if isinstance(name, (list, tuple)):
        name = name[0]
    if not isinstance(name, str) or not name:
        raise Unfit("the configuration names no served model")
    return name

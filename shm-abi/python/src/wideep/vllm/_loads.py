# SPDX-License-Identifier: Apache-2.0
"""Expert loads: EplbState.step(), which every rank calls once per forward pass, and the maps of experts."""

from __future__ import annotations

import collections
import threading
from typing import Any, Callable, Optional, Sequence, Union

from . import _copies, _engine
from ._hooks import Hook, Unfit, Wrapper, find, log, wrap
from ._segments import segments
from ._settings import record_always

MODULE = "vllm.distributed.eplb.eplb_state"

hook = Hook("eplb", "expert loads are not recorded", MODULE)
maps_hook = Hook("eplb-maps", "the map of experts is copied from the device with each recorded pass", MODULE)

_engine.eplb_hooks.append(hook)

_TRACKER = "_wideep_tracker"
_MODEL = "_wideep_model"

Loads = Union[None, memoryview, _copies.Arrived]


class Model:
    """The tensors of one model: the target, or a draft model."""

    def __init__(self, index: int, state: Any) -> None:
        self.index = index
        self.state = state
        self.tensor = state.expert_load_pass
        layers, physical = (int(n) for n in self.tensor.shape)
        self.shape = (layers, physical)
        self.logical = int(state.model.num_logical_experts)
        self._ring = None if _copies.on_host(self.tensor) else _copies.Ring(self.tensor)
        # A dummy rank's loads: no token. As they say nothing of any expert, they are their own map.
        self.zeros = memoryview(bytes(4 * layers * physical)).cast("i", (layers, physical))
        self._map: Optional[_copies.Arrived] = None  # for the next pass; None: the device must be asked
        self._map_tensor: Any = None  # whose contents that were, at this version
        self._map_version: Optional[int] = None
        self.map()  # memory for it is had while the engine warms up

    def loads(self) -> Optional[_copies.Arrived]:
        """Those of the pass that has just run; None when no memory is free to copy them to."""
        if self._ring is None:
            return _copies.Arrived(self.tensor.numpy())
        return self._ring.start(self.tensor)

    def map(self) -> _copies.Arrived:
        """The map by which the pass that has just run was routed. Never written to again: passes under way hold it."""
        self.check_map()
        if self._map is None or not maps_hook.on:
            self._remember()
            self._map = _copies.once(self._map_tensor)
        return self._map

    def check_map(self) -> None:
        """The engine may have written to its map, or replaced it, in other ways than those that are watched: so it does
        when a rank of the group has died."""
        tensor = self.state.physical_to_logical_map
        if tensor is not self._map_tensor or _copies.version(tensor) != self._map_version:
            self._map = None

    def _remember(self) -> None:
        self._map_tensor = self.state.physical_to_logical_map
        self._map_version = _copies.version(self._map_tensor)

    def committed(self, new: Any, layer: Optional[int]) -> None:
        """The engine has put a new map in place: of all layers, or of one, where older versions give all, too."""
        known, self._map = self._map, None
        self._remember()
        if not _copies.on_host(new):
            return
        if layer is None:
            if tuple(new.shape) == self.shape:
                self._map = _copies.Arrived(new.numpy().copy())
        elif known is not None and known.arrived():
            self._map = _copies.Arrived(known.array.copy())
            self._map.array[layer] = new.numpy() if len(new.shape) == 1 else new.numpy()[layer]


class Tracker:
    """The passes of one EplbState. Their number is our own count: the engine's counters start over at times, or run
    ahead, while this one is alike on all ranks because they all call step() alike."""

    def __init__(self, state: Any) -> None:
        self.rank = _engine.rank()  # of a forked child is another one
        self.state = state
        self.lost = 0
        self._lock = threading.Lock()  # of the queue: the engine's thread and the one that flushes
        self._queue: collections.deque[tuple[int, int, int, Loads, Any]] = collections.deque()
        self._start()

    def _start(self) -> None:
        self.passes = 0
        self.interval = int(getattr(self.state, "expert_rearrangement_step_interval", 0))
        self.members = _models(self.state)
        self._discard = True

    def models(self, name: str) -> list[tuple[str, int, int, int]]:
        """For the segment."""
        drafts = ["", ":draft"] + [f":draft{i}" for i in range(2, len(self.members))]
        return [(name + suffix, model.shape[0], model.logical, model.shape[1])
                for model, suffix in zip(self.members, drafts)]

    def discard_next(self) -> None:
        """The next recorded pass may hold more than its own tokens. It is left out on all ranks alike, also where it
        was a dummy one."""
        self._discard = True

    def restart(self) -> None:
        """Another group, or other shapes: passes are counted anew, in another segment."""
        with self._lock:
            self._flush()
            self._queue.clear()
        self._start()
        self.rank.renew()

    def step(self, is_dummy: bool, recorded: bool) -> None:
        """One forward pass, before the engine has looked at its loads."""
        self._check_tensors()
        number, self.passes = self.passes, self.passes + 1
        if not self.rank.serving:
            return
        engine_step = int(self.state.expert_rearrangement_step)
        if recorded and self._discard:
            self._discard = recorded = False
        waiting = False
        for model in self.members:
            loads: Loads = None
            where: Any = None
            if recorded and is_dummy:
                loads, where = model.zeros, model.zeros
            elif recorded:
                loads, where = model.loads(), model.map()
                if loads is None:
                    self._count_lost()
            with self._lock:
                self._queue.append((number, engine_step, model.index, loads, where))
                waiting = self._flush()
        if waiting:
            segments().wake()

    def flush(self) -> bool:
        """Records what has arrived; True if more is under way. Any thread."""
        if not self.rank.serving:
            return bool(self._queue)  # while graphs are captured, asking for an event would spoil them
        with self._lock:
            return bool(hook.guard(self._flush))

    def _flush(self) -> bool:
        """In order of passes, so the first that is still under way holds up the later ones."""
        while self._queue:
            number, engine_step, index, loads, where = self._queue[0]
            if isinstance(loads, _copies.Arrived):
                if not (loads.arrived() and where.arrived()):
                    return True
                self._record(number, engine_step, index, loads.array, where.array)
                loads.release()
            else:
                self._record(number, engine_step, index, loads, where)
            self._queue.popleft()
        return False

    def _record(self, number: int, engine_step: int, index: int, loads: Any, where: Any) -> None:
        def call(writer: Any) -> None:
            if loads is None:
                writer.skip_pass(pass_=number, step=engine_step, model=index)
            else:
                writer.record_pass(loads, where, pass_=number, step=engine_step, model=index)

        self.rank.record(call)

    def _count_lost(self) -> None:
        self.lost += 1
        if self.lost == 1:
            log.warning("wideep: the device is %d passes behind: expert loads of a pass are lost, and it is incomplete",
                        _copies.BUFFERS)

    def _check_tensors(self) -> None:
        """Elastic EP puts others in their place."""
        if len(self.state.model_states) != len(self.members):
            self.restart()
        for model in self.members:
            tensor = model.state.expert_load_pass
            if tensor is not model.tensor:
                if tuple(tensor.shape) != model.shape:
                    self.restart()
                    return
                model.tensor = tensor
                self._discard = True


def _models(state: Any) -> list[Model]:
    """The target first. The engine knows its draft models earlier, and they may have the target's name."""
    config = _engine.rank().vllm_config
    if config is None:
        raise Unfit("no configuration was seen")
    target = config.model_config.compute_hash()
    keys: list[Any] = list(state.model_states)
    if target not in keys:
        target = keys[-1]
    keys.sort(key=lambda key: bool(key != target))
    models = [Model(i, state.model_states[key]) for i, key in enumerate(keys)]
    for model in models:
        setattr(model.state, _MODEL, model)
    return models


def tracker(state: Any) -> Tracker:
    """Of an EplbState, in this process."""
    known: Optional[Tracker] = getattr(state, _TRACKER, None)
    current = _engine.rank()
    if known is None or known.rank is not current:
        known = Tracker(state)
        setattr(state, _TRACKER, known)
        if current.loads is not None:
            current.renew()
        current.loads = known
        current.open()
    return known


class Step(Wrapper):
    """EplbState.step()"""

    hook = hook
    required: Sequence[str] = ("is_dummy", "is_profile")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = args[0]
        if self.parameters.get("is_profile", args, kwargs):
            if _engine.rank().vllm_config is not None:
                tracker(state)  # allocates memory, at the right time
            return
        known = tracker(state)
        recorded = state._should_record_current_step(log_stats=bool(self.parameters.get("log_stats", args, kwargs)))
        if not isinstance(recorded, bool):
            raise Unfit(f"_should_record_current_step() returns {type(recorded).__name__}")
        is_dummy = bool(self.parameters.get("is_dummy", args, kwargs))
        if not is_dummy:
            _engine.rank().real_pass()
        known.step(is_dummy, recorded)


class Commit(Wrapper):
    """_commit_eplb_maps() and _commit_eplb_maps_for_layer()"""

    hook = maps_hook
    required: Sequence[str] = ("model_state", "new_physical_to_logical_map")

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model = getattr(self.parameters.get("model_state", args, kwargs), _MODEL, None)
        if model is not None:
            model.check_map()
        return model

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        get: Callable[..., Any] = self.parameters.get
        if token is not None:
            layer = get("layer", args, kwargs)
            token.committed(get("new_physical_to_logical_map", args, kwargs), None if layer is None else int(layer))


class CommitLayer(Commit):
    """_commit_eplb_maps_for_layer()"""

    required: Sequence[str] = (*Commit.required, "layer")


def _always(state_class: Any) -> None:
    """Every pass is recorded, while the hook is on."""
    asked = find(state_class, "_should_record_current_step")

    def should_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        return True if hook.on else asked(self, *args, **kwargs)

    state_class._should_record_current_step = should_record


def imported(module: Any) -> None:
    """MODULE"""
    def step() -> None:
        state_class = find(module, "EplbState")
        find(state_class, "_should_record_current_step")
        wrap(state_class, "step", Step)
        if record_always():
            _always(state_class)

    def maps() -> None:
        wrap(module, "_commit_eplb_maps", Commit)
        wrap(module, "_commit_eplb_maps_for_layer", CommitLayer)

    hook.fit(step)
    maps_hook.fit(maps)

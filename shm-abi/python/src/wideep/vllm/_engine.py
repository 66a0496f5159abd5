# SPDX-License-Identifier: Apache-2.0
"""What this process is: which engine, which rank of which group, of which model."""

from __future__ import annotations

import hashlib
import os
import sys
import weakref
from typing import Any, Callable, Optional

from ._hooks import Hook, Unfit, Wrapper, find, log, served_name, summary, wrap
from ._segments import Segment, segments

GROUPS = "vllm.distributed.parallel_state"

eplb_hooks: list[Hook] = []  # those that will say how many layers and experts there are


def group_id(parallel_config: Any) -> int:
    """Alike on all ranks that run collectives together, other for another group; 0 for an engine by itself. The size
    is part of it, so that a group which grew is another one."""
    size = getattr(parallel_config, "data_parallel_size", 1)
    if size == 1:
        return 0
    text = f"{getattr(parallel_config, 'data_parallel_master_ip', '')}|" \
           f"{getattr(parallel_config, 'data_parallel_master_port', '')}|{size}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") or 1


def _rank_and_size(getter: str) -> Optional[tuple[int, int]]:
    """Of one of the engine's process groups; None where there is no such group."""
    function = getattr(sys.modules.get(GROUPS), getter, None)
    if function is None:
        return None
    try:
        group = function()
    except AssertionError:  # how the engine says that it has none
        return None
    return int(group.rank_in_group), int(group.world_size)


class Rank:
    """The rank that this process runs. Its segment is opened once the engine is warm, when all is known that it has
    to say about itself; what comes before is lost."""

    def __init__(self) -> None:
        self.warm = False  # the engine has been ready to serve
        self.cold = 0  # > 0 while it warms up or captures graphs
        self.dummy = 0  # > 0 within a dummy run of any kind
        self.dbo_passes = 0
        self.loads: Any = None  # the tracker of expert loads, where there are any
        self.segment: Optional[Segment] = None
        self._owner: Optional[Callable[[], Any]] = None  # the worker or runner, whose configuration may be replaced
        self._left_out = False  # a stage of a pipeline that is not recorded

    @property
    def writer(self) -> Any:
        """None while there is no segment."""
        if self.segment is None:
            self.open()
        return self.segment.writer if self.segment is not None else None

    def record(self, call: Callable[[Any], Any]) -> None:
        """Calls it with the writer of this rank's segment, if there is one by now."""
        if self.segment is None:
            self.open()
        if self.segment is not None:
            self.segment.record(call)

    @property
    def vllm_config(self) -> Any:
        owner = self._owner() if self._owner else None
        return getattr(owner, "vllm_config", None)

    @property
    def serving(self) -> bool:
        return self.warm and not self.cold

    def real_pass(self) -> None:
        """Serves, also where a worker of another kind has its own way to warm up."""
        if not self.cold:
            self.warm = True

    def seen(self, owner: Any) -> None:
        """An object of the engine with a configuration."""
        if getattr(owner, "vllm_config", None) is None:
            raise Unfit(f"{type(owner).__name__} has no vllm_config")
        try:
            self._owner = weakref.ref(owner)
        except TypeError:
            self._owner = lambda: owner

    def open(self) -> None:
        """Opens the segment, unless the engine is still starting."""
        config = self.vllm_config
        if self.segment is not None or self._left_out or not self.serving or config is None:
            return
        stage, _ = _rank_and_size("get_pp_group") or (0, 1)
        if stage > 0:
            self._left_out = True
            log.warning("wideep: stage %d of the pipeline is not recorded: it has the numbers of stage 0", stage)
            return
        if self._expects_loads(config) and self.loads is None:
            return  # the first pass will tell how many layers and experts there are
        arguments = self._arguments(config)
        log.info("wideep: hooks %s", summary())
        self.segment = segments().add(f"rank {arguments['rank']} of engine {arguments['engine']}",
                                      lambda: _writer(dict(arguments)))
        if self.loads is not None:
            self.segment.flush = self.loads.flush

    def renew(self) -> None:
        """Another segment: ranks or shapes have changed."""
        if self.segment is not None:
            segments().remove(self.segment)
            self.segment = None

    @staticmethod
    def _expects_loads(config: Any) -> bool:
        return bool(getattr(config.parallel_config, "enable_eplb", False)) and any(hook.on for hook in eplb_hooks)

    def _arguments(self, config: Any) -> dict[str, Any]:
        parallel = config.parallel_config
        tp_rank, tp_size = _rank_and_size("get_tp_group") or (0, getattr(parallel, "tensor_parallel_size", 1))
        rank, ep_size = _rank_and_size("get_ep_group") or (tp_rank, tp_size)
        dp_rank = int(getattr(parallel, "data_parallel_rank", 0))
        dp_size = int(getattr(parallel, "data_parallel_size", 1))
        name = served_name(config)
        return {
            # Engines of a dense model are independent: each has rank 0 of 1, and its number elsewhere.
            "engine": dp_rank if dp_size > 1 else int(getattr(parallel, "data_parallel_index", dp_rank)),
            "rank": rank, "ep_size": ep_size, "tp_rank": tp_rank, "tp_size": tp_size,
            "dp_rank": dp_rank, "dp_size": dp_size,
            "group": group_id(parallel),
            "loads_replicated": tp_size > 1 and not getattr(parallel, "use_sequence_parallel_moe", False),
            "models": self.loads.models(name) if self.loads is not None else [(name,)],
            "rearrangement_interval": self.loads.interval if self.loads is not None else 0,
        }


def _writer(arguments: dict[str, Any]) -> Any:
    import wideep
    models = [wideep.Model(*model) for model in arguments.pop("models")]
    return wideep.Writer(models=models, **arguments)


_rank = Rank()


def rank() -> Rank:
    """Of this process."""
    return _rank


def _forget() -> None:
    """In a forked child, which is another rank."""
    global _rank  # pylint: disable=global-statement
    _rank = Rank()


os.register_at_fork(after_in_child=_forget)


# ---- what tells that the engine is not at its real work --------------------------------------------------------

warm_up = Hook("warm-up", "the first recorded pass may hold loads of the warm-up", "vllm.v1.worker.gpu_worker")
dummy_run = Hook("dummy-run", "DBO is not recorded", "vllm.v1.worker.gpu_model_runner")
dummy_run_newer = Hook("dummy-run (newer runner)", "DBO is not recorded", "vllm.v1.worker.gpu.model_runner")


class WarmUp(Wrapper):
    """Worker.compile_or_warm_up_model(): after it the engine serves."""

    hook = warm_up

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = rank()
        current.seen(args[0])
        current.cold += 1
        return current

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.failed(token)
        if token.loads is not None:
            token.loads.discard_next()
        token.warm = True
        token.open()

    def failed(self, token: Any) -> None:
        if token is not None:
            token.cold -= 1


class DummyRun(Wrapper):
    """GPUModelRunner._dummy_run(): idle ranks, graph capture, profiling, warm-up."""

    hook = dummy_run

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = rank()
        if current.vllm_config is None:
            current.seen(args[0])
        current.dummy += 1
        return current

    def after(self, token: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.failed(token)

    def failed(self, token: Any) -> None:
        if token is not None:
            token.dummy -= 1


class DummyRunNewer(DummyRun):
    """The same of the newer runner."""

    hook = dummy_run_newer


def worker_imported(module: Any) -> None:
    """vllm.v1.worker.gpu_worker"""
    warm_up.fit(lambda: wrap(find(module, "Worker"), "compile_or_warm_up_model", WarmUp))


def runner_imported(module: Any) -> None:
    """vllm.v1.worker.gpu_model_runner"""
    dummy_run.fit(lambda: wrap(find(module, "GPUModelRunner"), "_dummy_run", DummyRun))


def newer_runner_imported(module: Any) -> None:
    """vllm.v1.worker.gpu.model_runner"""
    dummy_run_newer.fit(lambda: wrap(find(module, "GPUModelRunner"), "_dummy_run", DummyRunNewer))

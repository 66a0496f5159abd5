# SPDX-License-Identifier: Apache-2.0
"""Writes and reads the shared-memory segments of wideep-exporter.

`Writer` is a rank or a front end of an engine; `read_segments()` looks at what writers left. README.md of the
distribution has units, shapes, errors and costs.
"""

import contextlib
import errno
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import _binding
from ._binding import WideepError
from ._version import __version__

__all__ = ["DboRecord", "EplbRecord", "Model", "Segment", "SegmentModel", "WideepError", "Writer", "__version__",
           "read_segment", "read_segments"]

Path = Union[str, "os.PathLike[str]"]


class Model(NamedTuple):
    """A served model of a rank, by the name that the engine's own metrics carry. Dense models have no MoE layers."""

    name: str
    layers: int = 0
    logical_experts: int = 0  # per layer
    physical_experts: int = 0  # per layer over the whole group; 0: as many as logical ones


def _directory(directory: Optional[Path]) -> Path:
    return directory or os.environ.get("WIDEEP_SHM_DIR") or "/dev/shm"


class Writer(_binding.Writer):
    """One segment, written by this process alone. Errors of the segment are WideepError.

    Creating it may wait for up to two seconds while others start under the same identity.
    """

    def __init__(self, *, engine: int, rank: int = 0, role: str = "rank", models: Sequence[Model], ep_size: int = 1,
                 tp_rank: int = 0, tp_size: int = 1, dp_rank: int = 0, dp_size: int = 1, group: int = 0,
                 rearrangement_interval: int = 0, loads_replicated: bool = False, directory: Optional[Path] = None,
                 instance: Optional[str] = None) -> None:
        super().__init__(_directory(directory), instance or os.environ.get("WIDEEP_INSTANCE") or "default", role,
                         tuple(models), engine, rank, ep_size, tp_rank, tp_size, dp_rank, dp_size, group,
                         rearrangement_interval, loads_replicated)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}{' (closed)' if self.closed else ''}>"

    @contextlib.contextmanager
    def rearrangement(self, *, model: int = 0, mode: str = "sync") -> Iterator[None]:
        """Around a rearrangement of the experts. One that ends in an exception was given up, and is not counted."""
        self.rearrangement_begin(model=model, mode=mode)
        try:
            yield
        except BaseException:
            # The exception is the news: that the flag could not be taken back is none beside it.
            with contextlib.suppress(WideepError):
                self.rearrangement_abort(model=model)
            raise
        self.rearrangement_end(model=model)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class EplbRecord:
    """One layer of one recorded pass."""

    pass_: int
    time_ns: int  # CLOCK_BOOTTIME
    model: int
    layer: int
    step: Optional[int]  # the engine's passes since the last rearrangement
    reduced: bool  # the figures are of the whole group; else of what this rank routed
    rebalancing: bool
    avg: float  # tokens per EP rank
    max_: float
    balancedness: float  # avg / max_
    rearrangement_duration_ns: int
    rank_tokens: List[int]  # by EP rank; zeros where reduced


@dataclass(frozen=True)
class DboRecord:
    """What became of Dual Batch Overlap in one pass."""

    pass_: int
    time_ns: int  # CLOCK_BOOTTIME
    phase: str
    outcome: str
    ubatch_tokens: List[int]


@dataclass(frozen=True)
class SegmentModel:
    name: str
    layers: int
    logical_experts: int
    physical_experts: int
    passes: int  # number of the newest pass + 1, 0: none yet
    pass_time_ns: int  # CLOCK_BOOTTIME
    rebalancing_since_ns: int  # CLOCK_BOOTTIME, 0: no rearrangement is under way
    rebalancing_mode: Optional[str]
    since_rearrangement: int  # passes
    recording: str  # was the newest pass recorded: "unknown", "yes" or "no"
    recorded_time_ns: int  # CLOCK_BOOTTIME, 0: never
    recorded_passes: int
    rearrangement_sum_ns: int
    rearrangement_buckets: Dict[str, List[int]]  # by mode; not cumulative
    rank_tokens: Optional[memoryview]  # uint64 [layers][ep_size]
    expert_tokens: Optional[memoryview]  # uint64 [layers][logical_experts]


@dataclass(frozen=True)
class Segment:
    """What a file held when it was read: word by word, so that words of one moment may differ by a pass."""

    path: str
    state: str  # "live", "dead" or "closed"
    role: str  # "rank" or "frontend"
    instance: str
    engine: int
    rank: int
    ep_size: int
    tp_rank: int
    tp_size: int
    dp_rank: int
    dp_size: int
    loads_replicated: bool
    group: int
    instance_id: int
    lineage: int
    start_realtime_ns: int
    pid: int  # in the writer's pid namespace
    activity: int
    rearrangement_interval: int
    prompt_tokens: int
    generation_tokens: int
    dbo_passes: Dict[Tuple[str, str], int]  # by (phase, outcome)
    ubatch_sums: List[int]  # tokens by ubatch index
    ubatch_buckets: List[List[int]]  # by ubatch index; not cumulative
    models: List[SegmentModel]
    eplb: List[EplbRecord] = field(repr=False)  # those that the ring still holds, oldest first
    dbo: List[DboRecord] = field(repr=False)

    @property
    def name(self) -> str:
        """The file name that belongs to this identity."""
        kind = "r" if self.role == "rank" else "fe"
        return f"wideep.{self.instance}.e{self.engine}.{kind}{self.rank}"


def read_segment(path: Path) -> Segment:
    """Reads one file; WideepError with errno EBADMSG when it is no segment.

    A file that somebody truncates at this moment kills the process with SIGBUS: for tests and notebooks.
    """
    fields: Dict[str, Any] = _binding.read(path)
    fields["models"] = [SegmentModel(**model) for model in fields["models"]]
    fields["eplb"] = [EplbRecord(**record) for record in fields["eplb"]]
    fields["dbo"] = [DboRecord(**record) for record in fields["dbo"]]
    return Segment(**fields)


def read_segments(directory: Optional[Path] = None, instance: Optional[str] = None) -> List[Segment]:
    """All segments of a directory, or those of one instance, by name. Files that are none are left out; a directory that
    is missing or cannot be read is an OSError."""
    segments = []
    for name in sorted(os.listdir(_directory(directory))):
        if not name.startswith("wideep."):
            continue
        path = pathlib.Path(_directory(directory), name)
        try:
            segment = read_segment(path)
        except WideepError as error:
            # Removed meanwhile, or no segment: wideep-dump says why.
            if error.errno in (errno.ENOENT, errno.EBADMSG, errno.EINVAL, errno.ELOOP):
                continue
            raise
        if segment.name == path.name and instance in (None, segment.instance):
            segments.append(segment)
    return segments

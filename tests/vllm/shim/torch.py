# SPDX-License-Identifier: Apache-2.0
"""As much of torch as the fake engine and the plugin use, on numpy, for machines without it.

A device `cuda` behaves as a GPU does: what is done to its tensors is put on a stream and done later, in order, by
somebody else; whoever reads one from the host waits for the stream, which `sync_is_error` turns into an exception.
"""

import queue
import random
import threading
import time

import numpy

int32, int64, bool = numpy.int32, numpy.int64, numpy.bool_  # pylint: disable=redefined-builtin
sync_is_error = False
delay = 0.0  # of each piece of work on the stream, at most


class _Stream:
    def __init__(self):
        self.work, self.thread = queue.SimpleQueue(), None
        self.going = threading.Event()  # while it is not set, nothing gets done
        self.going.set()

    def put(self, function):
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
        self.work.put(function)

    def _run(self):
        while True:
            function = self.work.get()
            self.going.wait()
            if delay:
                time.sleep(random.random() * delay)
            function()

    def wait(self):
        if sync_is_error:
            raise RuntimeError("called a synchronizing CUDA operation")
        done = threading.Event()
        self.put(done.set)
        done.wait()


_stream = _Stream()


class Event:
    def __init__(self):
        self.done = threading.Event()

    def record(self):
        self.done.clear()
        _stream.put(self.done.set)

    def query(self):
        return self.done.is_set()


class cuda:  # pylint: disable=invalid-name
    Event = Event


class device:  # pylint: disable=invalid-name
    def __init__(self, kind):
        self.type = kind.type if isinstance(kind, device) else str(kind)


class Tensor:
    def __init__(self, array, where="cpu", versions=None):
        self.array, self.device = array, device(where)
        self.versions = versions or [0]  # of a tensor and its views

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)
    _version = property(lambda self: self.versions[0])

    def _do(self, function):
        self.versions[0] += 1
        if self.device.type == "cpu":
            function()
        else:
            _stream.put(function)
        return self

    def zero_(self):
        return self._do(lambda: self.array.fill(0))

    def fill_(self, value):
        return self._do(lambda: self.array.fill(value))

    def copy_(self, other, non_blocking=False):
        def copy():
            self.array[...] = other.array

        self.versions[0] += 1
        if self.device.type == other.device.type == "cpu":
            copy()
        else:
            _stream.put(copy)
            if not non_blocking:
                _stream.wait()
        return self

    def add_(self, other):
        array = other.array.copy() if other.device.type == "cpu" else other.array

        def add():
            self.array += array

        return self._do(add)

    def cpu(self):
        if self.device.type != "cpu":
            _stream.wait()
        return Tensor(self.array.copy())

    def to(self, where):
        return Tensor(self.array.copy(), where) if device(where).type != self.device.type else self

    def numpy(self):
        if self.device.type != "cpu":
            raise TypeError("can't convert cuda device type tensor to numpy")
        return self.array

    def tolist(self):
        return self.cpu().array.tolist()

    def item(self):
        return self.cpu().array.item()

    def __getitem__(self, at):
        return Tensor(self.array[at], self.device, self.versions)

    def clone(self):
        assert self.device.type == "cpu"
        return Tensor(self.array.copy())


def zeros(*shape, dtype=int32, device="cpu"):  # pylint: disable=redefined-outer-name
    return Tensor(numpy.zeros(shape[0] if isinstance(shape[0], tuple) else shape, dtype), device)


def empty(*shape, dtype=int32, device="cpu", pin_memory=False):  # pylint: disable=redefined-outer-name
    del pin_memory
    tensor = zeros(*shape, dtype=dtype, device=device)
    tensor.array.fill(0x55555555)
    return tensor


def from_numpy(array):
    return Tensor(array)

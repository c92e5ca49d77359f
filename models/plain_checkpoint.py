"""Reads what torch.save wrote without running it.

A pickle is a program. Here its instructions are read as data. Those that build plain values and tensors are followed; any other
ends the reading. Nothing is looked up, imported or called. torch.load(weights_only=True) runs no code either, but a hostile file
can make it allocate without bound (it calls bytearray) or take exponential time (values that contain each other many times).
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import torch

MAX_INSTRUCTION_BYTES = 2**18  # the authors' file has 17 kB of them
MAX_RECORDS = 1000

_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}


class _Name(str):
    """A name that the pickle asks to import. It is never imported."""


_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_MARK = object()


def read_checkpoint(data: bytes, max_bytes: int) -> Any:
    """Dicts, lists, tuples, strings, numbers, None and CPU tensors of the file; tensors are copies.

    max_bytes: of all records together, unpacked. ValueError for anything else; its text continues a sentence after "it".
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > max_bytes or len(entries) > MAX_RECORDS:
            raise ValueError(f"would unpack to {unpacked / 2**20:.0f} MB in {len(entries)} parts")
        records = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    if records.get("byteorder", b"little") != b"little":
        raise ValueError("was written on a machine with another byte order")
    if "data.pkl" not in records or len(records["data.pkl"]) > MAX_INSTRUCTION_BYTES:
        raise ValueError("holds no list of its contents (data.pkl) of a usual size")
    return _Reader(records).value()


class _Reader:
    """Follows the instructions of data.pkl. Anything that does not fit raises."""

    def __init__(self, records: dict[str, bytes]):
        self.records = records
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def value(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.records["data.pkl"]):
            if opcode.name == "STOP":
                [value] = self.stack
                return value
            self._follow(opcode.name, argument)
        raise ValueError("ends in the middle")

    def _follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if not isinstance(self.memo[argument], str):
                # Else a few hundred bytes could describe more than any memory.
                raise ValueError("holds the same part several times")
            stack.append(self.memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._since_mark() if name == "TUPLE" else self._last(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._last(1) if name == "APPEND" else self._since_mark()
            _of_kind(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._last(2) if name == "SETITEM" else self._since_mark()
            keys = [_of_kind(key, (str, int)) for key in items[::2]]
            _of_kind(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_built(called, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of an OrderedDict: module versions
            _of_kind(stack[-1], dict)
        elif name != "PROTO":
            raise ValueError(f"holds program code ({name}), which is never run")

    def _last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _since_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, described: Any) -> torch.Tensor:
        """("storage", its type, the record's key, its device, number of values) -> [values], on the CPU."""
        kind, dtype_name, key, _, count = _of_kind(described, tuple)
        record, dtype = self.records[f"data/{_of_kind(key, str)}"], _DTYPES[_of_kind(dtype_name, _Name)]
        if kind != "storage" or count * dtype.itemsize != len(record):
            raise ValueError("holds tensors that contradict their sizes")
        return torch.frombuffer(bytearray(record), dtype=dtype) if count else torch.empty(0, dtype=dtype)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def _built(called: Any, arguments: Any) -> Any:
    """The result of the only two calls in a checkpoint of plain tensors."""
    if isinstance(called, _Name) and called == _DICT and arguments == ():
        return {}
    if not isinstance(called, _Name) or called != _TENSOR:
        raise ValueError(f"holds program code ({str(called)[:80] if isinstance(called, str) else 'a call'}), which is never run")
    storage, offset, shape, strides, *_ = _of_kind(arguments, tuple)
    _of_kind(storage, torch.Tensor)
    for number in (offset, *_of_kind(shape, tuple), *_of_kind(strides, tuple)):
        if type(number) is not int or not 0 <= number <= 2**40:
            raise ValueError("holds tensors of impossible sizes")
    if math.prod(shape) > storage.numel() - offset:
        raise ValueError("holds tensors that contradict their sizes")
    return storage.as_strided(shape, strides, offset)


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError("contradicts itself")
    return value

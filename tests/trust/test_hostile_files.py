"""Files of strangers: every one loads or is refused in words; no code of theirs runs, nothing is touched but the file itself.

The same for as long as one likes, guided by coverage: python tools/dev.py fuzz --minutes 10.
"""

from __future__ import annotations

import ast
import logging
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from hostile_files import GADGETS, Readers, as_checkpoint, gadget_pickle, mutated
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> Readers:
    return Readers(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=150)
@given(kind=st.sampled_from([("scale", 0), ("scale", 1), ("profile", 0)]), seed=st.integers(0, 2**32))
def test_a_changed_file_loads_or_is_refused(readers, kind, seed):
    name, number = kind
    readers.read(name, mutated(readers.seeds[name][number], random.Random(seed)))


@settings(max_examples=50)
@given(kind=st.sampled_from(["scale", "profile"]), data=st.binary(max_size=400))
def test_bytes_that_are_no_file_of_ours_are_refused(readers, kind, data):
    assert not readers.read(kind, data)
    assert not readers.read(kind, struct.pack("<Q", len(data)) + data)


def test_the_files_to_change_are_good_ones(readers):
    assert [readers.read(kind, seed) for kind, seeds in readers.seeds.items() for seed in seeds] == [True] * 3


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_gadget_in_a_pickle_is_ever_called(readers, tmp_path, gadget):
    """As a whole checkpoint, as a part of one, and as a bare pickle."""
    trace = tmp_path / "the code has run"
    called = gadget_pickle(gadget, str(trace))
    inside = b"\x80\x02}X\x06\x00\x00\x00config" + called[2:-1] + b"s."
    for data in (as_checkpoint(called), as_checkpoint(inside), called):
        assert not readers.read("scale", data)
        assert not readers.read("profile", data)
    assert not trace.exists()


def doubled(times: int) -> bytes:
    """A tuple of twice the tuple before, and so on, as the key of a dict: 2^times parts, in a few hundred bytes."""
    steps = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(times))
    return b"\x80\x02)q\x00" + steps + b"}h%cNs." % times


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85R.",
        b"\x80\x02ctorch\nzeros\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85R.",
        doubled(60),
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"(" * 200_000 + b".",
    ],
    ids=["2 GB asked for", "tensor of 8 GB", "2^60 parts", "lists in lists", "marks"],
)
def test_a_small_file_costs_little_memory_and_time(readers, instructions):
    tracemalloc.start()
    try:
        assert not readers.read("scale", as_checkpoint(instructions))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def safetensors_of(header: str) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode()


@pytest.mark.parametrize("kind", ["scale", "profile"])
@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        safetensors_of('{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        safetensors_of('{"x":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}}'),
        safetensors_of('{"x":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ],
    ids=["header of 2^63", "header of 2^64", "4 TB of tensors", "no values, 2^63 columns", "deep header"],
)
def test_sizes_that_are_only_claimed_are_not_allocated(readers, kind, data):
    assert not readers.read(kind, data)


def test_a_shard_larger_than_any_is_not_read_whole(readers, monkeypatch):
    from annealing_guidance_pack.training import shards

    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 1000)
    read = []
    monkeypatch.setattr(shards.safetensors.torch, "load", read.append)
    assert not readers.read("profile", readers.seeds["profile"][0])
    assert read == []


def test_no_part_that_users_get_imports_pickle_or_has_torch_read_one():
    root = Path(__file__).resolve().parents[2]
    for folder in ("models", "training", "nodes", "guidance", "plots"):
        paths = sorted((root / folder).rglob("*.py"))
        assert paths, folder
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.hub.load")), path
                assert not (isinstance(node, ast.Import) and any(alias.name == "pickle" for alias in node.names)), path
                assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle"), path

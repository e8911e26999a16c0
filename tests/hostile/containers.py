"""Hostile containers: zip archives with two contents, safetensors headers that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from .building import Record, archive, entry, pickle, safetensors, state, tensor, torch_file
from .case import Case, payload


def zips(canary: Path) -> Iterator[Case]:
    """Archives that two readers could read in two ways, or that unpack to more than they are."""
    good, evil = pickle(state(w=tensor())), payload(canary)
    data = Record("a/data/0", bytes(16))
    first = Record("a/data.pkl", good)

    def case(kind: str, made: bytes | Callable, said: str = "not a zip archive as torch writes it") -> Case:
        return Case(f"zip/{kind}.pth", made, said)

    yield case("twice", archive([first, Record("a/data.pkl", evil), data]), "is there twice")
    yield case("twice_reversed", archive([Record("a/data.pkl", evil), first, data]), "is there twice")
    yield case(
        "two_names", archive([Record("a/x", evil, central_name="a/data.pkl"), data]), "differently in its two headers"
    )
    yield case("hidden", archive([Record("a/data.pkl", evil, hidden=True), first, data]), "does not follow")
    yield case(
        "hidden_between", archive([first, Record("a/data.pkl", evil, hidden=True), data]), "lies behind|does not follow"
    )
    yield case("before", archive([first, data], before=torch_file(evil)))
    yield case("before_small", archive([first, data], before=b"MZ" + bytes(100)), "no file of weights")
    yield case("after", archive([first, data], after=torch_file(evil)), "zip archive")
    yield case("after_bytes", archive([first, data], after=b"x"), "something after its end")
    yield case("comment", archive([first, data], comment=b"x" * 30), "something after its end")
    inner = archive([Record("a/data.pkl", evil), data])
    yield case("end_in_comment", archive([first, data], comment=inner), "zip archive")
    yield case("overlap", archive([first, Record("a/data/0", good, at=0, central_name="a/data.pkl")]), "zip archive")
    yield case("same_bytes", archive([first, data, Record("a/data/0", bytes(16), at=0)]), "zip archive")

    def bomb(path: Path) -> None:  # made when it is opened: it takes a second
        path.write_bytes(archive([first, Record("a/data/0", bytes(200_000_000), method=8)]))

    def bomb_pickle(path: Path) -> None:
        path.write_bytes(archive([Record("a/data.pkl", good + bytes(100_000_000), method=8), data]))

    yield case("bomb", bomb, "is compressed")
    yield case("bomb_pickle", bomb_pickle, "is compressed")
    yield case("size_lie", archive([first, Record("a/data/0", bytes(16), central_size=2**31)]), "two sizes|overlaps")
    yield case("up", archive([first, Record("a/../../etc/cron.d/x", b"x")]), "is not a name inside")
    yield case("absolute", archive([first, Record("/etc/passwd", b"x")]), "is not a name inside")
    yield case("backslash", archive([first, Record("a/..\\..\\x", b"x")]), "is not a name inside")
    yield case("drive", archive([first, Record("a/C:x", b"x")]), "is not a name inside")
    yield case("nul", archive([first, Record("a/data/0\0.txt", bytes(16))]), "is not a name inside")
    yield case("folder", archive([first, Record("a/data/", b"")]), "is not a name inside")
    yield case("two_folders", archive([first, Record("b/data/0", bytes(16))]), "is not a name inside")
    yield case(
        "link", archive([first, Record("a/data/0", b"/etc/passwd", attributes=0o120777 << 16)]), "holds 11 bytes"
    )
    yield case("encrypted", archive([first, Record("a/data/0", bytes(16), flags=0x801)]), "is encrypted")
    yield case(
        "unknown_record", archive([first, data, Record("a/evil.so", b"\x7fELF")]), "which torch.save does not write"
    )
    yield case("no_pickle", archive([data]), "lacks its record data.pkl")
    yield case("script", archive([first, data, Record("a/code/__torch__.py", b"import os")]), "TorchScript program")
    yield case("constants", archive([first, data, Record("a/constants.pkl", evil)]), "TorchScript program")
    yield case("byteorder", archive([first, data, Record("a/byteorder", b"middle")]), "neither little nor big")
    yield case("empty", archive([]), "no file of weights|zip archive")
    yield case("count_more", archive([first, data], lie={"count": 9}), "directory")
    yield case("count_less", archive([first, data], lie={"count": 1}), "directory")
    yield case("count_huge", archive([first, data], lie={"count": 65535}), "directory")
    yield case("directory_elsewhere", archive([first, data], lie={"offset": 0}), "not where its end says")
    yield case("directory_huge", archive([first, data], lie={"size": 2**32 - 2}), "not where its end says")
    yield case("cut", torch_file(good)[:-9], "its end is missing")
    yield case("only_magic", b"PK\x03\x04", "too short")
    yield case("only_end", b"PK\x05\x06" + bytes(18), "no file of weights")
    long = archive([first, data])
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 46, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(long) - 22, 1)
    yield case("two_ends", long[:-22] + end64 + locator + long[-22:], "not where its end says")
    yield case(
        "huge_pickle", archive([Record("a/data.pkl", good + bytes(65 * 2**20)), data]), "at most 67108864 are read"
    )


def safetensors_files(canary: Path) -> Iterator[Case]:
    """Headers that lie."""

    def case(kind: str, data: bytes, said: str) -> Case:
        return Case(f"safetensors/{kind}.safetensors", data, said)

    one = entry([4], [0, 16])
    yield case("length_huge", safetensors({}, length=2**63), "at most")
    yield case("length_beyond", safetensors({}, length=1000), "it was cut")
    yield case("length_zero", safetensors(b"{}", length=0), "JSON|after the last")
    yield case("not_json", safetensors(b"{" * 50), "not the JSON expected")
    yield case("deep_json", safetensors(b'{"a":' * 200_000 + b"1" + b"}" * 200_000), "nested too deeply|more than")
    yield case("many_containers", safetensors(b'{"a":[' + b"[]," * 2_000_000 + b"1]}"), "more than .* objects")
    yield case(
        "key_twice", safetensors(b'{"w":%s,"w":%s}' % ((json.dumps(one).encode(),) * 2), bytes(16)), "stands twice"
    )
    yield case("not_utf8", safetensors(b'{"\xff": 1}'), "UTF-8")
    yield case("nan", safetensors(b'{"w": NaN}'), "not the JSON")
    yield case("list", safetensors(b'{"w":[]}'), "not .dtype, shape")
    yield case("overlap", safetensors({"a": one, "b": one}, bytes(16)), "overlaps")
    yield case("gap", safetensors({"a": one, "b": entry([4], [20, 36])}, bytes(36)), "gap")
    yield case("backwards", safetensors({"a": entry([4], [16, 0])}, bytes(16)), "data_offsets")
    yield case("negative", safetensors({"a": entry([4], [-16, 0])}, bytes(16)), "data_offsets")
    yield case("float_offsets", safetensors({"a": entry([4], [0.0, 16.0])}, bytes(16)), "data_offsets")
    yield case("bool_offsets", safetensors({"a": entry([1], [False, True], "U8")}, bytes(1)), "data_offsets")
    yield case("beyond", safetensors({"a": entry([2**40], [0, 2**42])}, bytes(16)), "it was cut")
    yield case("huge_shape", safetensors({"a": entry([2**40, 2**40], [0, 0])}), "takes")
    yield case(
        "huge_empty",
        safetensors({"a": entry([2**62, 2**62, 0], [0, 0])}),
        "cannot be made|does not name its model|missing",
    )
    yield case("negative_shape", safetensors({"a": entry([-4], [0, 16])}, bytes(16)), "its shape")
    yield case("many_dimensions", safetensors({"a": entry([1] * 100_000, [0, 4])}, bytes(4)), "its shape")
    yield case("dtype", safetensors({"a": entry([4], [0, 16], "OBJECT")}, bytes(16)), "unknown dtype")
    yield case("dtype_size", safetensors({"a": entry([4], [0, 16], "F64")}, bytes(16)), "takes 32 bytes")
    yield case("bools", safetensors({"a": entry([4], [0, 4], "BOOL")}, b"\x02" * 4), "booleans other than")
    yield case("trailing", safetensors({"a": one}, bytes(20)), "after the last tensor")
    yield case("metadata", safetensors({"__metadata__": {"a": 1}, "w": one}, bytes(16)), "table of strings")
    info = {"format": "surefoot-model", "format_version": 1, "model": {"name": "LeNet5", "args": {}}}

    def told(kind: str, said: str, **changes: object) -> Case:
        found = {"__metadata__": {"surefoot": json.dumps(info | changes)}, "w": one}
        return case(f"info_{kind}", safetensors(found, bytes(16)), said)

    yield told("giant", "at most|hold", model={"name": "MLP", "args": {"in_features": 10**9, "hidden": [10**9]}})
    yield told("endless", "above 64", model={"name": "SmallResNet", "args": {"blocks": 10**9}})
    yield told("class", "--trust-code", model={"class": "hostile_module:Evil", "args": {}})
    yield told("name", "not a model that", model={"name": "../../evil", "args": {}})
    yield told("tied", "ties tensors", tied={"a": "b"})
    yield told("tied_twice", "ties tensors", tied={"w": "w"})
    yield told("shape", "input.shape", input={"shape": [10**9, 10**9], "dtype": "uint8"})

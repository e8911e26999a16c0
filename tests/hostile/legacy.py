"""Hostile files of older forms and in several parts: sizes that lie, bombs of objects, indexes that lead elsewhere."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from .building import (
    call,
    entry,
    legacy_file,
    legacy_storage,
    name,
    number,
    pickle,
    safetensors,
    state,
    tensor,
    text,
    torch_file,
    tup,
)
from .case import Case, payload, share

HUGE = 2**60


def legacy_files(canary: Path) -> Iterator[Case]:
    """The form before torch 1.6: pickles, then storages one after the other."""

    def case(kind: str, data: bytes, said: str) -> Case:
        return Case(f"legacy/{kind}.pth", data, said)

    def weights(**changes: object) -> bytes:
        return pickle(state(w=tensor(legacy_storage(**changes))))  # type: ignore[arg-type]

    tree = weights()
    block = struct.pack("<q", 4) + bytes(16)
    evil = payload(canary)
    for place in range(4):
        parts = [pickle(number(1001)), pickle(state(little_endian=b"\x88")), tree, pickle(b"](", text("0"), b"e")]
        parts[place] = evil
        magic = pickle(number(0x1950A86A20F9469CFC6C))
        said = "before 1.6 and goes on otherwise|nothing tells of it|no list of storages"
        yield case(f"payload{place}", magic + b"".join(parts) + block, said)
    yield case("no_version", legacy_file(tree, head=pickle(number(0x1950A86A20F9469CFC6C)) * 3), "goes on otherwise")
    yield case("big_endian", legacy_file(tree, little=b"\x89"), "big-endian")
    yield case("size_lies", legacy_file(tree, data=struct.pack("<q", 5) + bytes(20)), "holds 5 numbers; its pickle")
    yield case("size_negative", legacy_file(tree, data=struct.pack("<q", -4) + bytes(16)), "holds -4 numbers")
    yield case("size_huge", legacy_file(tree, data=struct.pack("<q", HUGE) + bytes(16)), "its pickle tells of 4")
    big = weights(numel=HUGE)
    yield case("both_huge", legacy_file(big, data=struct.pack("<q", HUGE) + bytes(16)), "reaches beyond its end")
    yield case("beyond_the_file", legacy_file(tree, data=block[:-1]), "reaches beyond its end")
    yield case("no_data", legacy_file(tree, data=b""), "was cut")
    yield case("trailing", legacy_file(tree, after=bytes(9)), "holds 9 bytes after its last tensor")
    yield case("no_keys", legacy_file(tree, keys=pickle(b"]"), data=b""), "the storage 0 is missing")
    yield case("keys_no_list", legacy_file(tree, keys=pickle(b"}")), "no list of storages")
    yield case("keys_numbers", legacy_file(tree, keys=pickle(b"](", number(0), b"e")), "no list of storages")
    twice = pickle(b"](", text("0"), text("0"), b"e")
    yield case("key_twice", legacy_file(tree, keys=twice, data=block * 2), "twice, or nothing tells of it")
    yield case("key_unknown", legacy_file(tree, keys=pickle(b"](", text("9"), b"e")), "nothing tells of it")
    yield case("key_path", legacy_file(weights(key="../../etc/passwd")), "a storage named")
    for kind, view in {
        "view_beyond": tup(text("v"), number(2), number(3)),
        "view_negative": tup(text("v"), number(-1), number(2)),
        "view_huge": tup(text("v"), number(HUGE), number(HUGE)),
        "view_words": tup(text("v"), text("a"), text("b")),
    }.items():
        yield case(kind, legacy_file(weights(view=view)), "a view beyond the end")
    yield case("view_short", legacy_file(weights(view=tup(text("v"), number(1)))), "damaged or made up")
    yield case("view_seen", legacy_file(weights(view=tup(text("v"), number(1), number(3)))), "reaches beyond its 3")
    module = pickle(tup(text("module"), name("os.system"), text("f"), text("s")) + b"Q")
    yield case("module", legacy_file(module, pickle(b"]"), b""), "os.system")
    cut = b"\x80\x02X\xff\xff\xff\x7fabc"
    yield case("cut_in_text", legacy_file(cut, keys=b"", data=b""), "claims more than it holds")
    yield case("endless_line", legacy_file(b"\x80\x02c" + b"a" * 3_000_000, keys=b"", data=b""), "damaged|cut")
    yield case("tar_beyond", tar_file(storages=pickle(number(2**40)) + block), "a count that is none")
    yield case("tar_storage", tar_file(storages=pickle(number(1)) + tar_storage() + struct.pack("<q", HUGE)), "cut")
    yield case("tar_link", tar_file(kind=b"2"), "not as torch wrote them")
    yield case("tar_size", tar_file(claimed=b"77777777777"), "is cut or there twice")
    yield case("tar_payload", tar_file(storages=evil), "a count that is none")


def tar_storage() -> bytes:
    return pickle(tup(number(1), text("cpu"), name("torch.FloatStorage")))


def tar_file(storages: bytes = b"", kind: bytes = b"0", claimed: bytes | None = None) -> bytes:
    """Torch's tar form, member by member."""
    parts = {"sys_info": b"", "storages": storages, "tensors": pickle(number(0)), "pickle": pickle(b"}")}
    out = b""
    for member, data in parts.items():
        head = bytearray(512)
        head[: len(member)] = member.encode()
        head[124:135] = claimed or b"%011o" % len(data)
        head[156:157] = kind
        head[257:262] = b"ustar"
        out += bytes(head) + data + bytes(-len(data) % 512)
    return out + bytes(1024)


def bombs(canary: Path) -> Iterator[Case]:
    """A few bytes that want much memory or time, most of them as close to the limits of a reader as they get."""

    def case(kind: str, body: bytes, said: str) -> Iterator[Case]:
        yield Case(f"bomb/{kind}.pth", torch_file(body), said)
        yield Case(f"bomb/legacy_{kind}.pth", legacy_file(body, keys=pickle(b"]"), data=b""), said)

    yield from case("dicts", pickle(b"}" * share(12, "MAX_OBJECTS")), "more than")
    yield from case("sets", pickle(b"\x8f" * share(12, "MAX_OBJECTS")), "more than|operation")
    yield from case("numbers", pickle(b"](" + b"M\xff\x7f" * share(10.5, "MAX_OPERATIONS") + b"e"), "more than")
    yield from case("calls", pickle(name("a.b") + b"q\0" + b"h\0)R" * share(14, "MAX_OBJECTS")), "more than")
    memo = (b"r" + struct.pack("<I", i) for i in range(share(22, "MAX_OBJECTS")))
    yield from case("memo", pickle(b"}" + b"".join(memo)), "more than")
    laughter = b"}q\0" + b"".join(
        b"}q%c(" % (i + 1) + text("a") + b"h%c" % i + text("b") + b"h%cu" % i for i in range(100)
    )
    yield from case("laughter", pickle(b"}", text("x"), laughter + b"s"), "damaged|no state_dict")
    pairs = b")q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(90))
    yield from case("tuple_key", pickle(b"}", pairs, b"Ns"), "no state_dict")
    module = name("m.M") + b")\x81q\1}(" + text("_parameters") + b"}" + text("_buffers") + b"}"
    module += text("_modules") + b"}("
    inside = module + b"".join(text(f"m{i}") + b"h\1" for i in range(3)) + b"uub"
    yield from case("module_in_itself", pickle(inside), "nested too deeply, or inside itself")
    long = b"\x8b" + struct.pack("<i", 9_000) + b"\x7f" * 9_000
    yield from case("long_number", pickle(b"}", long, b"Ns"), "no state_dict")
    yield from case(
        "deep_lists",
        pickle(b"]" * share(8, "MAX_OBJECTS") + b"a" * (share(8, "MAX_OBJECTS") - 1)),
        "not a state_dict|damaged|more than",
    )
    deep = (b"}" + text("a")) * share(6, "MAX_OBJECTS") + b"N" + b"s" * share(6, "MAX_OBJECTS")
    yield from case("deep_dicts", pickle(deep), "no state_dict")
    wide = pickle(b"}(" + b"".join(text(f"k{i}") + b"}" for i in range(share(4, "MAX_OBJECTS"))) + b"u")
    yield from case("wide", wide, "no state_dict|inside itself")
    yield from case("wide_key", pickle(b"}", text("a" * 3_000_000), b"Ns"), "no state_dict")
    yield from case("set_state", pickle(call("os.system", text("x")), b"h\0b"), "damaged")
    many = tup(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4), b"N") + b"Q0"
    yield Case(
        "bomb/descriptions.pth",
        torch_file(pickle(many * share(1.1, "MAX_OPERATIONS"), b"}")),
        "more than|no state_dict",
    )


def shards(canary: Path) -> Iterator[Case]:
    """Weights in several files: what an index may not say."""
    one = safetensors({"a": entry([4], [0, 16])}, bytes(16))

    def case(kind: str, index: object, said: str, prepare: Callable[[Path], None] | None = None) -> Case:
        def make(path: Path) -> None:
            (path.parent / "one.safetensors").write_bytes(one)
            (path.parent / "evil.bin").write_bytes(payload(canary))
            (path.parent / "zip.bin").write_bytes(torch_file(payload(canary)))
            if prepare:
                prepare(path.parent)
            path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())

        return Case(f"shards/{kind}.index.json", make, said)

    def mapping(**names: object) -> dict:
        return {"metadata": {"total_size": 16}, "weight_map": names}

    for kind, path in {
        "above": "../one.safetensors",
        "absolute": "/etc/passwd",
        "folder": "x/one.safetensors",
        "dots": "..",
        "nothing": "",
        "nul": "a\0b",
        "backslash": "..\\one.safetensors",
    }.items():
        yield case(kind, mapping(a=path), "no file beside it")
    yield case("missing", mapping(a="two.safetensors"), "which is missing")
    yield case("lacks", mapping(a="one.safetensors", b="one.safetensors"), "lacks 'b'")
    yield case("more", mapping(b="one.safetensors"), "does not list|lacks")
    yield case("number", mapping(a=1), "no weight_map")
    yield case("no_map", {"metadata": {}}, "no weight_map")
    yield case("list", [1], "no weight_map")
    yield case("empty_map", mapping(), "no weight_map")
    yield case("payload", mapping(a="evil.bin"), "is a bare pickle")
    yield case("payload_in_zip", mapping(a="zip.bin"), "exec")
    yield case("itself", mapping(a="itself.index.json"), "an index as one of its files")
    yield case("twice", b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "stands twice")
    yield case("deep", b'{"a":' * 100_000, "more than|nested too deeply")
    yield case("many_files", mapping(**{f"t{i}": f"f{i}" for i in range(3000)}), "at most 2000")
    yield case("huge", b'{"weight_map": {' + b" " * (17 * 2**20), "at most")
    yield case("not_utf8", b'{"\xff": 1}', "UTF-8")
    yield case("link", mapping(a="l"), "symbolic link", lambda p: (p / "l").symlink_to("one.safetensors"))
    yield case("device", mapping(a="z"), "symbolic link", lambda p: (p / "z").symlink_to("/dev/zero"))
    yield case("pipe", mapping(a="p"), "is a pipe", lambda p: os.mkfifo(p / "p"))


def other_formats(canary: Path) -> Iterator[Case]:
    """What is often taken for weights: named, with the way from there."""
    for kind, data, said in (
        ("page.pth", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page .* /resolve/"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5 .* h5py"),
        ("llama.gguf", b"GGUF\3\0\0\0" + bytes(600), "GGUF"),
        ("lite.tflite", b"\x1c\0\0\0TFL3" + bytes(600), "TensorFlow Lite"),
        ("one.npy", b"\x93NUMPY\1\0" + bytes(600), "NumPy array"),
        ("squeezed.pth", b"\xfd7zXZ\0" + bytes(600), "compressed archive"),
        ("config.json", b'{"a": 1}', "is JSON and no weights"),
    ):
        yield Case(f"format/{kind}", data, said)

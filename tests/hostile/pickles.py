"""Hostile pickles: calls, disguises, operations that weights do not need, tensors that claim what is not there."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .building import (
    Record,
    archive,
    call,
    legacy_file,
    name,
    number,
    pickle,
    safetensors,
    state,
    storage,
    tensor,
    text,
    torch_file,
    tup,
    weights,
)
from .case import Case, payload, share, touch


def gadgets(canary: Path) -> Iterator[Case]:
    """A pickle of weights with one call in it: what has been used to run code from model files."""
    code, shell = touch(canary), f"touch {canary}"
    module = tup()
    calls = {
        "os.system": call("os.system", text(shell)),
        "posix.system": call("posix.system", text(shell)),
        "nt.system": call("nt.system", text(shell)),
        "subprocess.Popen": call("subprocess.Popen", text(shell), number(-1), *[b"N"] * 6, b"\x88"),
        "subprocess.getoutput": call("subprocess.getoutput", text(shell)),
        "builtins.exec": call("builtins.exec", text(code)),
        "builtins.eval": call("builtins.eval", text(code)),
        "__builtin__.eval": call("__builtin__.eval", text(code)),
        "builtins.__import__": call("builtins.__import__", text("antigravity")),
        "builtins.open": call("builtins.open", text(str(canary)), text("w")),
        "builtins.getattr": call("builtins.getattr", name("builtins.object"), text("__subclasses__")),
        "runpy.run_path": call("runpy.run_path", text("evil.py")),
        "pty.spawn": call("pty.spawn", text(shell)),
        "timeit.timeit": call("timeit.timeit", text(code)),
        "cProfile.run": call("cProfile.run", text(code)),
        "pdb.run": call("pdb.run", text(code)),
        "code.interact": call("code.interact", text(code)),
        "webbrowser.open": call("webbrowser.open", text("http://localhost/")),
        "importlib.import_module": call("importlib.import_module", text("antigravity")),
        "functools.partial": call("functools.partial", name("os.system"), text(shell)),
        "operator.attrgetter": call("operator.attrgetter", text("system")),
        "types.CodeType": call("types.CodeType", number(0)),
        "shutil.rmtree": call("shutil.rmtree", text(str(canary.parent))),
        "torch.load": call("torch.load", text("evil.pth")),
        "torch.serialization.load": call("torch.serialization.load", text("evil.pth")),
        "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", text(code)),
        "torch.hub.load": call("torch.hub.load", text("evil"), text("evil")),
        "torch.jit.load": call("torch.jit.load", text("evil.pt")),
        "torch.from_file": call("torch.from_file", text("/etc/passwd"), b"\x89", number(4)),
        "torch._tensor._rebuild_from_type_v2": call(
            "torch._tensor._rebuild_from_type_v2", name("os.system"), name("os.system"), tup(text(shell)), b"}"
        ),
        "torch._utils._rebuild_sparse_tensor": call("torch._utils._rebuild_sparse_tensor", number(0), module),
        "torch.serialization.os.system": call("torch.serialization.os.system", text(shell)),
        "numpy.testing._private.utils.runstring": call("numpy.testing._private.utils.runstring", text(code), b"}"),
        "numpy.core.multiarray._reconstruct": call("numpy.core.multiarray._reconstruct", tup(), tup(), text("b")),
        "torch._inductor.codecache.compile_file": call("torch._inductor.codecache.compile_file", text(code)),
        "torch.fx.graph_module._forward_from_src": call("torch.fx.graph_module._forward_from_src", text(code), b"}"),
        "pip.main": call("pip.main", b"]"),
        "surefoot.artifacts.load_model": call("surefoot.artifacts.load_model", text("evil")),
    }
    for path, body in calls.items():
        yield Case(f"gadget/{path}.pth", torch_file(weights(body)), f"names .*{path}|names os.system")
    for path, body in calls.items():
        yield Case(f"gadget/legacy/{path}.pth", legacy_file(weights(body)), f"names .*{path}|names os.system")
    yield Case(
        "gadget/as_key.pth", torch_file(pickle(b"}", call("os.system", text(shell)), tensor(), b"s")), "os.system"
    )
    yield Case("gadget/in_hooks.pth", torch_file(weights(tensor(hooks=call("os.system", text(shell))))), "does not fit")
    yield Case("gadget/named_not_called.pth", torch_file(weights(name("os.system"))), "os.system")
    whole = call("__main__.Net", text("x")) + b"}b"
    yield Case("gadget/whole_model.pth", torch_file(pickle(whole)), "holds a __main__.Net, not a state_dict")


def disguises(canary: Path) -> Iterator[Case]:
    """A real pickle under other names and in other wrappings."""
    for protocol in range(6):
        yield Case(f"disguise/protocol{protocol}.pth", payload(canary, protocol), "bare pickle|no file of weights")
    data = payload(canary)
    for ending in ("pt", "bin", "ckpt", "safetensors", "pt2", "pkl"):
        yield Case(f"disguise/pickle.{ending}", data, "bare pickle")
    yield Case("disguise/pickle.onnx", data, "bare pickle")
    legacy = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"\x80\x02M\xe9\x03." + data
    yield Case("disguise/legacy.pth", legacy, "before 1.6 and goes on otherwise")
    yield Case("disguise/gzip.pth", gzip.compress(data, mtime=0), "compressed by gzip")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in ("sys_info", "pickle", "tensors", "storages"):
            head = tarfile.TarInfo(member)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    yield Case("disguise/tar.pth", out.getvalue(), "a count that is none")
    yield Case("disguise/in_zip.pth", torch_file(data), "names (builtins|__builtin__).exec")
    yield Case("disguise/zip_named.safetensors", torch_file(data), "names (builtins|__builtin__).exec")
    yield Case("disguise/zip_named.onnx", torch_file(data), "names (builtins|__builtin__).exec")
    yield Case("disguise/protocol4_in_zip.pth", torch_file(payload(canary, 4)), "builtins.exec")
    late = pickle(state(w=tensor())) + data
    yield Case("disguise/second_pickle.pth", torch_file(late), "after its end|names")
    yield Case("disguise/behind_header.safetensors", safetensors({}, data), "after the last tensor")
    yield Case("disguise/script.py.pth", b"import os\nos.system('true')\n", "no file of weights")
    yield Case("disguise/shell.pth", b"#!/bin/sh\ntrue\n", "no file of weights")
    yield Case("disguise/elf.pt2", b"\x7fELF" + bytes(600), "no file of weights")


def machine_tricks(canary: Path) -> Iterator[Case]:
    """Operations of the pickle machine that weights do not need."""
    shell = f"touch {canary}"

    def case(kind: str, body: bytes, said: str) -> Case:
        return Case(f"machine/{kind}.pth", torch_file(body), said)

    yield case("inst", pickle(b"(", text(shell), b"ios\nsystem\n"), "os.system")
    yield case("obj", pickle(b"(", name("os.system"), text(shell), b"o"), "os.system")
    yield case("newobj", weights(name("subprocess.Popen") + tup(text(shell)) + b"\x81"), "subprocess.Popen")
    yield case("newobj_allowed", weights(name("collections.OrderedDict") + b")\x81"), "no tensors: evil")
    yield case("stack_global", pickle(text("os"), text("system"), b"\x93", tup(text(shell)), b"R"), "os.system")
    yield case(
        "stack_global_memo", pickle(text("os"), b"q\0", text("system"), b"q\1", b"h\0h\1\x93"), "os.system|STACK"
    )
    yield case("extension", pickle(b"\x82\x01"), "the operation EXT1")
    yield case("dotted", weights(b"ctorch\nhub.os.system\n" + tup(text(shell)) + b"R"), "torch.hub.os.system")
    yield case(
        "build_attributes", weights(call("collections.OrderedDict") + b"}" + text("items") + b"Nsb"), "attributes"
    )
    yield case("build_tensor", weights(tensor() + state(a=number(1)) + b"b"), "does not fit")
    yield case("call_a_tensor", weights(tensor() + b")R"), "no function")
    yield case("call_a_dict", weights(b"})R"), "no function")
    yield case("ordered_dict_of_pairs", weights(call("collections.OrderedDict", b"]")), "no tensors: evil")
    yield case("persistent_text", pickle(b"Pos.system\n"), "PERSID")
    yield case("persistent_number", pickle(number(1) + b"Q"), "no storage")
    yield case("persistent_other", pickle(tup(text("module"), name("torch.FloatStorage")) + b"Q"), "holds a global")
    yield case("memo_far_away", pickle(b"}r\xff\xff\xff\x7f(", text("w"), b"j\xfe\xff\xff\x7fu"), "damaged or made up")
    yield case("pop", pickle(b"}0"), "damaged")
    yield case("dup", pickle(b"}2"), "damaged")
    yield case("nothing", pickle(), "damaged")
    yield case("no_end", pickle(state(w=tensor()), end=b""), "damaged")
    yield case("cut_text", pickle(b"X\xff\xff\xff\x7fabc"), "damaged")
    yield case("long_text_8", pickle(b"\x8d" + struct.pack("<Q", 2**62) + b"x"), "damaged|BINUNICODE8")
    yield case("long_number", pickle(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x"), "damaged|LONG4")
    yield case("negative_number", pickle(b"\x8b" + struct.pack("<i", -1)), "damaged|LONG4")
    yield case("deep_tuples", pickle(b")" + b"\x85" * share(6, "MAX_OBJECTS")), "not a state_dict")
    yield case("deep_marks", pickle(b"(" * share(1.5, "MAX_OPERATIONS")), "damaged")
    yield case(
        "laughter", pickle(b"]q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(200))), "not a state_dict"
    )
    yield case("itself", pickle(b"}q\0", text("w"), b"h\0s"), "no state_dict")
    yield case("unhashable_key", pickle(b"}]", tensor(), b"s"), "no state_dict")
    yield case("odd_items", pickle(b"}(", text("w"), b"u"), "damaged")
    yield case("old_text", pickle(b"S'a'\n"), "holds a str")
    yield case("long_line", pickle(b"c" + b"a" * 10_000_000 + b"\nb\n"), "names a")
    yield case("not_utf8", pickle(b"c\xff\xfe\nb\n"), "damaged|names")
    yield case("many_names", pickle(*(name(f"m{i}.f") for i in range(30_000))), "and 9995 more")


def tensors(canary: Path) -> Iterator[Case]:
    """Tensors that claim what is not there."""

    def case(kind: str, value: bytes, said: str, **more: object) -> Case:
        return Case(f"tensor/{kind}.pth", torch_file(pickle(state(w=value)), **more), said)

    huge = 2**50
    yield case("huge_storage", tensor(storage(numel=huge), shape=(huge,)), "its pickle tells of")
    yield case("storage_larger", tensor(storage(numel=5), shape=(5,)), "holds 16 bytes; its pickle tells of 20")
    yield case("storage_smaller", tensor(storage(numel=3), shape=(3,)), "holds 16 bytes; its pickle tells of 12")
    yield case("beyond", tensor(shape=(5,)), "reaches beyond")
    yield case("offset", tensor(offset=1), "reaches beyond")
    yield case("offset_empty", tensor(offset=huge, shape=(0,)), "reaches beyond")
    yield case("stride", tensor(shape=(2, 2), stride=(huge, 1)), "reaches beyond")
    yield case("expanded", tensor(shape=(huge, 4), stride=(0, 1)), "made of only 4 numbers")
    yield case("overflow", tensor(shape=(2**32, 2**32), stride=(0, 0)), "made of only 4 numbers")
    yield case("negative_size", tensor(shape=(-1,)), "not made of whole numbers")
    yield case("negative_stride", tensor(shape=(4,), stride=(-1,), offset=3), "not made of whole numbers")
    yield case("negative_offset", tensor(offset=-4), "not made of whole numbers")
    yield case(
        "bool_size", call("torch._utils._rebuild_tensor_v2", storage(), b"\x88", tup(), tup(), b"\x89", b"}"), "whole"
    )
    yield case("many_dimensions", tensor(shape=(1,) * 5000, stride=(1,) * 5000), "whole numbers")
    yield case("negative_storage", tensor(storage(numel=-1), shape=()), "no storage")
    yield case("missing_record", tensor(storage(key="7")), "data/7 is missing")
    yield case("outside", tensor(storage(key="../../../etc/passwd")), "a storage named")
    yield case("device", tensor(storage(where="ftp://evil")), "a storage named")
    yield case(
        "two_stories", tensor() + b"0" + tensor(storage(kind="torch.HalfStorage", numel=8)), "two descriptions|POP"
    )
    yield case("kind", tensor(storage(kind="torch.QInt8Storage")), "names torch.QInt8Storage")
    yield case("kind_is_function", tensor(storage(kind="torch._utils._rebuild_tensor_v2")), "no tensors: w")
    yield case(
        "flags",
        call("torch._utils._rebuild_tensor_v2", storage(), number(0), tup(), tup(), b"\x89", b"}", number(1)),
        "flags",
    )
    yield Case(
        "tensor/damaged_bytes.pth",
        archive([Record("a/data.pkl", pickle(state(w=tensor()))), Record("a/data/0", bytes(16), crc=1)]),
        "damaged: its CRC-32",
    )

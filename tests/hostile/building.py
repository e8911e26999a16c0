"""The bricks of hostile files: pickles written operation by operation, and zip archives with any lie in them."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

# ----------------------------------------------------------------------------------------- pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def name(path: str) -> bytes:
    """GLOBAL: `name("os.system")`."""
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(path: str, *arguments: bytes) -> bytes:
    return name(path) + tup(*arguments) + b"R"


def pickle(*body: bytes, end: bytes = b".") -> bytes:
    return b"\x80\x02" + b"".join(body) + end


def storage(key: str = "0", numel: int = 4, kind: str = "torch.FloatStorage", where: str = "cpu") -> bytes:
    return tup(text("storage"), name(kind), text(key), text(where), number(numel)) + b"Q"


def tensor(
    stored: bytes | None = None, offset: int = 0, shape: tuple = (4,), stride: tuple = (1,), hooks: bytes | None = None
) -> bytes:
    empty = name("collections.OrderedDict") + b")R"
    sizes, steps = tup(*map(number, shape)), tup(*map(number, stride))
    return call(
        "torch._utils._rebuild_tensor_v2", stored or storage(), number(offset), sizes, steps, b"\x89", hooks or empty
    )


def state(**entries: bytes) -> bytes:
    """A dictionary of names and values."""
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def weights(body: bytes) -> bytes:
    """A state_dict that begins harmlessly and holds `body` as one more value."""
    return pickle(state(harmless=tensor(), evil=body))


# -------------------------------------------------------------------------------------------- zips


@dataclass
class Record:
    """One record of an archive; what is not told is what torch would write."""

    name: str
    data: bytes
    central_name: str | None = None
    central_size: int | None = None
    method: int = 0
    flags: int = 0x800
    at: int | None = None
    hidden: bool = False
    attributes: int = 0
    crc: int | None = None


def archive(
    records: list[Record], *, before: bytes = b"", after: bytes = b"", comment: bytes = b"", lie: dict | None = None
) -> bytes:
    """A zip archive. `lie` replaces fields of its end: count, size, offset."""
    out = bytearray(before)
    central = bytearray()
    count = 0
    for record in records:
        packed = record.data
        if record.method == 8:
            squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = squeezer.compress(record.data) + squeezer.flush()
        crc = zlib.crc32(record.data) if record.crc is None else record.crc
        offset = len(out) if record.at is None else record.at
        local = record.name.encode()
        head = (20, record.flags, record.method, 0, 0, crc, len(packed), len(record.data), len(local), 0)
        if record.at is None:
            out += struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *head) + local + packed
        if record.hidden:
            continue
        count += 1
        shown = (record.central_name or record.name).encode()
        size = len(record.data) if record.central_size is None else record.central_size
        stored = len(packed) if record.central_size is None else record.central_size
        fields = (20, 20, record.flags, record.method, 0, 0, crc, stored, size, len(shown), 0, 0, 0, 0)
        central += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", *fields, record.attributes, offset) + shown
    end = {"count": count, "size": len(central), "offset": len(out)} | (lie or {})
    out += central
    out += struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, end["count"], end["count"], end["size"], end["offset"], len(comment)
    )
    return bytes(out + comment + after)


def torch_file(data_pkl: bytes, *more: Record, root: str = "archive", floats: int = 4, **tricks: Any) -> bytes:
    """What torch.save writes, around any pickle."""
    records = [
        Record(f"{root}/data.pkl", data_pkl),
        Record(f"{root}/byteorder", b"little"),
        Record(f"{root}/data/0", bytes(4 * floats)),
        Record(f"{root}/version", b"3\n"),
        *more,
    ]
    return archive(records, **tricks)


def legacy_file(
    tree: bytes,
    keys: bytes | None = None,
    data: bytes | None = None,
    *,
    head: bytes | None = None,
    little: bytes = b"\x88",
    after: bytes = b"",
) -> bytes:
    """What torch.save wrote before 1.6, around any pickle: magic, version, system, tree, keys, one storage of 4."""
    system = pickle(state(protocol_version=number(1001), little_endian=little, type_sizes=b"}"))
    start = pickle(number(0x1950A86A20F9469CFC6C)) + pickle(number(1001)) + system if head is None else head
    listed = pickle(b"](", text("0"), b"e") if keys is None else keys
    return start + tree + listed + (struct.pack("<q", 4) + bytes(16) if data is None else data) + after


def legacy_storage(key: str = "0", numel: int = 4, kind: str = "torch.FloatStorage", view: bytes = b"N") -> bytes:
    return tup(text("storage"), name(kind), text(key), text("cpu"), number(numel), view) + b"Q"


# ------------------------------------------------------------------------------- safetensors, pt2


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def meta(shape: list[int], strides: list[int] | None = None, offset: int = 0, dtype: int = 7) -> dict:
    steps = strides if strides is not None else [1] * len(shape)
    return {
        "dtype": dtype,
        "sizes": [{"as_int": n} for n in shape],
        "strides": [{"as_int": n} for n in steps],
        "storage_offset": {"as_int": offset},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }


def arg(kind: str, value: Any, name: str = "self", position: int = 1) -> dict:
    return {"name": name, "arg": {kind: value}, "kind": position}


def node(target: str, inputs: list[dict], result: str = "y") -> dict:
    return {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": result}}], "metadata": {}}


X = arg("as_tensor", {"name": "x"})


_LEAF = '{"type": null, "context": null, "children_spec": []}'
_TUPLE = '{"type": "builtins.tuple", "context": "null", "children_spec": [%s]}'
_NOTHING = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
CALL = {
    "inputs": [],
    "outputs": [],
    "in_spec": f"[1, {_TUPLE % f'{_TUPLE % _LEAF}, {_NOTHING}'}]",
    "out_spec": f"[1, {_LEAF}]",
    "forward_arg_names": ["x"],
}


def program_json(nodes: list[dict] | None = None, output: str = "y", **changes: Any) -> dict:
    """The model.json of a program that gives relu(x), x of shape (N, 4), and has one weight."""
    batch = {"as_expr": {"expr_str": changes.pop("expr", "s0"), "hint": {"as_int": 2}}}
    form = meta([1, 4]) | {"sizes": [batch, {"as_int": 4}], "strides": [{"as_int": 4}, {"as_int": 1}]}
    found = {
        "graph_module": {
            "graph": {
                "inputs": [{"as_tensor": {"name": "p_w"}}, {"as_tensor": {"name": "x"}}],
                "outputs": [{"as_tensor": {"name": output}}],
                "nodes": [node("torch.ops.aten.relu.default", [X])] if nodes is None else nodes,
                "tensor_values": {"x": form, "y": form, output: form, "p_w": meta([4])},
                "sym_int_values": {},
                "sym_bool_values": {},
            },
            "signature": {
                "input_specs": [
                    {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
                    {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
                ],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": output}}}}],
            },
            "module_call_graph": [{"fqn": "", "signature": CALL}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s0": {"min_val": 0, "max_val": None}},
        "verifiers": ["TRAINING"],
        "torch_version": "2.13.0",
        "schema_version": {"major": 8, "minor": 20},
        "guards_code": changes.pop("guards", []),
    }
    return found | changes


def pt2_file(
    model: dict | bytes | None = None,
    *more: Record,
    weight: dict | None = None,
    constants: dict | None = None,
    samples: bytes = b"",
) -> bytes:
    """What torch.export.save writes, around any program."""
    told = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta([4])} | (weight or {})
    model = program_json() if model is None else model
    tables = [
        ("data/weights/model_weights_config.json", {"config": {"w": told}}),
        ("data/constants/model_constants_config.json", {"config": constants or {}}),
    ]
    records = [
        Record("m/data/weights/weight_0", bytes(16)),
        *(Record(f"m/{path}", json.dumps(found).encode()) for path, found in tables),
        Record("m/models/model.json", model if isinstance(model, bytes) else json.dumps(model).encode()),
        Record("m/data/sample_inputs/model.pt", samples),
        Record("m/archive_format", b"pt2"),
        Record("m/archive_version", b"0"),
        Record("m/byteorder", b"little"),
        Record("m/.data/version", b"6\n"),
        *more,
    ]
    return archive(records)

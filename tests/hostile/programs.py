"""Hostile programs: .pt2 and .onnx files that would run, read or allocate what nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .building import Record, X, archive, arg, call, meta, node, program_json, pt2_file, text, torch_file, weights
from .case import Case, payload


def programs(canary: Path) -> Iterator[Case]:
    """Programs (.pt2) with what `torch.export.load` would unpickle, evaluate, call or map into memory."""
    shell, evil = f"touch {canary}", payload(canary)
    script = arg("as_string", shell)

    def case(kind: str, data: bytes, said: str) -> Case:
        return Case(f"program/{kind}.pt2", data, said)

    def calls(target: str, *inputs: dict) -> bytes:
        return pt2_file(program_json([node(target, list(inputs))]))

    refused = "not one of the operators"
    yield case("os_system", calls("torch.os.system", script), refused)
    yield case("hub", calls("torch.hub.load", script), refused)
    yield case("nested_os", calls("torch.serialization.os.system", script), refused)
    yield case("load", calls("torch.load", script), refused)
    yield case("operator_call", calls("_operator.methodcaller", script), refused)
    yield case("attrgetter", calls("_operator.attrgetter", script), refused)
    yield case("dunder", calls("torch.ops.aten.__class__.default", X), refused)
    yield case(
        "from_file", calls("torch.ops.aten.from_file.default", arg("as_string", "/etc/passwd", "filename")), refused
    )
    yield case("other_library", calls("torch.ops.evil.run.default", X), refused)
    yield case("load_library", calls("torch.ops.load_library", arg("as_string", "evil.so")), refused)
    yield case("higher_order", calls("torch.ops.higher_order.while_loop", X), refused)
    yield case("overload", calls("torch.ops.aten.relu._schema", X), refused)
    yield case("set_", calls("torch.ops.aten.set_.source_Storage", X), refused)
    yield case("resize", calls("torch.ops.aten.resize_.default", X, arg("as_ints", [2**40], "size")), refused)
    yield case("as_strided", calls("torch.ops.aten.as_strided.default", X), refused)
    full = [arg("as_ints", [2**30, 2**30], "size"), arg("as_int", 1, "fill_value")]
    yield case("huge", calls("torch.ops.aten.full.default", *full), "does not run|more than is run")
    yield case(
        "expand",
        calls("torch.ops.aten.expand.default", X, arg("as_ints", [2**40, 4], "size")),
        "more than is run|does not run",
    )
    yield case(
        "repeat",
        calls("torch.ops.aten.repeat.default", X, arg("as_ints", [2**40, 1], "repeats")),
        "more than|does not run",
    )
    squares = [
        {"target": "_operator.mul", "inputs": [arg("as_int", 2**62), arg("as_int", 2**62)],
         "outputs": [{"as_sym_int": {"as_name": "n0"}}], "metadata": {}},
        *(
            {"target": "_operator.mul", "inputs": [arg("as_sym_int", {"as_name": f"n{i}"})] * 2,
             "outputs": [{"as_sym_int": {"as_name": f"n{i + 1}"}}], "metadata": {}}
            for i in range(60)
        ),
        node("torch.ops.aten.relu.default", [X]),
    ]  # fmt: skip
    yield case("huge_number", pt2_file(program_json(squares)), "64 bits")
    times = {"target": "_operator.mul", "inputs": [arg("as_ints", [1]), arg("as_int", 10**12)]}
    yield case("long_list", pt2_file(program_json([times | {"outputs": [], "metadata": {}}])), "no number")
    yield case(
        "unknown_value", calls("torch.ops.aten.relu.default", arg("as_tensor", {"name": "os"})), "not computed before"
    )
    yield case("no_output", pt2_file(program_json(output="z")), "which it does not compute")
    yield case(
        "result_is_input", pt2_file(program_json([node("torch.ops.aten.relu.default", [X], "x")])), "no name or taken"
    )
    source = "y): pass\nimport os\nos.system('true')\ndef f("
    yield case(
        "name_is_code", pt2_file(program_json([node("torch.ops.aten.relu.default", [X], source)], source)), "no name"
    )
    yield case(
        "size_is_code", pt2_file(program_json(expr=f"__import__('os').system({shell!r})")), "no expression of sizes"
    )
    yield case("size_calls", pt2_file(program_json(expr="exec(s0)")), "no expression of sizes")
    yield case("size_attribute", pt2_file(program_json(expr="s0.__class__")), "no expression of sizes")
    yield case("guard_is_code", pt2_file(program_json(guards=[f"__import__('os').system({shell!r})"])), "guards")
    yield case(
        "graph_argument", calls("torch.ops.aten.relu.default", arg("as_graph", {"name": "g"})), "of the kind 'as_graph'"
    )
    yield case(
        "operator_argument", calls("torch.ops.aten.relu.default", arg("as_operator", "torch.os.system")), "as_operator"
    )
    yield case("pickled_weight", pt2_file(None, weight={"use_pickle": True}), "is pickled")
    yield case("pickled_truth", pt2_file(None, weight={"use_pickle": 0}), "is pickled")
    opaque = {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    yield case(
        "opaque", pt2_file(None, Record("m/data/constants/opaque_obj_0", evil), constants=opaque), "pickled object"
    )
    yield case(
        "custom", pt2_file(None, Record("m/data/constants/custom_obj_0", evil), constants=opaque), "pickled object"
    )
    yield case(
        "opaque_hidden",
        pt2_file(
            None, Record("m/data/constants/tensor_0", evil), constants={"c": opaque["c"] | {"path_name": "tensor_0"}}
        ),
        "is pickled",
    )
    yield case(
        "legacy_weights", pt2_file(None, Record("m/data/weights/model.pt", torch_file(evil))), "no part of a program"
    )
    yield case(
        "legacy_constants",
        pt2_file(None, Record("m/data/constants/model.pt", torch_file(evil))),
        "no part of a program",
    )
    yield case("machine_code", pt2_file(None, Record("m/data/aotinductor/model/x.so", b"\x7fELF")), "machine code")
    yield case("second_model", pt2_file(None, Record("m/models/evil.json", b"{}")), "no part of a program")
    yield case("examples", pt2_file(None, samples=torch_file(evil)), "sample_inputs.*exec")
    yield case("examples_bare", pt2_file(None, samples=evil), "sample_inputs.*zip")
    yield case("weight_path", pt2_file(None, weight={"path_name": "../../../etc/passwd"}), "record")
    yield case("weight_beyond", pt2_file(None, weight={"tensor_meta": meta([5])}), "does not go with its 16 bytes")
    yield case("weight_expanded", pt2_file(None, weight={"tensor_meta": meta([2**40], [0])}), "does not go with")
    yield case("weight_negative", pt2_file(None, weight={"tensor_meta": meta([-4])}), "sizes or strides are damaged")
    yield case("weight_offset", pt2_file(None, weight={"tensor_meta": meta([4], offset=2**40)}), "does not go with")
    yield case("weight_dtype", pt2_file(None, weight={"tensor_meta": meta([4], dtype=99)}), "dtype")
    yield case("deep_json", pt2_file(b"[" * 500_000), "nested too deeply")
    yield case("json_bomb", pt2_file(b"[" + b"[]," * 3_100_000 + b"0]"), "more than")
    yield case("other_version", pt2_file(program_json(schema_version={"major": 9, "minor": 0})), "of version 9")
    yield case("lacks_everything", pt2_file({"schema_version": {"major": 8}}), "lacks")
    old = archive([Record("version", b"1"), Record("serialized_state_dict.pt", torch_file(evil))])
    yield case("form_of_2_7", old, "zip archive")
    yield case("weights_named_so", torch_file(weights(call("os.system", text(shell)))), "os.system")


def onnx_files(canary: Path) -> Iterator[Case]:
    """ONNX graphs; none are made where the onnx package is missing."""
    try:
        import numpy
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        return
    batch = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)

    def model(nodes: list, *tensors: onnx.TensorProto, domain: str = "", inputs: list | None = None) -> onnx.ModelProto:
        graph = helper.make_graph(nodes, "g", inputs or [batch], [result], list(tensors))
        opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def case(kind: str, made: onnx.ModelProto | bytes, said: str) -> Case:
        return Case(f"onnx/{kind}.onnx", made if isinstance(made, bytes) else made.SerializeToString(), said)

    relu = helper.make_node("Relu", ["x"], ["y"])
    add = helper.make_node("Add", ["x", "w"], ["y"])

    def tensor(dims: list[int], data: bytes | None = bytes(16), kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
        made = onnx.TensorProto(name="w", data_type=kind, dims=dims)
        if data is not None:
            made.raw_data = data
        return made

    for path in ("/etc/passwd", "../../../etc/passwd", "weights.bin"):
        outside = tensor([4], None)
        outside.data_location = TensorProto.EXTERNAL
        outside.external_data.add(key="location", value=path)
        yield case(f"external_{path.replace('/', '_')}", model([add], outside), "lies in another file")
    yield case("bytes_less", model([add], tensor([400])), "has 16 bytes for 400 numbers")
    yield case("dims_huge", model([add], tensor([2**40, 2**40])), "the file cannot hold them")
    yield case("dims_negative", model([add], tensor([-4])), "negative size")
    yield case("dims_no_data", model([add], tensor([2**28], None)), "holds 0 values")
    yield case("strings", model([add], tensor([4], None, TensorProto.STRING)), "dtype that is no number")
    yield case("dtype", model([add], tensor([4], bytes(16), 99)), "dtype that is no number")
    constant = helper.make_node("Constant", [], ["w"], value=tensor([2**30]))
    yield case("constant", model([constant, add]), "has 16 bytes")
    for name in ("Loop", "If", "Scan", "SequenceMap", "RandomNormal", "StringSplit", "Optional"):
        yield case(f"operator_{name}", model([helper.make_node(name, ["x"], ["y"])]), f"not run from a file: {name}")
    evil = helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    yield case("domain", model([evil], domain="evil.ops"), "evil.ops.Run")
    inner = helper.make_graph([relu], "inner", [batch], [result])
    yield case("subgraph", model([helper.make_node("Relu", ["x"], ["y"], body=inner)]), "graph of its own")
    function = model([relu])
    function.functions.append(helper.make_function("evil", "F", ["x"], ["y"], [relu], function.opset_import))
    yield case("function", function, "holds functions")
    shape = onnx.numpy_helper.from_array(numpy.array([2**20, 2**20]), "w")
    filled = helper.make_node("ConstantOfShape", ["w"], ["y"])
    yield case("filled", model([filled], shape), "would have the shape")
    yield case(
        "expand", model([helper.make_node("Expand", ["x", "w"], ["y"])], shape), "would have the shape|do not go"
    )
    tall = helper.make_tensor_value_info("x", TensorProto.INT64, [2])
    yield case(
        "filled_by_input", model([helper.make_node("ConstantOfShape", ["x"], ["y"])], inputs=[tall]), "not known"
    )
    wide = [tensor([2**20, 1], bytes(2**22)), helper.make_node("Transpose", ["w"], ["t"])]
    product = [wide[1], helper.make_node("MatMul", ["w", "t"], ["y"])]
    yield case("outer_product", model(product, wide[0]), "would have the shape")
    yield case("no_nodes", model([]), "holds no graph")
    yield case(
        "two_inputs", model([relu], inputs=[batch, helper.make_tensor_value_info("z", 1, [4])]), "takes 2 inputs"
    )
    yield case(
        "open_shape", model([relu], inputs=[helper.make_tensor_value_info("x", 1, ["a", "b"])]), "shape of its input"
    )
    yield case("unknown_value", model([helper.make_node("Relu", ["nothing"], ["y"])]), "onnxruntime refuses|do not go")
    yield case("cut", model([add], tensor([4])).SerializeToString()[:-7], "was cut|no graph|not an ONNX")
    described = model([relu])
    described.metadata_props.add(key="surefoot", value="[" * 100_000)
    yield case("description", described, "nested too deeply")

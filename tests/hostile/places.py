"""Hostile places: directories that lead elsewhere, names that are no regular files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case, payload


def directories(canary: Path) -> Iterator[Case]:
    """Saved models whose directory leads elsewhere."""
    import torch

    from surefoot.artifacts import save_model
    from surefoot.models import MLP

    def saved(path: Path) -> None:
        torch.manual_seed(0)
        save_model(MLP(in_features=2, hidden=[], classes=2), path)

    def case(kind: str, change: Callable[[Path], None], said: str) -> Case:
        def make(path: Path) -> None:
            saved(path)
            change(path)

        return Case(f"directory/{kind}", make, said)

    def replaced(file: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            (path / file).unlink()
            make(path / file)

        return change

    def told(**changes: object) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            found = json.loads((path / "model.json").read_text()) | changes
            (path / "model.json").write_text(json.dumps(found))

        return change

    def outside(path: Path) -> None:
        (path.parent.parent / "elsewhere").write_bytes(b"secret")
        path.symlink_to("../../elsewhere")

    for file in ("model.safetensors", "model.json"):
        yield case(f"{file}_link", replaced(file, outside), "symbolic link")
        yield case(f"{file}_endless", replaced(file, lambda p: p.symlink_to("/dev/zero")), "symbolic link")
        yield case(f"{file}_loop", replaced(file, lambda p: p.symlink_to(p.name)), "symbolic link")
        yield case(f"{file}_pipe", replaced(file, os.mkfifo), "is a pipe")
        yield case(f"{file}_folder", replaced(file, os.mkdir), "is a directory")
        yield case(
            f"{file}_pickle", replaced(file, lambda p: p.write_bytes(payload(canary))), "UTF-8|JSON|header|holds|cut"
        )
    yield case("json_huge", replaced("model.json", lambda p: p.write_bytes(b" " * (17 * 2**20))), "at most")
    yield case("json_deep", replaced("model.json", lambda p: p.write_bytes(b"[" * 90_000)), "nested too deeply")
    yield case("json_twice", replaced("model.json", lambda p: p.write_bytes(b'{"a": 1, "a": 2}')), "stands twice")
    yield case("file_outside", told(weights={"file": "../../elsewhere"}), "beside it")
    yield case("class", told(model={"class": "hostile_module:Evil", "args": {}}), "--trust-code")
    yield case("class_dotted", told(model={"class": "os:system", "args": {"command": f"touch {canary}"}}), "trust_code")
    yield case(
        "giant",
        told(model={"name": "MLP", "args": {"in_features": 2**31, "hidden": [2**31]}}),
        "at most|cannot be built",
    )
    yield case("another_model", told(model={"name": "MLP", "args": {"in_features": 9, "hidden": []}}), "its shape is")


def kinds_of_files(canary: Path) -> Iterator[Case]:
    """What is no regular file, or nothing."""

    def listen(path: Path) -> None:
        os.chdir(path.parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)

    for ending in ("pth", "safetensors", "pt2", "onnx"):
        yield Case(f"kind/pipe.{ending}", os.mkfifo, "is a pipe")
        yield Case(f"kind/endless.{ending}", lambda p: p.symlink_to("/dev/zero"), "is a device")
        yield Case(f"kind/empty.{ending}", b"", "is empty: the download")
        yield Case(f"kind/noise.{ending}", b"\xfe" * 5000, "no file of weights|ONNX")
    yield Case("kind/socket.pth", listen, "is a socket")
    yield Case("kind/dangling.pth", lambda p: p.symlink_to("nothing"), "does not exist")
    yield Case("kind/loop.pth", lambda p: p.symlink_to(p.name), "link|does not exist")
    yield Case("kind/folder.pth", os.mkdir, "holds no model")

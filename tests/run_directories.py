"""Run directories as a training leaves them, made in a moment and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.checkpoint.run import RunDirectory
from surefoot.tracking import JournalFile
from surefoot.version import __version__


def make_run(
    path: Path,
    values: Sequence[float],
    *,
    settings: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    status: str = "done",
    planned: int | None = None,
    version: str = __version__,
    name: str = "mine",
    metric: str = "val/accuracy",
    monitor: str = "val/accuracy",
    torn: bytes = b"",
) -> Path:
    """A run whose `metric` took `values`, an epoch each; `torn` are further bytes of its journal."""
    recipe = {"seed": 0, "model": "LeNet5", "optimizer.name": "SGD", "optimizer.lr": 0.1, **(settings or {})}
    recipe |= {"checkpoint.keep_best": monitor, "checkpoint.mode": "max"}
    described = {f"recipe.{key}": value for key, value in recipe.items()}
    about = {"id": f"{path.name:>016}", "created": created, "name": name}
    about["conditions"] = {"versions.surefoot": version, "data.train": "ab" * 32, **described, **(conditions or {})}
    existing = path / "run.json"
    existing.unlink(missing_ok=True)
    (path / "metrics.jsonl").unlink(missing_ok=True)
    with RunDirectory.create(path, **about) as run:
        run.about["status"] = status
        run._write()
    split, _, key = metric.partition("/")
    with JournalFile(path / "metrics.jsonl") as journal:
        for epoch, value in enumerate(values):
            at = {"epoch": epoch, "step": 10 * (epoch + 1), "lr": [0.1], "wall_s": 0.5 * (epoch + 1)}
            journal.append({"kind": "epoch", "split": "train", "loss": 2.0 - value, **at})
            journal.append({"kind": "epoch", "split": split, "loss": 1.0 - value, key: value, **at})
    if torn:
        with (path / "metrics.jsonl").open("ab") as file:
            file.write(torn)
    tree: dict[str, Any] = {"name": name, "epochs": planned or len(values) or 1}
    for key, value in recipe.items():
        inner = tree
        *parents, last = key.split(".") if key != "model" else ["model", "name"]
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    # JSON is YAML; the epochs stand on a line of their own, as in a recipe that a run has written.
    lines = [f"{key}: {json.dumps(value)}" for key, value in tree.items()]
    (path / "recipe.yaml").write_text("\n".join(lines) + "\n")
    return path

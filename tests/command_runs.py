"""What the tests of the command share: the sizes of a small run, a refusal's message, an exact resume."""

from __future__ import annotations

from pathlib import Path

from surefoot.cli import main

SMALL = ["data.train_size=320", "data.val_size=80", "data.batch_size=32", "epochs=2", "warmup.warmup_period=5"]


def refused(capsys, *argv: str) -> str:
    """The one message of a command that ends with 2."""
    try:
        code = main(list(argv))
    except SystemExit as exit:  # argparse's own way out
        code = exit.code
    told = capsys.readouterr()
    assert code == 2, told.out + told.err
    assert "Traceback" not in told.err
    return told.err


def resumed_alike(recipe: Path, folder: Path) -> None:
    """Hold that a run stopped after its first epoch and resumed saves the model of one that was not; `part`, `run`."""
    run, part = str(folder / "run"), str(folder / "part")
    assert main(["train", str(recipe), "--run", run]) == 0
    assert main(["train", str(recipe), "--run", part, "epochs=1"]) == 0
    assert main(["resume", part, "epochs=2"]) == 0
    models = [(folder / name / "model" / "model.safetensors").read_bytes() for name in ("run", "part")]
    assert models[0] == models[1]


def files_in(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))

"""What the tests of the command share: the sizes of a small run, and the message of a command that is refused."""

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


def files_in(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))

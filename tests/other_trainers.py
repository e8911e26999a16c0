"""The guide "From other trainers", run as it stands with the real packages: part of `python3 dev.py libraries`."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "other_trainers.md"
# Without what they depend on where that would replace torch, or bring torchvision.
ALONE = (
    "lightning",
    "pytorch-lightning",
    "pytorch-ignite",
    "keras",
    "fastai",
    "fastcore",
    "fastprogress",
    "fasttransform",
    "fastdownload",
)
PACKAGES = (
    "plum-dispatch<2.10",
    "matplotlib",
    "scipy",
    "scikit-learn",
    "h5py",
    "optree",
    "namex",
    "ml_dtypes",
    "rich",
    "absl-py",
)
_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    """The blocks of Python in `text`, ours and others'."""
    return re.findall(r"^```(?:python|py)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def accuracies() -> dict[str, tuple[float, int]]:
    """The accuracy that each section of the guide ends with, and the lines of code that it took."""
    text = GUIDE.read_text(encoding="utf-8")
    (shared,) = blocks(text.partition("\n## ")[0])
    reached = {}
    for name, body in _SECTION.findall(text):
        (code,) = blocks(body)
        namespace = {"__name__": "guide"}
        with tempfile.TemporaryDirectory() as home, contextlib.redirect_stdout(io.StringIO()) as out:
            os.chdir(home)
            try:
                exec(compile(shared, str(GUIDE), "exec"), namespace)
                exec(compile(code, f"{GUIDE}: {name}", "exec"), namespace)
            except BaseException as error:
                error.add_note(f"in the section {name!r}, after\n{out.getvalue()[-2000:]}")
                raise
            finally:
                os.chdir("/")
        reached[name] = (float(namespace["accuracy"]), sum(bool(line.strip()) for line in code.splitlines()))
    return reached


def other_trainers() -> str:
    """Every trainer of the guide does the job, and none in fewer lines than ours; returns what is printed."""
    warnings.simplefilter("ignore")
    reached = accuracies()
    ours, lines = reached.pop("Surefoot")
    for name, (accuracy, its_lines) in reached.items():
        assert accuracy > 0.8 and ours > accuracy - 0.05, f"{name}: accuracy {accuracy:.3f}, ours {ours:.3f}"
        assert its_lines >= lines, f"{name} takes {its_lines} lines, ours {lines}"
    return f"Surefoot {ours:.3f} in {lines} lines; " + ", ".join(f"{n} {a:.3f} in {k}" for n, (a, k) in reached.items())


if __name__ == "__main__":
    print(other_trainers())

"""What all tests share: one thread, no stray environment, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA_PLACES = (os.environ.get("SUREFOOT_DATA", ""), str(ROOT.parent / "shared" / "data"))

# Before torch is imported: bits and timings must not hang on how many cores a machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in ("SUREFOOT_COMMAND", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A path for a run directory that does not exist yet."""
    return tmp_path / "run"


def _fashion_mnist() -> tuple[Path | None, str]:
    """The directory that holds Fashion-MNIST's four files in one of the known places, or why there is none."""
    for place in filter(None, DATA_PLACES):
        for folder in (Path(place), Path(place) / "FashionMNIST" / "raw", Path(place) / "FashionMNIST"):
            if any((folder / f"t10k-labels-idx1-ubyte{ending}").is_file() for ending in ("", ".gz")):
                return Path(place), ""
    looked = " and ".join(filter(None, DATA_PLACES))
    return None, f"the real Fashion-MNIST is not here (looked in {looked}; set SUREFOOT_DATA)"


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    """What `data.dir` or SUREFOOT_DATA would be for the real Fashion-MNIST; skips, and says so, without it."""
    place, reason = _fashion_mnist()
    if place is None:
        pytest.skip(reason)
    return place


def pytest_report_header() -> str:
    """Say whether the tests on real data run."""
    place, reason = _fashion_mnist()
    return f"real data: {place}" if place else f"real data: tests skipped, {reason}"

"""What all tests share: one thread, fixed random choices, nobody's environment, any order, the real data's place."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

ROOT = Path(__file__).resolve().parents[1]

# The tests run in several processes, and the first one has taken SUREFOOT_DATA away (below) when the others start.
os.environ["TESTS_DATA"] = os.environ.get("SUREFOOT_DATA", os.environ.get("TESTS_DATA", ""))
DATA_PLACES = (os.environ["TESTS_DATA"], str(ROOT.parent / "shared" / "data"))

# Before torch is imported: bits must not depend on how many cores a machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# No setting of the person who runs the tests reaches them: language, terminal, time zone, caches, keys.
_THEIRS = {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "COLORTERM", "LANG", "LANGUAGE"}
for _name in [name for name in os.environ if name in _THEIRS or name.startswith(("LC_", "XDG_", "SUREFOOT_"))]:
    del os.environ[_name]
os.environ |= {"TZ": "UTC", "TERM": "xterm"}
time.tzset()
os.umask(0o022)

# What the tests print as commands is called by its name, as in an environment that is active.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])

# A shell starts what runs in its background, and nohup what it runs, with these ignored; children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, _name), signal.SIG_DFL)

# The test command tries the same examples each time, on every machine. New ones are looked for by `dev.py fuzz`, and
# what it finds is written into the test as an @example.
_EVERYWHERE = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("tests", derandomize=True, **_EVERYWHERE)
settings.register_profile("fuzz", derandomize=False, print_blob=True, **_EVERYWHERE)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--shuffle SEED and --fuzz."""
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the files, and the tests in each, in random order"
    )
    parser.addoption("--fuzz", action="store_true", help="only the property tests, with new examples (dev.py fuzz)")


def pytest_configure(config: pytest.Config) -> None:
    """Let --fuzz choose its examples anew; all others are the same whatever was imported before."""
    if config.getoption("fuzz"):
        settings.load_profile("fuzz")
    else:  # Hypothesis tries the constants of the modules that are there by then, which hang on the order of the tests
        providers._get_local_constants = lambda: providers._local_constants


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and put into another order, what the options say."""
    if config.getoption("fuzz"):
        items[:] = [item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)]
    seed = config.getoption("shuffle")
    if seed is not None:
        dice = random.Random(seed)
        files = sorted({item.path for item in items})
        dice.shuffle(files)
        rank = {path: number for number, path in enumerate(files)}
        dice.shuffle(items)
        items.sort(key=lambda item: rank[item.path])  # a file stays together, so that its fixtures are made once


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kept choices, downloads and the key that marks a user's own runs are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "compiled"))
        yield


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """What a test sets, it takes back: else the next one would hang on the order."""

    def found() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if "TORCHINDUCTOR" not in k and k != "PYTEST_CURRENT_TEST"}

    before = found()
    yield
    assert found() == before


@pytest.fixture(scope="session")
def _threads() -> int:
    import torch

    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def _as_many_threads(_threads: int) -> Iterator[None]:
    """Each test, and each fixture, begins with the number of threads that the tests were begun with."""
    import torch

    torch.set_num_threads(_threads)  # a fixture may have changed it
    yield
    torch.set_num_threads(_threads)


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

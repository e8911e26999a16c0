"""What is installed: every package pinned, and a wheel that is whole, installs and trains."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_dev import load

ROOT = Path(__file__).resolve().parents[1]
# What only the builds of torch for CUDA ask for, which choose the versions themselves; the pins are of the CPU build.
FOR_CUDA = re.compile(r"nvidia-|cuda-|triton$")


@pytest.fixture
def copy(tmp_path) -> Path:
    """The part of a clone that a wheel is built from."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    return folder


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "every line is name==version"
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_every_package_that_comes_in_is_pinned_also_those_that_others_ask_for():
    dev = load(ROOT)
    pinned = pins()
    queue, seen = [Requirement(text) for text in dev.requirements()], set()
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        if (name, *wanted.extras) in seen or FOR_CUDA.match(name):
            continue
        seen.add((name, *wanted.extras))
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert wanted.specifier.contains(pinned[name]), f"{wanted} does not allow the pinned {pinned[name]}"
        try:
            parts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # in someone's own environment, without the extras
        for part in map(Requirement, parts):
            if part.marker is None or any(part.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                queue.append(part)
    assert len(seen) > 40


def test_torch_is_new_enough_to_refuse_hostile_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.10" in project["dependencies"] and Version(pins()["torch"]) >= Version("2.10")
    assert project["requires-python"] == ">=3.11"


def test_what_pip_installs_is_whole(copy, tmp_path):
    """A wheel holds every module, the packaged recipes, the type marker, the licence and the command."""
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("surefoot-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (entry_points,) = (name for name in inside if name.endswith("entry_points.txt"))
        assert "surefoot = surefoot.cli:main" in archive.read(entry_points).decode()
    there = {
        path.relative_to(copy / "src").as_posix()
        for path in (copy / "src" / "surefoot").rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".typed", ".json")
    }
    assert there <= inside and any(name.endswith("quickstart.yaml") for name in there)
    assert any(name.endswith("/LICENSE") for name in inside)


@pytest.mark.slow
def test_the_wheel_installs_and_trains_in_a_clean_environment(copy, tmp_path):
    """A new environment gets the wheel of `pip wheel .`, what it asks for, and nothing else."""
    new = tmp_path / "env"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    call(*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(copy))
    (wheel,) = tmp_path.glob("surefoot-*.whl")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(new)
    into = [*pip, "--python", str(new / "bin" / "python"), "install", "-c", str(ROOT / "constraints.txt")]
    call(*into, "torch==" + pins()["torch"])
    call(*into, str(wheel))
    surefoot = str(new / "bin" / "surefoot")
    call(surefoot, "train", "epochs=1", "--run", "run")
    assert "accuracy" in call(surefoot, "eval", "run")


def test_without_posix_locks_the_import_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(ImportError, match="needs Linux or macOS.*WSL"):
        runpy.run_path(str(ROOT / "src" / "surefoot" / "__init__.py"))

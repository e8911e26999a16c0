"""dev.py: set-up once, nothing twice, and a command that is itself the process."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = '#!/bin/sh\necho "pid=$$ args=$* command=$SUREFOOT_COMMAND data=$SUREFOOT_DATA in=$PWD"\nexit 7\n'


def load(folder: Path):
    """dev.py of the clone at `folder`, as a module."""
    spec = importlib.util.spec_from_file_location("dev_under_test", folder / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(tmp_path) -> Path:
    """What a fresh clone holds, as far as dev.py is concerned."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("dev.py", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def make_ready(clone: Path) -> None:
    """A finished .venv whose commands only say how they were called."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "surefoot", "tool"):
        script = clone / ".venv" / "bin" / name
        script.write_text(SCRIPT)
        script.chmod(0o755)
    dev = load(clone)
    Path(dev.MARK).write_text("")
    Path(dev.STAMP).write_text(dev.stamp())


@pytest.fixture
def ready(clone) -> Path:
    make_ready(clone)
    return clone


def call(clone: Path, *arguments: str, **how):
    """Run the clone's dev.py; how it ended, what it printed, and its process id."""
    process = subprocess.Popen(
        [sys.executable, str(clone / "dev.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=how.pop("cwd", clone),
        **how,
    )
    out, err = process.communicate()
    return process, out, err


class Steps:
    """Takes the place of `dev.call`: notes each command, and fails or is interrupted where told to."""

    def __init__(self, dev, stop_at: str = "", error: BaseException | None = None):
        self.dev, self.stop_at, self.error = dev, stop_at, error
        self.commands: list[str] = []

    def __call__(self, lock, command, check=True):
        text = " ".join(command)
        assert not os.path.exists(self.dev.STAMP), "a set-up that is under way must not look finished"
        self.commands.append(text)
        if self.stop_at and self.stop_at in text:
            if self.error is not None:
                raise self.error
            if check:
                raise self.dev.Failed("no")
            return 1
        return 0


# The command ---------------------------------------------------------------------------------------------------


def test_it_uses_the_standard_library_only():
    tree = ast.parse((ROOT / "dev.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= sys.stdlib_module_names


def test_without_a_verb_it_explains_itself_and_sets_nothing_up(clone):
    for arguments in ([], ["help"], ["--help"]):
        process, out, err = call(clone, *arguments)
        assert process.returncode == 0 and "usage: python3 dev.py VERB" in out and err == ""
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tset"], "'tset' is not a verb; did you mean 'test'?"),
        (["run"], "say which command"),
        (["bench"], "benchmarks/run.py is not in this clone"),
    ],
)
def test_a_slip_is_told_before_minutes_of_set_up(clone, arguments, message):
    process, _, err = call(clone, *arguments)
    assert process.returncode == 2 and message in err
    assert not (clone / ".venv").exists()


def test_the_command_is_the_process_itself_so_that_signals_and_exit_codes_are_its_own(ready):
    process, out, err = call(ready, "train", "recipe.yaml", "optimizer.lr=3e-4", "--run", "a b")
    assert process.returncode == 7 and err == ""
    assert out.startswith(f"pid={process.pid} args=train recipe.yaml optimizer.lr=3e-4 --run a b ")
    assert f"command=python3 {ready / 'dev.py'} " in out


def test_other_verbs_go_to_surefoot_where_the_user_stands_and_tests_run_at_the_root(ready, tmp_path):
    _, out, _ = call(ready, "eval", "runs/x", cwd=tmp_path)
    assert "args=eval runs/x " in out and f"in={tmp_path}\n" in out
    _, out, _ = call(ready, "test", "-k", "loop", cwd=tmp_path)
    assert "args=-m pytest " in out and " -k loop " in out and f"in={ready}\n" in out and "command= " in out
    _, out, _ = call(ready, "slow", "-x", cwd=tmp_path)
    assert "args=-m pytest -m slow -x " in out and f"in={ready}\n" in out
    _, out, _ = call(ready, "coverage", "-x", cwd=tmp_path)
    assert "args=-m pytest --cov --cov-report=term-missing:skip-covered -x " in out and f"in={ready}\n" in out
    (ready / "tests").mkdir()
    (ready / "tests" / "wild.py").touch()
    _, out, _ = call(ready, "wild", "--cache", "d", cwd=tmp_path)
    assert "args=tests/wild.py --cache d " in out
    (ready / "tests" / "fuzz.py").touch()
    _, out, _ = call(ready, "fuzz", "5", cwd=tmp_path)
    assert "args=tests/fuzz.py 5 " in out and f"in={ready}\n" in out
    _, out, _ = call(ready, "run", "tool", "1", cwd=tmp_path)
    assert "args=1 " in out and f"in={tmp_path}\n" in out
    # A folder of the PATH that may not be looked into would be told of instead.
    process, _, err = call(ready, "run", "no-such-tool", env=os.environ | {"PATH": os.defpath})
    assert process.returncode == 1 and err == "dev.py: no-such-tool: cannot be run: No such file or directory\n"


@pytest.mark.parametrize(("cores", "workers"), [(1, None), (2, "2"), (64, "4")])
def test_the_whole_suite_runs_in_several_processes_and_a_chosen_file_in_one(ready, monkeypatch, cores, workers):
    dev = load(ready)
    monkeypatch.setattr(dev.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    (ready / "tests").mkdir()
    (ready / "tests" / "test_it.py").touch()
    for whole in ([], ["-x", "-k", "it"], ["--shuffle", "7"], ["tests"]):
        assert dev.processes(whole)[:2] == (["-n", workers] if workers else [])
    for chosen in (["tests/test_it.py", "-x"], ["tests/test_it.py::test_a[1]"]):
        assert dev.processes(chosen) == []


def test_a_finished_set_up_costs_no_process_no_lock_and_no_second_look(ready, monkeypatch):
    """What makes `dev.py train` cost a few hundredths of a second more than `surefoot train`."""
    dev = load(ready)
    for name in ("set_up", "call"):
        monkeypatch.setattr(dev, name, lambda *_: pytest.fail("nothing is to be set up"))
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("no lock is needed"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("no process is needed"))
    became = []
    monkeypatch.setattr(dev.os, "execvpe", lambda *what: became.append(what))
    dev.main(["train"])
    (program, arguments, environment) = became[0]
    assert arguments == [program, "train"] and program == str(ready / ".venv/bin/surefoot")
    assert environment["PATH"].startswith(str(ready / ".venv/bin") + ":")


def test_ci_is_everyones_test_command_with_the_shared_data(ready):
    shutil.copytree(ROOT / ".ci", ready / ".ci")
    (ready.parent / "shared" / "data").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "SUREFOOT_DATA"}
    done = subprocess.run(
        ["bash", str(ready / ".ci/run")],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7 and "args=-m pytest " in done.stdout
    assert f"data={ready.parent / 'shared' / 'data'} in={ready}\n" in done.stdout


# Set-up --------------------------------------------------------------------------------------------------------


def test_torch_comes_first_and_everything_is_pinned(clone, monkeypatch, capfd):
    dev = load(clone)
    steps = Steps(dev)
    monkeypatch.setattr(dev, "call", steps)
    monkeypatch.setattr(dev, "bundled_pip", lambda: "/wheels/pip.whl")
    dev.ensure_ready()
    first, torch, rest, itself = steps.commands
    assert "/wheels/pip.whl/pip install" in first and re.search(r" pip==\d", first)
    assert re.search(r" torch==\d", torch) and dev.CONSTRAINTS in torch
    assert dev.CONSTRAINTS in rest and "pytest" in rest and "numpy" in rest and "onnx" in rest
    assert "--no-deps --no-build-isolation -e" in itself
    assert dev.is_ready() and os.access(dev.PYTHON, os.X_OK)
    said = capfd.readouterr().err
    assert "making .venv" in said and "torch: 0 s" in said and "ready after" in said
    dev.ensure_ready()
    assert len(steps.commands) == 4 and capfd.readouterr().err == ""


def torch_commands(clone, monkeypatch, failing: str, nvidia: bool, platform: str = "linux"):
    dev = load(clone)
    steps = Steps(dev, failing)
    monkeypatch.setattr(dev, "call", steps)
    monkeypatch.setattr(dev, "NVIDIA", str(clone if nvidia else clone / "no-driver"))
    monkeypatch.setattr(dev.sys, "platform", platform)
    dev.install_torch(0)
    return steps.commands


def test_without_an_nvidia_driver_the_cpu_build_is_tried_first(clone, monkeypatch):
    (command,) = torch_commands(clone, monkeypatch, "nothing fails", nvidia=False)
    assert "+cpu" in command and "--index-url" not in command


def test_where_the_cpu_build_is_not_to_be_had_the_plain_one_is_taken(clone, monkeypatch):
    configured, other, plain = torch_commands(clone, monkeypatch, "+cpu", nvidia=False)
    assert "--index-url" in other and "--retries 0" in other and "--no-deps" in other
    assert "+cpu" not in plain and re.search(r"torch==[\d.]+$", plain)


@pytest.mark.parametrize(("nvidia", "platform"), [(True, "linux"), (False, "darwin")])
def test_with_an_nvidia_driver_or_on_a_mac_the_plain_build_is_the_one(clone, monkeypatch, nvidia, platform):
    (command,) = torch_commands(clone, monkeypatch, "nothing", nvidia, platform)
    assert "+cpu" not in command


@pytest.mark.parametrize("step", ["pip==", "torch==", "pytest", "-e "])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), None])
def test_an_interrupted_set_up_is_done_again_from_the_start(clone, monkeypatch, step, error):
    dev = load(clone)
    monkeypatch.setattr(dev, "bundled_pip", lambda: "/wheels/pip.whl")
    monkeypatch.setattr(dev, "call", Steps(dev, step, error))
    with pytest.raises((KeyboardInterrupt, SystemExit, dev.Failed)):
        # Without an error the plain build fails as well, after the CPU builds did.
        dev.ensure_ready()
    assert not dev.is_ready()
    half_made = clone / ".venv" / "lib" / "half-installed"
    half_made.parent.mkdir(exist_ok=True)
    half_made.write_text("")
    again = Steps(dev)
    monkeypatch.setattr(dev, "call", again)
    dev.ensure_ready()
    assert dev.is_ready() and len(again.commands) == 4 and not half_made.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def set_up_once(clone, monkeypatch):
    dev = load(clone)
    monkeypatch.setattr(dev, "bundled_pip", lambda: "/wheels/pip.whl")
    steps = Steps(dev)
    monkeypatch.setattr(dev, "call", steps)
    dev.ensure_ready()
    steps.commands.clear()
    return dev, steps


def test_changed_pins_update_the_environment_in_place(clone, monkeypatch):
    dev, steps = set_up_once(clone, monkeypatch)
    kept = clone / ".venv" / "lib" / "kept"
    kept.write_text("")
    with (clone / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    assert not dev.is_ready()
    dev.ensure_ready()
    assert dev.is_ready() and kept.exists() and len(steps.commands) == 3


def test_a_moved_clone_gets_a_new_environment(clone, monkeypatch):
    set_up_once(clone, monkeypatch)
    moved = clone.rename(clone.parent / "elsewhere")
    (moved / ".venv" / "old").write_text("")
    dev = load(moved)
    assert not dev.is_ready()
    monkeypatch.setattr(dev, "bundled_pip", lambda: "/wheels/pip.whl")
    steps = Steps(dev)
    monkeypatch.setattr(dev, "call", steps)
    dev.ensure_ready()
    assert dev.is_ready() and not (moved / ".venv" / "old").exists() and len(steps.commands) == 4


def test_a_python_that_is_gone_or_another_gets_a_new_environment(clone, monkeypatch):
    dev, steps = set_up_once(clone, monkeypatch)
    os.unlink(dev.PYTHON)
    assert not dev.is_ready()
    os.symlink("/bin/sh", dev.PYTHON)
    assert not dev.is_ready()
    dev.ensure_ready()
    assert dev.is_ready() and len(steps.commands) == 4


@pytest.mark.parametrize("kind", ["someone's", "file", "link"])
def test_an_environment_that_it_did_not_make_is_never_touched(clone, kind):
    other = clone.parent / "mine"
    other.mkdir()
    (other / "keep").write_text("precious")
    venv = clone / ".venv"
    if kind == "link":
        venv.symlink_to(other)
    elif kind == "file":
        venv.write_text("precious")
    else:
        shutil.copytree(other, venv)
    process, _, err = call(clone, "setup")
    assert process.returncode == 1 and "was not made by dev.py and will not be touched" in err
    assert (venv if kind == "file" else venv / "keep").read_text() == "precious"


def test_two_at_once_take_turns_and_the_second_finds_it_done(clone):
    dev = load(clone)
    lock = os.open(clone / "dev.py", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    second = subprocess.Popen(
        [sys.executable, str(clone / "dev.py"), "setup"], stderr=subprocess.PIPE, text=True, cwd=clone
    )
    assert second.stderr.readline() == "dev.py: another dev.py is setting up .venv; waiting for it\n"
    make_ready(clone)
    os.close(lock)
    assert second.communicate()[1] == "" and second.returncode == 0
    assert dev.is_ready()


def a_set_up_under_way(clone):
    """A dev.py that has come to pip, and the process id of that pip, which never ends by itself."""
    told = clone.parent / "told"
    os.mkfifo(told)
    pip = f"import os, signal; open({str(told)!r}, 'w').write(str(os.getpid())); signal.pause()"
    code = (
        # A shell starts what it runs in the background with SIGINT ignored, and that is inherited.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.path.insert(0, sys.argv[1]); import dev\n"
        f"dev.install_pip = lambda lock: dev.call(lock, [sys.executable, '-c', {pip!r}])\n"
        "sys.exit(dev.main(['setup']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(clone)], stderr=subprocess.PIPE, text=True)
    return process, int(told.read_text())


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "the next call does it again")],
)
def test_a_signal_in_set_up_ends_pip_as_well(clone, signum, code, message):
    process, pip = a_set_up_under_way(clone)
    process.send_signal(signum)
    err = process.communicate()[1]
    assert process.returncode == code and message in err and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(pip, 0)
    assert not load(clone).is_ready()


def test_a_pip_whose_dev_py_was_killed_is_still_waited_for(clone):
    process, pip = a_set_up_under_way(clone)
    process.kill()
    process.communicate()
    lock = os.open(clone / "dev.py", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pip, signal.SIGKILL)
    fcntl.flock(lock, fcntl.LOCK_EX)  # comes when the kernel has let go of the last holder
    os.close(lock)


def test_a_folder_that_cannot_be_written_is_told(clone, monkeypatch):
    dev = load(clone)

    def makedirs(path, exist_ok):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(dev.os, "makedirs", makedirs)
    with pytest.raises(dev.Failed, match=r"\.venv: Permission denied"):
        dev.ensure_ready()


def test_a_failed_command_is_told_with_its_reason_and_logged(clone):
    dev = load(clone)
    os.mkdir(dev.VENV)
    command = [
        sys.executable,
        "-c",
        "print('noise'); print('ERROR: No matching distribution found for x'); exit(1)",
    ]
    lock = os.open(clone / "dev.py", os.O_RDONLY)
    with pytest.raises(dev.Failed) as failure:
        dev.call(lock, command)
    os.close(lock)
    assert "ERROR: No matching distribution found for x" in str(failure.value)
    assert "noise" not in str(failure.value) and "no build for Python" in str(failure.value)
    assert "noise" in Path(dev.LOG).read_text()


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("ERROR: [Errno 28] No space left on device", "free about 3 GB"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", "check the network"),
        ("something else", "the whole output is in .venv/setup.log"),
    ],
)
def test_what_is_known_of_a_failure_is_told(line, advice):
    assert advice in load(ROOT).explain([line])


def test_settings_that_would_lead_pip_astray_do_not_reach_it(clone, monkeypatch):
    dev = load(clone)
    os.mkdir(dev.VENV)
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    lock = os.open(clone / "dev.py", os.O_RDONLY)
    code = "import os; print(os.environ.get('PIP_TARGET'), os.environ.get('PIP_INDEX_URL'))"
    assert dev.call(lock, [sys.executable, "-c", code]) == 0
    os.close(lock)
    assert "None https://mirror.example/simple\n" in Path(dev.LOG).read_text()


# A Python without pip ------------------------------------------------------------------------------------------


def an_index(folder: Path, version: str, data: bytes, digest: str) -> str:
    """A package index (PEP 503) on disk, whose page is what a web server would give for the folder."""
    (folder / "files").mkdir(parents=True)
    name = f"pip-{version}-py3-none-any.whl"
    (folder / "files" / name).write_bytes(data)
    page = folder / "page.html"
    page.write_text(f'<a href="files/pip-1.0.tar.gz">x</a> <a href="files/{name}#sha256={digest}">{name}</a>')
    return page.as_uri()


@pytest.fixture
def indexed(clone, monkeypatch, tmp_path):
    """dev.py with one index on disk: (dev, function of the wheel's bytes and digest)."""
    import urllib.request

    dev = load(clone)
    pages = {}
    real = urllib.request.urlopen

    def urlopen(url, timeout):
        return real(pages.get(url, url), timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)

    def serve(data: bytes, digest: str) -> None:
        pages["https://index.example/simple/pip/"] = an_index(tmp_path / "index", dev.pin("pip"), data, digest)

    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setattr(dev.os.path, "expanduser", lambda path: str(tmp_path))
    return dev, serve


def test_pip_is_downloaded_where_python_came_without(indexed, tmp_path):
    dev, serve = indexed
    serve(b"a wheel", hashlib.sha256(b"a wheel").hexdigest())
    path = dev.download_pip(dev.pin("pip"), str(tmp_path))
    assert Path(path).name == f"pip-{dev.pin('pip')}-py3-none-any.whl" and Path(path).read_bytes() == b"a wheel"


def test_a_damaged_download_of_pip_is_refused(indexed, tmp_path):
    dev, serve = indexed
    serve(b"a whee", hashlib.sha256(b"a wheel").hexdigest())
    with pytest.raises(dev.Failed, match="the download is damaged"):
        dev.download_pip(dev.pin("pip"), str(tmp_path))


def test_no_pip_anywhere_is_told_with_what_to_do(clone, monkeypatch, tmp_path):
    dev = load(clone)
    monkeypatch.setattr(dev, "indexes", lambda: [(tmp_path / "none").as_uri()])
    with pytest.raises(dev.Failed, match="no pip and none could be downloaded(.|\n)*apt install python3-venv"):
        dev.download_pip(dev.pin("pip"), str(tmp_path))


def test_each_way_to_a_pip_is_tried_in_turn(clone, monkeypatch, tmp_path):
    dev = load(clone)
    steps = Steps(dev, "-m pip")  # no pip beside this Python
    monkeypatch.setattr(dev, "call", steps)
    monkeypatch.setattr(dev, "bundled_pip", lambda: None)
    wheel = tmp_path / "pip-1-py3-none-any.whl"

    def download(version, folder):
        wheel.write_text("")
        return str(wheel)

    monkeypatch.setattr(dev, "download_pip", download)
    dev.install_pip(0)
    assert [("--python" in c, "--no-index" in c) for c in steps.commands] == [(True, False), (False, True)]
    assert not wheel.exists()


def test_the_indexes_are_those_that_pip_is_told_of(clone, monkeypatch, tmp_path):
    dev = load(clone)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple\n[install]\nextra-index-url =\n  file:///b\n  file:///c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert dev.indexes() == ["https://a.example/simple", "file:///b", "file:///c"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://d.example/simple")
    assert dev.indexes()[0] == "https://d.example/simple"


def test_the_examples_of_property_tests_do_not_hang_on_what_was_imported(tmp_path, monkeypatch):
    def examples():
        drawn = []
        given(st.integers(), st.text())(lambda number, text: drawn.append((number, text)))()
        return drawn

    before = examples()
    (tmp_path / "of_others.py").write_text(f"NUMBERS = {list(range(70_000, 71_000))}\nTEXT = 'of others'\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("of_others")
    assert examples() == before
    del sys.modules["of_others"]

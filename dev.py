#!/usr/bin/env python3
"""From a fresh clone to a running command: makes .venv on first use, then hands over to what it holds.

    python3 dev.py train              train the quickstart recipe (any `surefoot` verb works: eval, predict, ...)
    python3 dev.py test               run the tests (arguments go to pytest)

Needs nothing but Python 3.11 or newer: no pip, no ensurepip, no root. Uses the standard library only.
"""

import os
import sys

NEEDED = (3, 11)
if sys.version_info < NEEDED:  # before anything that an older Python could not parse or import
    from shutil import which

    for minor in range(19, NEEDED[1] - 1, -1):
        newer = which(f"python3.{minor}")
        if newer:
            os.execv(newer, [newer] + sys.argv)
    sys.exit(
        f"dev.py: this is Python {sys.version.split()[0]}; Surefoot needs 3.11 or newer. Install one (from "
        "python.org or by your system's packages) and run it: python3.11 dev.py ..."
    )
if os.name != "posix":
    sys.exit("dev.py: Surefoot runs on Linux and macOS; on Windows, run it in WSL.")

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
PYPROJECT = os.path.join(ROOT, "pyproject.toml")
MARK = os.path.join(VENV, "made-by-dev.py")  # says that .venv is ours to remake
STAMP = os.path.join(VENV, "ready")  # written last: what the finished set-up was made from
LOG = os.path.join(VENV, "setup.log")
EXTRAS = ("test", "onnx")  # of pyproject.toml, beside its dependencies
FORMAT = "1"  # raise it when the steps below change, so that everyone's .venv is made again
NVIDIA = "/proc/driver/nvidia"  # there where an NVIDIA driver is loaded
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"

HELP = """\
usage: python3 dev.py VERB [ARGUMENTS]

  train ...     surefoot train: without arguments the quickstart, in under a minute
  test ...      the tests (arguments go to pytest)
  slow ...      the slow tests, which `test` leaves out
  coverage ...  the tests, and which lines of the source they do not run
  fuzz [MIN]    the property tests with new examples, for that many minutes (default 10)
  faults ...    the fault catalogue: kills, full disks, damaged files (tests/faults/run.py)
  wild          model files that real packages ship: downloaded, imported, compared (tests/wild.py)
  libraries     models and data of real libraries, in an environment of their own (tests/real_libraries.py)
  gallery ...   every example of the gallery, killed and compared (tests/gallery.py)
  docs          the site, in English and Chinese, in an environment of its own (docs/site/make_site.py)
  cuda ...      one GPU: right, without waits, exact, and how fast (benchmarks/gpu.py)
  bench ...     the benchmarks, side by side with other loops (benchmarks/run.py)
  run CMD ...   any command in the environment, e.g. run python, run tensorboard --logdir runs
  setup         make the environment and stop there
  help          this text

Any other verb goes to the surefoot command: python3 dev.py eval RUN, python3 dev.py list losses, ...
The environment is .venv beside this file; it is made on first use and again when constraints.txt changes.
"""


class Failed(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def main(argv):
    """Do what `argv` asks; returns an exit code, or does not return (the command takes this process over)."""
    verb, arguments = (argv[0], argv[1:]) if argv else ("help", [])
    if verb in ("help", "--help", "-h"):
        print(HELP, end="")
        return 0
    problem = misspelt(verb) if verb not in VERBS else VERBS[verb](arguments)
    if problem:
        say(problem)
        return 2
    try:
        ensure_ready()
    except Failed as failure:
        say(str(failure))
        return 1
    except KeyboardInterrupt:
        say("set-up interrupted; the next call does it again")
        return 130
    if verb == "setup":
        return 0
    program, command, folder = plan(verb, arguments)
    hand_over(program, command, folder, verb)


# What each verb runs ------------------------------------------------------------------------------------------


def nothing_wrong(arguments):
    return ""


def needs_command(arguments):
    return "" if arguments else "run: say which command, e.g. python3 dev.py run python"


def needs_script(path):
    return lambda arguments: "" if os.path.exists(os.path.join(ROOT, path)) else f"{path} is not in this clone"


SCRIPTS = {
    "fuzz": "tests/fuzz.py",
    "faults": "tests/faults/run.py",
    "wild": "tests/wild.py",
    "libraries": "tests/real_libraries.py",
    "gallery": "tests/gallery.py",
    "docs": "docs/site/make_site.py",
    "bench": "benchmarks/run.py",
    "cuda": "benchmarks/gpu.py",
}
VERBS = {  # verb -> what is wrong with its arguments, before anything is set up
    "train": nothing_wrong,
    "test": nothing_wrong,
    "setup": nothing_wrong,
    "run": needs_command,
    "slow": nothing_wrong,
    "coverage": nothing_wrong,
    **{verb: needs_script(path) for verb, path in SCRIPTS.items()},
}


def misspelt(verb):
    """A message if `verb` is almost one of ours (setting up for a slip would cost minutes), else ""."""
    import difflib

    near = difflib.get_close_matches(verb, [*VERBS, "help"], 1, 0.75)
    return f"{verb!r} is not a verb; did you mean {near[0]!r}? (python3 dev.py help lists them)" if near else ""


def plan(verb, arguments):
    """The program to become, its arguments (with its own name), and the folder to run it in (None: this one)."""
    if verb == "test":
        return PYTHON, [PYTHON, "-m", "pytest", *processes(arguments), *arguments], ROOT
    if verb == "slow":
        return PYTHON, [PYTHON, "-m", "pytest", "-m", "slow", *arguments], ROOT
    if verb == "coverage":
        return PYTHON, [PYTHON, "-m", "pytest", "--cov", "--cov-report=term-missing:skip-covered", *arguments], ROOT
    if verb in SCRIPTS:
        return PYTHON, [PYTHON, SCRIPTS[verb], *arguments], ROOT
    if verb == "run":
        inside = os.path.join(VENV, "bin", arguments[0])
        return (inside if os.path.exists(inside) else arguments[0]), arguments, None
    surefoot = os.path.join(VENV, "bin", "surefoot")
    return surefoot, [surefoot, verb, *arguments], None


def processes(arguments):
    """pytest's options: a process per core, up to four, or none where a test file is given: that runs in one."""
    chosen = any(os.path.isfile(os.path.join(ROOT, argument.split("::")[0])) for argument in arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # By files, so that what a file's tests share is made once, and in the order that --shuffle gives.
    return [] if chosen or cores == 1 else ["-n", str(min(cores, 4)), "--dist", "loadfile", "--no-loadscope-reorder"]


def hand_over(program, command, folder, verb):
    """Become `program`: signals, exit code and terminal are its own."""
    environment = dict(os.environ)
    environment["VIRTUAL_ENV"] = VENV
    environment["PATH"] = os.path.join(VENV, "bin") + os.pathsep + environment.get("PATH", os.defpath)
    environment.pop("PYTHONHOME", None)
    if verb not in ("run", "test", "slow", "coverage", *SCRIPTS):
        environment["SUREFOOT_COMMAND"] = "python3 " + sys.argv[0]  # so that its hints can be typed as they are
    if folder:
        os.chdir(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(program, command, environment)
    except OSError as error:
        sys.exit(f"dev.py: {program}: cannot be run: {error.strerror}")


# Whether there is anything to set up --------------------------------------------------------------------------


def stamp():
    """What a finished set-up was made from; another clone path, Python or pin gives another text."""
    import hashlib

    digest = hashlib.sha256()
    for path in (CONSTRAINTS, PYPROJECT):
        with open(path, "rb") as file:
            digest.update(file.read())
    return "\n".join((FORMAT, digest.hexdigest(), ROOT, os.path.realpath(PYTHON), ""))


def is_ready():
    """True if .venv is finished, was made here from today's pins, and its Python is still there."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            return file.read() == stamp() and os.access(PYTHON, os.X_OK)
    except (FileNotFoundError, NotADirectoryError):
        return False


def ensure_ready():
    """Set up if needed, one process at a time."""
    if is_ready():
        return
    import fcntl

    # The lock is on this very file: nothing is left behind, and it ends with the last process that holds it. pip
    # inherits it, so that a set-up whose dev.py was killed is still waited for.
    lock = os.open(os.path.join(ROOT, "dev.py"), os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another dev.py is setting up .venv; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready():
            set_up(lock)
    finally:
        os.close(lock)


# Setting up ---------------------------------------------------------------------------------------------------


def set_up(lock):
    """Make or update .venv; the stamp comes last, so whatever interrupts this is done again."""
    import signal
    import time

    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        updating = os.path.exists(STAMP) and same_interpreter()
        if updating:
            say("constraints.txt or pyproject.toml changed: updating .venv")
            os.unlink(STAMP)
        else:
            say(f"first use: making .venv with Python {version()} (once; a minute or a few, by your network)")
            make_venv()
            step("pip", lambda: install_pip(lock))
        step("torch", lambda: install_torch(lock))
        step("everything else", lambda: pip(lock, "-c", CONSTRAINTS, *requirements()))
        step("surefoot itself", lambda: pip(lock, "--no-deps", "--no-build-isolation", "-e", ROOT))
        with open(STAMP + ".new", "w", encoding="utf-8") as file:
            file.write(stamp())
        os.replace(STAMP + ".new", STAMP)
    except OSError as error:
        raise Failed(f"{error.filename or VENV}: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say(f"ready after {time.monotonic() - began:.0f} s")


def step(name, action):
    """Run one step and say how long it took."""
    import time

    began = time.monotonic()
    if sys.stderr.isatty():
        sys.stderr.write(f"  {name} ...\r")
        sys.stderr.flush()
    action()
    clear = "\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def same_interpreter():
    """True if the stamp's place and Python are today's, so that only packages have changed."""
    with open(STAMP, encoding="utf-8") as file:
        then, now = file.read().split("\n"), stamp().split("\n")
    return then[:1] + then[2:] == now[:1] + now[2:] and os.access(PYTHON, os.X_OK)


def make_venv():
    """An empty environment at VENV; only one that dev.py made is ever replaced."""
    import shutil

    if os.path.lexists(VENV):
        ours = os.path.isdir(VENV) and not os.path.islink(VENV)
        if not ours or (os.listdir(VENV) and not os.path.exists(MARK)):
            raise Failed(f"{VENV} was not made by dev.py and will not be touched; move it away and try again")
        for name in os.listdir(VENV):  # the mark goes last: an interruption leaves it ours
            path = os.path.join(VENV, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif path != MARK:
                os.unlink(path)
    os.makedirs(VENV, exist_ok=True)
    with open(MARK, "w", encoding="utf-8") as file:
        file.write("dev.py made this environment and may delete it.\n")
    try:
        import venv
    except ImportError as error:
        raise Failed(
            f"this Python ({sys.executable}) has no venv module ({error}); on Debian or Ubuntu: "
            "apt install python3-venv; elsewhere use a Python from python.org"
        ) from error
    # Without pip: Debian splits ensurepip off, and one way for all machines is one way to test.
    venv.EnvBuilder(symlinks=True, with_pip=False).create(VENV)


def install_pip(lock):
    """Put the pinned pip into the environment, by whichever pip this machine has, or by downloading one."""
    pinned = "pip==" + pin("pip")
    wheel = bundled_pip()
    if wheel:
        return call(lock, [PYTHON, "-I", os.path.join(wheel, "pip"), "install", *QUIET, pinned])
    own = [sys.executable, "-I", "-m", "pip", "--python", PYTHON, "install", *QUIET, pinned]
    if call(lock, own, check=False) == 0:  # fails without a pip, and with one older than 22.3 (no `--python`)
        return None
    wheel = download_pip(pin("pip"), VENV)
    call(lock, [PYTHON, "-I", os.path.join(wheel, "pip"), "install", *QUIET, "--no-index", wheel])
    return os.unlink(wheel)


def install_torch(lock):
    """torch first, alone, as it decides the size of everything: the CPU build where no NVIDIA driver is."""
    version_ = pin("torch")
    if sys.platform == "linux" and not os.path.exists(NVIDIA):
        # PyPI's build for Linux brings gigabytes of CUDA. The CPU build may be where pip is told to look, or on
        # PyTorch's own index; where neither is reached, PyPI's works too.
        cpu = ["-c", CONSTRAINTS, "--no-deps", f"torch=={version_}+cpu"]
        if call(lock, [PYTHON, "-I", "-m", "pip", "install", *QUIET, *cpu], check=False) == 0:
            return
        other = ["--index-url", CPU_BUILDS, "--retries", "0", "--timeout", "15"]
        if call(lock, [PYTHON, "-I", "-m", "pip", "install", *QUIET, *other, *cpu], check=False) == 0:
            return
    pip(lock, "-c", CONSTRAINTS, f"torch=={version_}")


def pip(lock, *arguments):
    """The environment's pip installs."""
    call(lock, [PYTHON, "-I", "-m", "pip", "install", *QUIET, *arguments])


QUIET = ("--disable-pip-version-check", "--no-input", "--no-warn-script-location")


def call(lock, command, check=True):
    """Run `command` with its output in the log (and, on a terminal, its last line shown); returns its exit code.

    Raises Failed on another code than 0 if `check`, with what is known about such failures.
    """
    import subprocess

    # What would make pip install elsewhere, or other things, than asked.
    astray = {
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_USER",
        "PIP_PYTHON",
        "PIP_CONSTRAINT",
        "PYTHONHOME",
    }
    environment = {name: value for name, value in os.environ.items() if name not in astray}
    shown = sys.stderr.isatty()
    width = os.get_terminal_size(2).columns - 4 if shown else 0
    lines = []
    with open(LOG, "a", encoding="utf-8") as log:
        log.write("$ " + " ".join(command) + "\n")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            text=True,
            errors="replace",
        )
        try:
            for line in process.stdout:
                log.write(line)
                lines.append(line.rstrip())
                if shown:
                    sys.stderr.write("\r\033[K    " + line.strip()[: max(width, 0)] + "\r")
                    sys.stderr.flush()
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            process.stdout.close()
    if code and check:
        raise Failed(explain(lines))
    return code


def explain(lines):
    """What a failed pip printed, cut down to its reasons, and what to do about it."""
    errors = [line for line in lines if line.startswith(("ERROR", "error", "No module"))] or lines[-8:]
    text = "\n".join(lines)
    advice = "the whole output is in .venv/setup.log; the next call tries again"
    if "No space left on device" in text:
        advice = "free about 3 GB (the environment, and pip's temporary files in $TMPDIR), then try again"
    elif any(word in text for word in ("NewConnectionError", "NameResolutionError", "ConnectionError", "timed out")):
        advice = (
            "the package index was not reached: check the network; behind a mirror or proxy, tell pip "
            "(PIP_INDEX_URL, HTTPS_PROXY or pip's configuration), then try again"
        )
    elif "No matching distribution" in text:
        advice = (
            f"there may be no build for Python {version()} on {sys.platform} {os.uname().machine}, or the index is "
            "not reached; Python 3.11 to 3.13 (64 bit) on Linux or an Apple-silicon Mac is sure to work"
        )
    return "set-up failed\n" + "\n".join("  " + line for line in errors[-8:]) + "\n" + advice


def requirements():
    """The packages of pyproject.toml, for running and for testing."""
    import tomllib

    with open(PYPROJECT, "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    # --no-build-isolation builds surefoot's own metadata with these.
    return [*wanted, "setuptools"]


def pin(name):
    """The version of a package in constraints.txt."""
    with open(CONSTRAINTS, encoding="utf-8") as file:
        for line in file:
            found, _, version_ = line.strip().partition("==")
            if found.lower() == name:
                return version_
    raise Failed(f"{CONSTRAINTS} does not pin {name}")


def version():
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def say(text):
    print("dev.py: " + text, file=sys.stderr, flush=True)


# A pip for a Python that has none -----------------------------------------------------------------------------


def bundled_pip():
    """The path of a pip wheel on this machine (ensurepip's, or Debian's), or None."""
    import glob
    import importlib.util

    folders = ["/usr/share/python-wheels"]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        folders.insert(0, os.path.join(os.path.dirname(spec.origin), "_bundled"))
    for folder in folders:
        for wheel in sorted(glob.glob(os.path.join(folder, "pip-*.whl")), reverse=True):
            return wheel
    return None


def download_pip(version_, folder):
    """Fetch the wheel of pip `version_` from the package index (PEP 503) into `folder`; returns its path."""
    import hashlib
    import re
    import urllib.error
    import urllib.parse
    import urllib.request

    name = f"pip-{version_}-py3-none-any.whl"
    problems = []
    for index in indexes():
        page = index.rstrip("/") + "/pip/"
        try:
            with urllib.request.urlopen(page, timeout=30) as answer:
                html, page = answer.read().decode(), answer.url
            for href in re.findall(r'href="([^"]+)"', html):
                url, _, fragment = urllib.parse.urljoin(page, href).partition("#")
                if urllib.parse.unquote(url).endswith("/" + name):
                    with urllib.request.urlopen(url, timeout=60) as answer:
                        data = answer.read()
                    wanted = fragment.partition("sha256=")[2]
                    if wanted and hashlib.sha256(data).hexdigest() != wanted:
                        raise Failed(f"{url}: the download is damaged (its SHA-256 is not the index's); try again")
                    path = os.path.join(folder, name)
                    with open(path, "wb") as file:
                        file.write(data)
                    return path
            problems.append(f"{page}: has no {name}")
        except (OSError, ValueError) as error:  # URLError is an OSError
            problems.append(f"{page}: {getattr(error, 'reason', error)}")
    raise Failed(
        "this Python has no pip and none could be downloaded:\n  "
        + "\n  ".join(problems)
        + "\ncheck the network, or install pip (on Debian or Ubuntu: apt install python3-venv), then try again"
    )


def indexes():
    """The package indexes that pip would use: its environment, its configuration files, or PyPI."""
    import configparser

    settings = {}
    home = os.path.expanduser("~")
    for path in (
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        os.path.join(home, ".pip", "pip.conf"),
        os.path.join(os.environ.get("XDG_CONFIG_HOME", os.path.join(home, ".config")), "pip", "pip.conf"),
        os.environ.get("PIP_CONFIG_FILE", os.devnull),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update(parser.items(section))
    first = os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or "https://pypi.org/simple"
    more = os.environ.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url") or ""
    return [first, *more.split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Make every hostile file and open each as a user would, in this one process of bounded memory; tell what happened.

    python -m hostile.open_all FOLDER CANARY [--whole]

Limits on operations and objects are a tenth of the reader's own, or with --whole those. It prints one JSON object a
case: name, error (class), message, seconds, megabytes (peak above the start), events (what an audit hook saw), changed
(whether the model passed in or the file was touched).
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType

# Any of these is code run on a file's behalf; the loaders need none of them.
WATCHED = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect", "socket.getaddrinfo",
    "webbrowser.open", "shutil.rmtree", "os.remove", "os.rename", "os.chmod",
}  # fmt: skip
MEMORY_ABOVE_START = 1536 * 2**20
SECONDS = 20  # of the processor, so that a busy machine changes nothing
WAITED = 300  # seconds by the clock: only something that waits for ever takes them


def by_import(frame: FrameType) -> bool:
    """Whether Python's own import is at work: reading the .pyc of a module that is needed now for the first time."""
    return frame.f_code.co_filename == "<frozen importlib._bootstrap_external>"


def main(folder: Path, canary: Path, whole: bool = False) -> None:
    """Open all cases of the corpus; the files are made first, so that the limits hold for opening alone."""
    import torch

    from hostile.case import LIMITS
    from hostile.corpus import corpus
    from surefoot.artifacts import onnx_file, open_model, pickled
    from surefoot.models import MLP

    torch.set_num_threads(1)
    onnx_file.MAX_SECONDS = 1
    for limit, tenth in LIMITS.items():
        own = getattr(pickled, limit)
        assert own == 10 * tenth
        LIMITS[limit] = own if whole else tenth
        setattr(pickled, limit, LIMITS[limit])
    made = []
    for number, case in enumerate(corpus(canary)):
        place = folder / str(number)
        place.mkdir()
        made.append((case, case.make(place)))
    model = MLP(in_features=4, hidden=[], classes=1)
    warm_up(folder, model)
    os.chdir(folder)
    before = fingerprint(model)
    start = status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (start * 1024 + MEMORY_ABOVE_START,) * 2)
    events: list[str] = []

    def watch(event: str, args: tuple) -> None:
        if event in WATCHED and not (event == "marshal.loads" and by_import(sys._getframe(1))):
            events.append(event)

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGPROF, out_of_time)
    for case, path in made:
        given = None if "info_" in case.name or path.suffix in (".pt2", ".onnx") or path.is_dir() else model
        listing = sorted(map(str, path.parent.rglob("*")))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        resident = status("VmRSS")
        events.clear()
        error, message = "none", ""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAITED)
        began = time.perf_counter()
        try:
            opened = open_model(path, given)
            if path.suffix == ".onnx":
                opened(torch.zeros(2, 4))
        except BaseException as found:
            error, message = type(found).__name__, str(found)
        seconds = time.perf_counter() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        changed = fingerprint(model) != before or sorted(map(str, path.parent.rglob("*"))) != listing
        result = {
            "name": case.name,
            "error": error,
            "message": message,
            "said": re.search(case.said, message) is not None,
            "seconds": seconds,
            "megabytes": (status("VmHWM") - resident) / 1024,
            "size": size_of(path),
            "events": sorted(set(events)),
            "changed": changed,
        }
        print(json.dumps(result), flush=True)


def warm_up(folder: Path, model: object) -> None:
    """Load what the readers import lazily, so that it is counted neither as memory nor as events of a case."""
    import torch

    from hostile import building
    from surefoot.artifacts import export, open_model

    place = folder / "warm"
    place.mkdir()
    (place / "m.pth").write_bytes(building.torch_file(building.pickle(building.state(w=building.tensor()))))
    for ending in ("onnx", "safetensors"):
        export(model, place / f"m.{ending}", batch=torch.zeros(2, 4))  # type: ignore[arg-type]
        open_model(place / f"m.{ending}", None if ending == "onnx" else model)  # type: ignore[arg-type]


def out_of_time(*_: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} seconds")


def fingerprint(model: object) -> list[bytes]:
    """The bytes of every tensor of the model."""
    return [t.numpy().tobytes() for t in model.state_dict().values()]  # type: ignore[attr-defined]


def status(field: str) -> int:
    """A number of kilobytes from /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1])


def size_of(path: Path) -> float:
    """Megabytes on the disk; what is no regular file counts nothing."""
    try:
        return path.lstat().st_size / 2**20
    except OSError:
        return 0.0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--whole" in sys.argv)

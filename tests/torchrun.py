"""A recipe under torchrun whose loss does harm at a chosen call: `launch` it, and what the run left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# HARM is "rank call what [where]": at that call of the loss ("step": in an update), or fsync of a checkpoint ("save"),
# in that rank's first attempt. The folder TIMES has the seconds at which that was, and each attempt's first update.
LOSS = """
import os, signal, time
import torch
from surefoot import files
from surefoot.step import TrainStep

rank, call, what, where = (os.environ.get("HARM", "0 0 none").split() + ["loss"])[:4]
attempt, me = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
calls, agent, updating, updates = 0, os.getppid(), False, 0

def note(name):
    if "TIMES" in os.environ:
        with open(os.path.join(os.environ["TIMES"], name), "a") as file:
            file.write(f"{time.time()}\\n")

def loss(outputs, targets):
    count("loss")
    if updating:
        count("step")
    return torch.nn.functional.cross_entropy(outputs, targets)

def count(here):
    global calls
    calls += here == where
    if attempt == "0" and me == rank and here == where and calls == int(call):
        note("harmed")
        harm()

def harm():
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "raise":
        raise KeyError("a column")
    if what == "late":
        time.sleep(2)
    if what == "term_one":
        os.kill(os.getpid(), signal.SIGTERM)
    if what in ("term_agent", "term_agent_twice", "term_all"):
        os.kill(agent, signal.SIGTERM)
    if what == "term_agent_twice":
        os.kill(agent, signal.SIGTERM)
    if what == "term_all":  # as a scheduler does: the agent sends them one more
        for pid in open(f"/proc/{agent}/task/{agent}/children").read().split():
            os.kill(int(pid), signal.SIGTERM)

class Harmful(files.System):
    def fsync(self, descriptor):
        if "step-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            count("save")
        return files.durable_fsync(descriptor)

if where == "save":
    files.system = Harmful()
if "TIMES" in os.environ:
    update = TrainStep.__call__

    def noted(self, parts):
        global updating, updates
        updating = True
        result = update(self, parts)
        updating, updates = False, updates + 1
        if updates == 1 and me == "0":
            note(f"attempt-{attempt}")
        return result

    TrainStep.__call__ = noted
"""
RECIPE = """
epochs: 3
model: {name: LeNet5}
data: {name: garments, train_size: 120, val_size: 40, batch_size: 12}
loss: {import: "harmful:loss"}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
checkpoint: {every: 4 steps}
log_every: 1
execution: plain
tensorboard: false
metrics: []
"""


def prepare(folder: Path, epochs: int = 3) -> Path:
    """The recipe and its loss in `folder`; returns the recipe."""
    (folder / "harmful.py").write_text(LOSS)
    recipe = folder / "r.yaml"
    recipe.write_text(RECIPE.replace("epochs: 3", f"epochs: {epochs}"))
    return recipe


def launch(folder: Path, *words: str, ranks: int = 2, restarts: int = 0, harm: str = "") -> subprocess.Popen:
    """`torchrun ... -m surefoot WORDS` in `folder`, its outputs together in one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--log-dir", str(folder / "torchrun")]  # else its own files stay in the temporary directory
    command += ["--max-restarts", str(restarts), "-m", "surefoot", *words]
    environment = os.environ | ({"HARM": harm} if harm else {}) | {"TIMES": str(folder)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)


def finished(process: subprocess.Popen, seconds: float = 120) -> tuple[int, str]:
    """The exit code and all output; every process of it is ended after `seconds`."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output


def since(folder: Path, name: str, begun: float | None = None) -> float | None:
    """The seconds from `begun`, or from the harm, to what a run has noted by that name; None where it has not."""
    if not (folder / name).exists():
        return None
    return _first(folder / name) - (_first(folder / "harmed") if begun is None else begun)


def _first(path: Path) -> float:
    return float(path.read_text().split()[0])


def left(run: Path) -> list[str]:
    """Hashes of the model, the last checkpoint's tensors and the records of a run that is done."""
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "done" and not about["inexact"], about
    last = max(run.glob("checkpoints/step-*"))
    files = [run / "model/model.safetensors", last / "model.safetensors", last / "optimizer.safetensors"]
    lines = [{**json.loads(line), "wall_s": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [hashlib.sha256(data).hexdigest() for data in (*(f.read_bytes() for f in files), json.dumps(lines).encode())]

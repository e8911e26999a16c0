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

# HARM is "rank call what": at that call of the loss in that rank's first attempt.
LOSS = """
import os, signal
import torch

calls = 0

def loss(outputs, targets):
    global calls
    calls += 1
    rank, call, what = os.environ.get("HARM", "0 0 none").split()
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and calls == int(call) and os.environ.get("RANK", "0") == rank:
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "raise":
            raise KeyError("a column")
        if what == "term_one":
            os.kill(os.getpid(), signal.SIGTERM)
        if what in ("term_agent", "term_all"):
            os.kill(os.getppid(), signal.SIGTERM)
        if what == "term_all":  # as a scheduler does: the agent sends them one more
            for pid in open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split():
                os.kill(int(pid), signal.SIGTERM)
    return torch.nn.functional.cross_entropy(outputs, targets)
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


def prepare(folder: Path) -> Path:
    """The recipe and its loss in `folder`; returns the recipe."""
    (folder / "harmful.py").write_text(LOSS)
    recipe = folder / "r.yaml"
    recipe.write_text(RECIPE)
    return recipe


def launch(folder: Path, *words: str, ranks: int = 2, restarts: int = 0, harm: str = "") -> subprocess.Popen:
    """`torchrun ... -m surefoot WORDS` in `folder`, its outputs together in one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--log-dir", str(folder / "torchrun")]  # else its own files stay in the temporary directory
    command += ["--max-restarts", str(restarts), "-m", "surefoot", *words]
    environment = os.environ | ({"HARM": harm} if harm else {})
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


def left(run: Path) -> list[str]:
    """Hashes of the model, the last checkpoint's tensors and the records of a run that is done."""
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "done" and not about["inexact"], about
    last = max(run.glob("checkpoints/step-*"))
    files = [run / "model/model.safetensors", last / "model.safetensors", last / "optimizer.safetensors"]
    lines = [{**json.loads(line), "wall_s": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [hashlib.sha256(data).hexdigest() for data in (*(f.read_bytes() for f in files), json.dumps(lines).encode())]

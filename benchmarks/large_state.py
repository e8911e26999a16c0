"""What saving a large state costs: the stall of each save, waiting or skipping, and memory (docs/reliability.md).

python benchmarks/large_state.py [GB] [FOLDER]
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from surefoot import Checkpointer


def main(gigabytes: float, folder: Path) -> None:
    """Save a state of that size (weights and two moments of AdamW) again and again, as fast as the loop turns."""
    parts = 16
    model = nn.ParameterList([torch.zeros(int(gigabytes * 1e9 / 12 / parts)) for _ in range(parts)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model:
        parameter.grad = None
    state = 3 * sum(p.numel() * p.element_size() for p in model) / 1e9
    print(f"state {state:.2f} GB; process before the first save {peak():.2f} GB (its peak, gradients included)")
    for when_busy in ("wait", "skip"):
        run = folder / when_busy
        with Checkpointer(
            run, every="1 step", keep_last=1, when_busy=when_busy, model=model, optimizer=optimizer, say=lambda _: None
        ) as saver:
            saver.resume()
            stalls = []
            for _ in range(40 if when_busy == "skip" else 4):
                start = time.perf_counter()
                saver.step()
                stalls.append(time.perf_counter() - start)
                time.sleep(0.1)
            skipped = saver.skipped
        shown = ", ".join(f"{seconds:.2f}" for seconds in stalls[:4])
        print(
            f"{when_busy}: first four steps {shown} s; longest later {max(stalls[1:]):.2f} s; {skipped} saves left out"
        )
        print(f"peak {peak():.2f} GB, {peak() / state:.2f} times the state")


def peak() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    home = Path(tempfile.mkdtemp(prefix="surefoot-large-", dir=sys.argv[2] if len(sys.argv) > 2 else None))
    try:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0, home)
    finally:
        shutil.rmtree(home)

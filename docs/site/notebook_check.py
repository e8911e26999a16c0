"""A real kernel shows a run, is interrupted in it and goes on: run by `make_site.py` in the environment of the site."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SETUP = """
import os, time, torch, surefoot

class Slow(torch.nn.Linear):
    def forward(self, inputs):
        time.sleep(float(os.environ["PAUSE"]))
        return super().forward(inputs)

def job(run_dir, epochs=3):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = (x.sum(1) > 0).long()
    model = Slow(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = surefoot.RunOptions(execution="plain", lint_off="all")
    return model, surefoot.fit(model, torch.nn.CrossEntropyLoss(), optimizer, (x, y), val=(x, y), epochs=epochs,
                               batch_size=8, run_dir=run_dir, resume=True, run=run)
os.environ["PAUSE"] = "0"
"""
CELLS = [
    SETUP,
    "whole, result = job('whole'); result",
    "os.environ['PAUSE'] = '0.2'; model, result = job('stopped')",
    "os.environ['PAUSE'] = '0'; model, result = job('stopped'); print(torch.equal(model.weight, whole.weight))",
]


async def check() -> None:
    """Raises AssertionError where the notebook does not show what it should."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    with tempfile.TemporaryDirectory() as home:
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": home}})
        async with client.async_setup_kernel():
            for index in (0, 1):
                await client.async_execute_cell(notebook.cells[index], index)
            running = asyncio.create_task(client.async_execute_cell(notebook.cells[2], 2))
            until = time.monotonic() + 120
            while not notebook.cells[2].outputs and time.monotonic() < until:  # its first output: the run has begun
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            await client.km.interrupt_kernel()
            with contextlib.suppress(CellExecutionError):
                await running
            await client.async_execute_cell(notebook.cells[3], 3)
    live, result = notebook.cells[1].outputs
    assert "epoch 3/3" in live.data["text/plain"] and "image/svg+xml" in live.data["text/html"], live
    assert "val/accuracy" in result.data["text/html"], result
    stopped = notebook.cells[2].outputs[-1]
    assert stopped.output_type == "error" and stopped.ename == "Stopped", stopped
    told = "\n".join(stopped.traceback)
    assert "saved in stopped" in told and "resume=True" in told and "File" not in told, told
    assert any(output.get("text") == "True\n" for output in notebook.cells[3].outputs), notebook.cells[3].outputs


if __name__ == "__main__":
    asyncio.run(check())
    print("a notebook shows a run, stops it and goes on")

"""The command under torchrun itself: stopped by a scheduler, killed, restarted, it ends as one process would."""

from __future__ import annotations

import json

import pytest
import torchrun

from surefoot.cli import main


def test_stopped_resumed_killed_and_restarted_under_torchrun_a_run_has_the_bits_of_one_process(tmp_path, monkeypatch):
    """SIGTERM comes to the agent and to each worker, as from a scheduler; after the resume one worker is killed."""
    recipe = torchrun.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    stopping = torchrun.launch(tmp_path, "train", str(recipe), "--dir", "run", harm="1 7 term_all")
    code, output = torchrun.finished(stopping)
    assert code != 0 and output.count("surefoot: stopped by SIGTERM after step") == 1, output
    assert "go on with `" in output and "torchrun --nproc-per-node 2 -m surefoot -- resume run" in output
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    resuming = torchrun.launch(tmp_path, "resume", "run", restarts=1, harm="1 9 kill")
    code, output = torchrun.finished(resuming)
    assert code == 0 and output.count("r: done") == 1, output
    assert main(["train", str(recipe), "--run", "alone", "micro_batches=2"]) == 0
    assert torchrun.left(tmp_path / "run") == torchrun.left(tmp_path / "alone")


@pytest.mark.slow  # it compiles, by Inductor itself
@pytest.mark.parametrize(("parallel", "form"), [("ddp", "gradients"), ("fsdp2", "module")])
def test_a_run_that_inductor_compiled_goes_on_under_torchrun_to_the_same_bits(parallel, form, tmp_path, monkeypatch):
    recipe = torchrun.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    fixed = f"{{compile: {form}, threads: 1, onednn: true, memory_format: contiguous, optimizer_impl: default}}"
    # Of LeNet-5's convolutions torch 2.13 makes wrong gradients as a module, which is refused.
    compiled = ["model={name: MLP}", "loss={name: CrossEntropyLoss}", f"execution={fixed}", f"parallel={parallel}"]
    for words in (
        ["train", str(recipe), "--dir", "whole", *compiled],
        ["train", str(recipe), "--dir", "longer", *compiled, "epochs=1"],
        ["resume", "longer", "epochs=3"],
    ):
        code, output = torchrun.finished(torchrun.launch(tmp_path, *words), seconds=300)
        assert code == 0 and f"compiled {form}" in output and "not compiled" not in output, output
    models = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "longer")]
    assert models[0] == models[1]

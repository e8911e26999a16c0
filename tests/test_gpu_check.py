"""The check for one GPU (`dev.py cuda`), its logic on a CPU: what it finds, what it says, and that it ends in time."""

from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # main sets it where nobody has
    return importlib.import_module("gpu")


@pytest.fixture
def bench(gpu):
    return gpu.Bench("cpu", small=True)


def test_its_sections_pass_on_a_cpu(gpu, tmp_path, capsys):
    names = [name for name in gpu.SECTIONS if name != "speed"]
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path / "found.json"), "--only", *names]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == names and all(result["passed"] for result in found.values()), found
    assert found["resumed"]["found"] == {f"eager: {o}": "equal" for o in ("load, then capture", "capture, then load")}
    assert found["exact"]["found"]["stopped after epoch 1 of 3"] == "the same bits"
    assert found["save_pause"]["found"]["what was saved"] == "as it was then"
    out = capsys.readouterr().out
    assert "ok     resumed" in out and "pause_ms" in out and not (tmp_path / "found.part").exists()


def test_each_row_has_the_times_of_each_contender(gpu, bench):
    found = {}
    gpu.sections.speed(bench, found, [("lenet", 2)])
    names = ("hand", "plain", "eager", "chosen")
    assert list(found) == [f"lenet, batch 2, {p} | {name}" for p in ("float32", "bf16") for name in names]
    assert all(ms > 0 for ms in found.values()) and gpu.SECTIONS["speed"][2](found)
    times = {"hand": 4.0, "captured": 2.0, "plain": 3.0, "reduce-overhead": 1.0, "torch.compile": "refused: no"}
    assert gpu._times(times).endswith("torch.compile refused: no; 2.00x hand; 0.50x reduce-overhead")


def test_what_cannot_be_made_here_is_an_entry_and_takes_no_other(gpu, bench, monkeypatch):
    """On a machine without a GPU a capture is refused, as any error of a device would be."""
    execution = gpu.sections.Execution
    forms = {"captured": execution(cuda_graph=True), "eager": execution()}
    monkeypatch.setattr(bench, "forms", lambda: forms)
    found = {}
    gpu.sections.resumed(bench, found)
    assert [text.partition(":")[0] for text in found.values()] == ["refused", "refused", "equal", "equal"]
    assert not gpu.SECTIONS["resumed"][2](found)
    monkeypatch.setattr(gpu.sections, "_waits", lambda *_: {}["a kernel"])
    gpu.sections.waits(bench, found := {})
    assert set(found.values()) == {"KeyError: 'a kernel'"}


def test_a_form_that_is_wrong_is_found(gpu, bench, monkeypatch):
    step, batch = bench.step("lenet", 4)

    def wrong(micro_batches):
        result = step.plain(micro_batches)
        with torch.no_grad():
            next(step.model.parameters()).add_(1.0)
        return result

    monkeypatch.setattr(gpu.sections, "make_backend", lambda *_, **__: wrong)
    assert "differs from eager" in gpu.sections._compared(bench.forms()["eager"], step, batch)


def test_what_was_changed_while_it_was_saved_is_noticed(gpu, bench, monkeypatch):
    image = importlib.import_module("surefoot.checkpoint.file_image").FileImage
    fill = image.fill
    monkeypatch.setattr(
        image, "fill", lambda self, tensors: fill(self, {k: t.detach() + 1 for k, t in tensors.items()})
    )
    gpu.sections.save_pause(bench, found := {})
    assert found["what was saved"] == "not as it was then"


def hangs(bench, found):
    found["first"] = 1.0
    while True:
        pass


def dies(bench, found):
    found["first"] = "equal"
    os.kill(os.getpid(), signal.SIGKILL)


def fails(bench, found):
    raise ValueError("no such kernel")


def stuck(bench, found):
    """As in a call of the driver, which no alarm of Python's ends."""
    found["first"] = "equal"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    while True:
        pass


@pytest.mark.parametrize("here", [False, True])
def test_one_section_does_not_take_the_others_with_it(gpu, bench, tmp_path, monkeypatch, here):
    good = gpu.all_are("equal")
    sections = {"speed": (hangs, 0.2, lambda found: True), "fails": (fails, 5, good)}
    if not here:
        monkeypatch.setattr(gpu, "GRACE_S", 0.2)
        sections |= {"dies": (dies, 5, good), "stuck": (stuck, 0.2, good)}
    monkeypatch.setattr(gpu, "SECTIONS", sections | {"environment": gpu.SECTIONS["environment"]})
    said, path = [], tmp_path / "found.json"

    def say(text):
        said.append((text, list(json.loads(path.read_text()))))

    found = gpu.run(bench, list(gpu.SECTIONS), 60, path, here=here, say=say)
    assert [names for _, names in said] == [list(found)[: n + 1] for n in range(len(found))]  # written after each
    assert found["speed"]["passed"] and found["speed"]["found"] == {"first": 1.0}
    assert found["speed"]["ended"].startswith("speed took more than")
    assert found["fails"]["ended"] == "ValueError: no such kernel" and not found["fails"]["passed"]
    assert found["environment"]["passed"] and "ended" not in found["environment"]
    if not here:
        assert found["dies"]["found"] == {"first": "equal"} and not found["dies"]["passed"]
        assert found["stuck"]["ended"] == "killed after 0 s" and found["stuck"]["found"] == {"first": "equal"}
    assert said[1][0].splitlines()[0].startswith("FAILED fails")
    late = gpu.run(bench, ["fails"], 0, path, here=here, say=say)
    assert late["fails"]["ended"] == "not run: no time was left" and not late["fails"]["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_runs(gpu, capsys):
    assert gpu.main([]) == 2
    assert "--device cpu runs the same logic" in capsys.readouterr().out

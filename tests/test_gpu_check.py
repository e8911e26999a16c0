"""The check for one GPU (`dev.py cuda`), its logic on a CPU: what it finds, what it says, and that it ends in time."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return importlib.import_module("gpu")


def test_its_sections_pass_on_a_cpu(gpu, tmp_path, capsys):
    sections = ["environment", "resumed", "exact", "waits", "save_pause"]
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path / "found.json"), "--only", *sections]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == sections and all(result["passed"] for result in found.values())
    assert found["resumed"]["found"] == {f"eager: {o}": "equal" for o in ("load, then capture", "capture, then load")}
    assert found["exact"]["found"] == {"stopped after epoch 1 of 3": "the same bits"}
    out = capsys.readouterr().out
    assert "ok     resumed" in out and "pause_ms" in out


def test_forms_are_compared_and_rows_are_timed(gpu):
    bench = gpu.Bench("cpu", small=True)
    step, batch = bench.step("gpt", 2, precision="bf16")
    assert gpu._compared(bench.forms()["eager"], step, batch) == "equal"
    assert gpu._one_cycle(bench, bench.forms()["eager"]) == "equal"
    ((name, row),) = [next(gpu.speed(bench, rows=[("resnet", 2)]))]
    assert name == "resnet, batch 2, float32" and {"hand", "plain"} < set(row) and min(row.values()) > 0


def test_a_form_that_is_wrong_is_found(gpu, monkeypatch):
    bench = gpu.Bench("cpu", small=True)
    step, batch = bench.step("lenet", 4)

    def wrong(micro_batches):
        result = step.plain(micro_batches)
        with torch.no_grad():
            next(step.model.parameters()).add_(1.0)
        return result

    monkeypatch.setattr(gpu, "make_backend", lambda *_, **__: wrong)
    assert "differs from eager" in gpu._compared(bench.forms()["eager"], step, batch)


def test_one_section_does_not_take_the_others_with_it(gpu, monkeypatch):
    def late(bench):
        while True:
            pass

    def broken(bench):
        raise ValueError("no such kernel")

    sections = {"late": (late, 0.2), "broken": (broken, 5), "environment": gpu.SECTIONS["environment"]}
    monkeypatch.setattr(gpu, "SECTIONS", sections | {"never": (broken, 5)})
    bench = gpu.Bench("cpu", small=True)
    found = gpu.run(bench, list(sections), 60)
    assert found["broken"]["ended"] == "ValueError: no such kernel" and found["environment"]["passed"]
    assert found["late"]["ended"].startswith(("late took more", "not run"))
    assert gpu.run(bench, ["never"], 0)["never"]["ended"] == "not run: no time was left"
    assert gpu.page(found).splitlines()[0].startswith("FAILED late")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_runs(gpu, capsys):
    assert gpu.main([]) == 2
    assert "--device cpu runs the same logic" in capsys.readouterr().out

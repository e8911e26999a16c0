"""The command as its user meets it: what it prints, what it leaves, what it exits with."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import SMALL, files_in, refused

from surefoot.cli import VERBS, listing, main, make_parser


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    """Each test in a directory of its own: the default run directory is relative."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "quickstart", "--run", str(run), *SMALL]) == 0
    return run


# What others rely on; a change here is a change of the interface and belongs into the changelog.
COMMAND_LINE = {
    "train": {
        "overrides",
        "--run",
        "--resume",
        "--from",
        "--epochs-done",
        "--allow",
        "--horizon",
        "--timeout",
        "--quiet",
        "--trust-code",
    },
    "resume": {"run_dir", "overrides", "--allow", "--horizon", "--timeout", "--quiet", "--trust-code"},
    "check": {"recipe", "overrides", "--trust-code"},
    "plan": {"recipe", "overrides", "--png", "--svg", "--json", "--trust-code"},
    "lr-find": {"recipe", "overrides", "--start", "--end", "--steps", "--png", "--svg", "--json", "--trust-code"},
    "tune": {"recipe", "overrides", "--forget", "--seconds", "--trust-code"},
    "eval": {
        "path",
        "--data",
        "--split",
        "--best",
        "--worst",
        "--json",
        "--csv",
        "--out",
        "--model",
        "--key",
        "--trust-code",
    },
    "predict": {
        "path",
        "files",
        "--top",
        "--masks",
        "--json",
        "--csv",
        "--out",
        "--data",
        "--model",
        "--key",
        "--trust-code",
    },
    "export": {"path", "--to", "--best", "--data", "--model", "--key", "--trust-code"},
    "import": {
        "file",
        "overrides",
        "--model",
        "--to",
        "--data",
        "--key",
        "--prefix",
        "--except",
        "--cast",
        "--trust-code",
    },
    "push": {
        "path",
        "repository",
        "--to",
        "--best",
        "--private",
        "--message",
        "--data",
        "--model",
        "--key",
        "--trust-code",
    },
    "runs": {"words", "--best", "--where", "--sort", "--reverse", "--json", "--remove", "--keep-best", "--yes"},
    "report": {"run_dir", "--serve", "--port"},
    "compare": {"runs", "--best", "--seeds", "--html", "--json"},
    "sweep": {"sweep", "--dir", "--jobs", "--take-over", "--json"},
    "track": {"run_dir", "--to", "--follow"},
    "pack": {"run_dir", "--to"},
    "unpack": {"file", "--to"},
    "checkpoints": {"run_dir", "--json"},
    "verify": {"recipe", "overrides", "--kills", "--ranks", "--seed", "--keep", "--with", "--compare", "--trust-code"},
    "list": {"kind", "--json"},
    "explain": {"names", "--lang"},
    "schema": set(),
}


def test_the_command_line_is_what_it_was():
    parser = make_parser()
    verbs = next(action for action in parser._actions if action.dest == "verb").choices
    found = {
        verb: {
            action.option_strings[-1] if action.option_strings else action.dest
            for action in verb_parser._actions
            if action.dest != "help"
        }
        for verb, verb_parser in verbs.items()
    }
    assert found == COMMAND_LINE
    assert set(VERBS) == set(COMMAND_LINE)


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    told = capsys.readouterr().out.split()
    assert set(VERBS) <= set(told)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    assert VERBS[verb][1].split(",")[0].lower() in capsys.readouterr().out.replace("\n", " ").lower()


def test_overrides_may_stand_before_and_after_options(capsys):
    told = refused(capsys, "train", "--run", "x", "quickstart", "epochs=0", "--resume", "seed=-1")
    assert "epochs: 0 is below 1" in told
    assert "seed: -1 is below 0" in told


def test_an_unknown_option_is_not_an_override(capsys):
    assert "--epochs" in refused(capsys, "train", "--epochs", "3")


def test_a_run_leaves_what_is_promised(small_run):
    left = set(files_in(small_run))
    assert {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "report.html",
        "validation.json",
        "model/model.safetensors",
        "model/model.json",
        "model/best/model.safetensors",
        "model/best/model.json",
        "checkpoints/step-000000020/MANIFEST.json",
    } <= left
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in left)
    assert json.loads((small_run / "run.json").read_text())["status"] == "done"


def test_the_resolved_recipe_makes_the_same_run(small_run, tmp_path, capsys):
    assert main(["train", str(small_run / "recipe.yaml"), "--run", str(tmp_path / "again")]) == 0
    one = (small_run / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == one


def test_the_default_run_directory_is_named_after_recipe_and_time(tmp_path, capsys):
    assert main(["train", *SMALL, "epochs=1"]) == 0
    (run,) = (tmp_path / "runs" / "quickstart").iterdir()
    told = capsys.readouterr().out
    assert f"runs/quickstart/{run.name}" in told
    assert "surefoot eval" in told


def test_evaluation_agrees_with_the_journal(small_run, capsys):
    assert main(["eval", str(small_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert found["accuracy"] == last["accuracy"]
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert sum(map(sum, found["confusion"])) == found["samples"] == 80
    assert main(["eval", str(small_run), "--best"]) == 0
    assert "mostly mistaken for" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["pth", "safetensors", "pt2", "onnx"])
def test_every_format_is_exported_and_evaluates_alike(small_run, tmp_path, capsys, ending):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    to = tmp_path / f"model.{ending}"
    assert main(["export", str(small_run), "--to", str(to)]) == 0
    assert ("bit by bit" if ending in ("pth", "safetensors") else "largest difference") in capsys.readouterr().out
    small_data = small_run / "recipe.yaml"
    model = {"pth": ["--model", "LeNet5"], "pt2": ["--trust-code"]}.get(ending, [])
    assert main(["eval", str(to), "--data", str(small_data), "--json", *model]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert main(["eval", str(small_run), "--json"]) == 0
    assert exported["accuracy"] == json.loads(capsys.readouterr().out)["accuracy"]


def test_weights_from_elsewhere_are_imported_and_used(tmp_path, capsys):
    import torch

    from surefoot.models import LeNet5

    torch.save(LeNet5().state_dict(), "model_params.pth")  # the tutorial's last line
    assert main(["import", "model_params.pth", "--model", "LeNet5", "--data", "garments"]) == 0
    assert "10 tensors of LeNet5" in capsys.readouterr().out
    assert main(["eval", "model_params", "--data", "garments", "--json"]) == 0
    imported = json.loads(capsys.readouterr().out)
    assert main(["eval", "model_params.pth", "--model", "LeNet5", "--data", "garments", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == imported["loss"]


def test_prediction_names_the_class_and_how_sure(small_run, capsys):
    import numpy
    from PIL import Image

    from surefoot.data import DATA

    splits = DATA.build("garments", {"train_size": 20, "val_size": 20})
    Image.fromarray(splits.val.tensors[0][0, 0].numpy()).save("shirt.png")
    numpy.save("two.npy", splits.val.tensors[0][:2].numpy())
    assert main(["predict", str(small_run), "shirt.png", "two.npy", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert rows[0]["predictions"] == rows[1]["predictions"]
    assert all(0 <= p["probability"] <= 1 for row in rows for p in row["predictions"])
    assert {p["class"] for row in rows for p in row["predictions"]} <= set(splits.classes)


def test_checkpoints_are_listed_and_damage_is_named(small_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    assert main(["checkpoints", str(run)]) == 0
    assert "step        20  whole" in capsys.readouterr().out
    weights = run / "checkpoints" / "step-000000020" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["checkpoints", str(run)]) == 0
    told = capsys.readouterr().out
    assert "model.safetensors" in told
    assert "goes on from step 10" in told
    assert main(["resume", str(run)]) == 0
    assert "stepped over" in capsys.readouterr().out
    weights = Path("model", "model.safetensors")
    assert (run / weights).read_bytes() == (small_run / weights).read_bytes()


def test_a_checkpoint_that_knows_of_records_that_were_lost_is_not_said_to_be_resumed(small_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    journal = run / "metrics.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert main(["checkpoints", str(run)]) == 0
    told = capsys.readouterr().out
    assert "of the journal, which holds" in told and "goes on from step 10" in told
    assert main(["resume", str(run)]) == 0
    assert "step-000000020: needs" in capsys.readouterr().out


def test_a_name_that_is_too_long_is_told(small_run, tmp_path, capsys):
    assert main(["export", str(small_run), "--to", str(tmp_path / f"{'x' * 248}.pth")]) == 1
    told = capsys.readouterr().err
    assert "File name too long; give a shorter name" in told and "Traceback" not in told


def test_longer_training_is_asked_for_its_horizon(small_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    told = refused(capsys, "resume", str(run), "epochs=3")
    assert "--horizon keep" in told and "CosineAnnealingLR.T_max" in told
    assert "epochs: 2" in (run / "recipe.yaml").read_text()
    assert main(["resume", str(run), "epochs=3", "--horizon", "keep"]) == 0
    assert "epochs: 3" in (run / "recipe.yaml").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["kind"] == "epoch" and r["split"] == "val"] == [0, 1, 2]


def test_another_execution_on_resume_is_told_and_can_be_allowed(small_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    onednn = json.loads((run / "run.json").read_text())["execution"]["onednn"]
    other = f"execution.onednn={str(not onednn).lower()}"
    longer = ["epochs=3", "--horizon", "keep"]
    assert "execution.onednn: was" in refused(capsys, "resume", str(run), other, *longer)
    allowed = ["--allow", "execution.onednn", "--allow", "flags.mkldnn"]
    assert main(["resume", str(run), other, *longer, *allowed]) == 0
    told = json.loads((run / "run.json").read_text())
    assert told["execution"]["onednn"] is not onednn
    assert any("execution.onednn" in change for change in told["inexact"])


@pytest.mark.parametrize("kind", listing.KINDS)
def test_every_kind_is_listed(kind, capsys):
    assert main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["name"] and row["summary"] for row in rows)
    assert main(["list", kind]) == 0
    assert all(f"{row['name']}: " in capsys.readouterr().out for row in rows[:1])


def test_the_schema_takes_every_packaged_recipe(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    from surefoot import recipe

    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    for name in recipe.packaged_names():
        kind(schema).validate(recipe.load_recipe(name).plain())


def test_a_recipe_is_checked_without_training(capsys, tmp_path):
    assert main(["check", "quickstart", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "the recipe is sound" in told
    assert "44,426 parameters" in told
    assert files_in(tmp_path) == []


def test_the_plan_is_drawn_before_the_run_and_writes_only_what_was_asked_for(capsys, tmp_path):
    assert main(["plan", "quickstart", *SMALL, "--svg", "plan.svg"]) == 0
    told = capsys.readouterr().out
    assert "20 = 2 epochs" in told
    assert files_in(tmp_path) == ["plan.svg"]
    assert Path("plan.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_plan_shows_on_a_terminal_how_far_it_is(capsys, monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    monkeypatch.setattr("surefoot.schedules.simulation._SHOWN", 5)
    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["plan", "quickstart", *SMALL, "scheduler.by=step"]) == 0
        assert ("computing the learning rates: 25 % of 20 calls" in stream.getvalue()) is shown
    assert "computing" not in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["plan", "lr-find"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a.png", "pictures are written as SVG; give a.svg"),
        ("missing/a.svg", "the directory missing does not exist"),
        ("here.svg", "is a directory"),
    ],
)
def test_a_picture_that_cannot_be_is_told_before_any_work(verb, path, told, capsys, tmp_path):
    Path("here.svg").mkdir()
    option = "--png" if path.endswith(".png") else "--svg"
    assert main([verb, "quickstart", option, path]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scheduler", "key"),
    [("StepLR", "optimizer.lr"), ("{name: OneCycleLR, max_lr: 0.1}", "scheduler.max_lr"), ("null", "optimizer.lr")],
)
def test_lr_find_advises_the_key_that_decides_the_rate(scheduler, key, capsys, monkeypatch):
    from surefoot.planning import LrFind

    found = LrFind([0.001, 0.1], [1.0, 0.5], [1.0, 0.5], 0.02, 0.1, None)
    monkeypatch.setattr("surefoot.planning.lr_find", lambda *objects, **settings: found)
    scheduler = scheduler.replace("StepLR", "{name: StepLR, step_size: 1}")
    assert main(["lr-find", "quickstart", *SMALL, f"scheduler={scheduler}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f" {key}=0.02")


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["optimizer.groups=[{match: '*.bias', lr: 0.02}]"], ["optimizer.lr=0.02", "optimizer.groups.0.lr=0.008"]),
        (["optimizer.groups=[{match: '*.bias', lr: 0.2}]"], ["optimizer.lr=0.005", "optimizer.groups.0.lr=0.02"]),
        (["optimizer.groups=[{match: '*', lr: 0.01}]"], ["optimizer.lr=0.1", "optimizer.groups.0.lr=0.02"]),
        (["optimizer.layer_decay=0.5", "freeze=fc3.*"], ["optimizer.lr=0.04"]),  # the highest has half of it
        (["optimizer.lr=0"], ["optimizer.lr=0.02"]),
    ],
)
def test_lr_find_advises_the_rates_that_it_tried_for_each_group(words, printed, capsys, monkeypatch):
    from surefoot.planning import LrFind

    found = LrFind([0.001, 0.1], [1.0, 0.5], [1.0, 0.5], 0.02, 0.1, None)
    monkeypatch.setattr("surefoot.planning.lr_find", lambda *objects, **settings: found)
    assert main(["lr-find", "quickstart", *SMALL, "optimizer.lr=0.05", *words]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-len(printed) :] == printed


def test_training_follows_the_plan_bit_for_bit(small_run):
    from surefoot.build import build
    from surefoot.planning import plan_report
    from surefoot.recipe import load_recipe

    built = build(load_recipe(small_run / "recipe.yaml"))
    planned = plan_report(built.schedule, built.steps_per_epoch, built.recipe.epochs).run.rates(0)
    records = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    by_step = [r for r in records if r["kind"] == "step"]
    assert len(by_step) == 20
    assert [r["lr"][0] for r in by_step] == planned.tolist()


def test_a_run_directory_that_holds_a_run(capsys, small_run):
    before = (small_run / "metrics.jsonl").read_bytes()
    message = refused(capsys, "train", "quickstart", "--run", str(small_run), *SMALL)
    assert "already holds a run" in message and "surefoot resume" in message
    assert (small_run / "metrics.jsonl").read_bytes() == before


def test_a_signal_stops_between_steps_says_so_and_the_run_goes_on_later(tmp_path):
    more = [*SMALL, "epochs=4000", "log_every=1", "execution=plain"]
    processes = {}
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):  # side by side
        command = [sys.executable, "-u", "-m", "surefoot", "train", "quickstart", "--run", str(code), *more]
        processes[code] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), signum
    for code, (process, signum) in processes.items():
        # The first epoch's line says that steps are being done; waiting for it hangs on no clock.
        assert any(line.startswith("epoch 1/4000") for line in process.stdout)
        process.send_signal(signum)
        _, told = process.communicate()
        assert process.returncode == code, told
        assert "stopped by" in told and "Traceback" not in told
        run = Path(str(code))
        assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
        done = max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
        assert (run / f"checkpoints/step-{done:09d}").is_dir()


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    command = [sys.executable, "-m", "surefoot", "train", "quickstart", "--run", "run", *SMALL]
    shell = ["bash", "-o", "pipefail", "-c", '"$@" | head -n 1', "bash", *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/run.json").read_text())["status"] == "done"


def test_help_imports_no_torch():
    code = "import sys; from surefoot.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("allowed", ["recipe.scheduler.gamma", "scheduler.gamma", "recipe"])
def test_another_schedule_on_resume_is_told_and_can_be_allowed(allowed, tmp_path, capsys):
    made = ["scheduler={name: StepLR, step_size: 1, gamma: 0.5}", "warmup=null"]
    assert main(["train", "quickstart", "--run", "run", *SMALL[:3], "epochs=2", *made]) == 0
    change = ["scheduler.gamma=0.1", "epochs=4"]
    assert "--allow recipe.scheduler.gamma" in refused(capsys, "resume", "run", *change)
    assert main(["resume", "run", *change, "--allow", allowed]) == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    rates = [r["lr"][0] for r in records if r["kind"] == "epoch" and r["split"] == "val"]
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.00125])
    assert any("gamma" in change for change in json.loads(Path("run/run.json").read_text())["inexact"])


def test_unfrozen_parameters_join_in_the_groups_of_the_recipe(tmp_path, capsys):
    made = [
        "freeze=[conv*]",
        "unfreeze=[{epoch: 1, match: 'conv2.*'}]",
        "optimizer={name: SGD, lr: 0.05, weight_decay: 0.01, no_decay: norm_and_bias}",
    ]
    assert main(["plan", "quickstart", *SMALL, *made, "--json"]) == 0
    planned = [group["name"] for group in json.loads(capsys.readouterr().out)["groups"]]
    assert main(["train", "quickstart", "--run", "run", *SMALL, *made]) == 0
    state = json.loads(sorted(Path("run/checkpoints").iterdir())[-1].joinpath("state.json").read_text())
    groups = state["optimizers"]["optimizer"]["groups"]
    assert [group["name"] for group in groups] == planned
    decays = {name: group["weight_decay"] for group in groups for name in group["params"]}
    assert (decays["conv2.weight"], decays["conv2.bias"]) == (0.01, 0.0)
    assert "conv1.weight" not in decays


@pytest.fixture
def copied_run(small_run, tmp_path):
    return Path(shutil.copytree(small_run, tmp_path / "a copy"))


def test_a_changed_rate_that_is_allowed_takes_effect_and_is_marked(copied_run, capsys):
    run = str(copied_run)
    more = ["epochs=3", "--horizon", "keep", "optimizer.lr=0.001"]
    assert "--allow recipe.optimizer.lr" in refused(capsys, "resume", run, *more)
    assert main(["resume", run, *more, "--allow", "recipe.optimizer.lr"]) == 0
    assert any("optimizer.lr: was" in text for text in json.loads((copied_run / "run.json").read_text())["inexact"])
    records = map(json.loads, (copied_run / "metrics.jsonl").read_text().splitlines())
    rates = [record["lr"][0] for record in records if record["epoch"] == 2]
    assert rates and max(rates) <= 0.001


def test_a_change_that_a_resume_cannot_make_is_refused_even_when_allowed(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "quickstart", "--run", str(run), *SMALL, "scheduler={name: OneCycleLR, max_lr: 0.1}"]) == 0
    before = (run / "run.json").read_bytes()
    change = ["optimizer.lr=0.5", "--allow", "recipe.optimizer.lr"]
    assert "would have no effect" in refused(capsys, "resume", str(run), *change)
    assert (run / "run.json").read_bytes() == before


def test_the_printed_command_trains_on(copied_run, capsys):
    assert main(["resume", str(copied_run)]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "# train on" in line)
    assert main(shlex.split(printed, comments=True)[1:]) == 0
    assert json.loads((copied_run / "run.json").read_text())["inexact"] == []

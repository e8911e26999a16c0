"""The command in several processes: the verbs that are for one say so, and whatever is said is said once."""

from __future__ import annotations

import contextlib
import io
import signal

import numpy
import pytest
from ranks import run_ranks

from surefoot import signals
from surefoot.cli import IN_RANKS, VERBS, main


def said(capsys, monkeypatch, rank: int, *words: str) -> tuple[object, str]:
    """Exit code and all output of one of two processes that have not met yet."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("surefoot.world._joins", 0)
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    return code, "".join(capsys.readouterr())


ONE = {
    "predict": ("predict", "runs/mine", "cat.png"),
    "export": ("export", "runs/mine", "--to", "m.onnx"),
    "check": ("check", "quickstart"),
    "plan": ("plan", "quickstart", "epochs=2"),
    "tune": ("tune", "--forget"),
    "runs": ("runs",),
    "verify": ("verify", "quickstart", "--ranks", "1,2"),
    "list": ("list", "losses"),
}


@pytest.mark.parametrize("words", ONE.values(), ids=ONE)
def test_a_verb_for_one_process_is_refused_in_one_line(capsys, monkeypatch, words):
    code, text = said(capsys, monkeypatch, 0, *words)
    command = " ".join(("surefoot", *words))
    refusal = f"surefoot: {words[0]}: is for one process; start it without torchrun: `{command}`"
    assert code == 2 and text == f"{refusal} (`surefoot explain command-line` tells more)\n"
    # Another rank ends without an error: torchrun would end the first before it has spoken.
    assert said(capsys, monkeypatch, 1, *words) == (0, "")


def test_only_training_and_evaluation_are_for_several():
    assert set(IN_RANKS) < set(VERBS) and set(ONE) < set(VERBS) - set(IN_RANKS)


WORDS = {
    "an unknown option": (("train", "quickstart", "--eopchs", "3"), 2, "unrecognized arguments: --eopchs"),
    "no directory": (("train", "quickstart"), 2, "several processes need one run directory: name it with --dir DIR"),
    "a limit": (("resume", "runs/mine", "--timeout", "0"), 2, "--timeout: 0 is not above 0"),
    "two forms": (("eval", "runs/mine", "--json", "--csv"), 2, "--json and --csv: give one of them"),
    "help": (("train", "--help"), 0, "usage: surefoot train"),
}


@pytest.mark.parametrize(("words", "code", "text"), WORDS.values(), ids=WORDS)
def test_what_is_wrong_with_the_words_is_said_by_the_first(capsys, monkeypatch, words, code, text):
    ended, told = said(capsys, monkeypatch, 0, *words)
    assert ended == code and text in told and "rank 0" not in told
    assert said(capsys, monkeypatch, 1, *words) == (0, "")


def test_a_signal_before_the_run_is_said_by_the_first(capsys, monkeypatch):
    def interrupted(*_):
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr("surefoot.cli.train.recipe_and_overrides", interrupted)
    assert said(capsys, monkeypatch, 0, "train", "--dir", "run") == (143, "surefoot: stopped by SIGTERM\n")
    assert said(capsys, monkeypatch, 1, "train", "--dir", "run") == (143, "")


def _told(world, folder, cases):
    """Exit code and output of each command in this rank, which the others have met."""
    import os

    os.chdir(folder)
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size)}
    told = []
    for words in cases:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            told.append((main(words), output.getvalue()))
    return told


FILES = [
    (("train", "nothing.yaml", "--dir", "run"), "nothing.yaml"),
    (("train", "bad.yaml", "--dir", "run"), "bad.yaml:1:"),
    (("resume", "nowhere"), "nowhere: no such run directory"),
    (("eval", "nowhere"), "nowhere"),
]


def test_a_bad_file_is_told_once(tmp_path):
    (tmp_path / "bad.yaml").write_text("modle: LeNet5\n")
    first, second = run_ranks(2, _told, str(tmp_path), [words for words, _ in FILES])
    for (_, text), told, other in zip(FILES, first, second, strict=True):
        assert told[0] == 2 and text in told[1] and told[1].count("surefoot: ") == 1, told
        assert other == (2, ""), other
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def trained(world, recipe, run):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(["train", recipe, "--dir", run])


def test_a_run_in_shards_is_taken_by_the_verbs_of_one_process(tmp_path, capsys):
    numpy.savez(tmp_path / "data.npz", x=numpy.eye(12, 3), y=numpy.arange(12) % 3)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"model: {{name: MLP, hidden: [4]}}\ndata: {{name: npz, path: {tmp_path}/data.npz, batch_size: 4}}\n"
        "loss: CrossEntropyLoss\noptimizer: {name: Adam, lr: 0.01}\nepochs: 1\nexecution: plain\nparallel: fsdp2\n"
    )
    assert run_ranks(2, trained, str(recipe), str(run)) == [0, 0]
    (checkpoint,) = run.glob("checkpoints/step-*")
    assert (checkpoint / "model-00002-of-00002.safetensors").exists()
    numpy.save(tmp_path / "rows.npy", numpy.eye(2, 3, dtype=numpy.float32))
    for words in (
        ["checkpoints", str(run)],
        ["eval", str(run)],
        ["export", str(run), "--to", str(tmp_path / "m.safetensors")],
        ["predict", str(run / "model"), str(tmp_path / "rows.npy")],
    ):
        assert main(words) == 0, (words, capsys.readouterr())
    assert main(["eval", str(checkpoint)]) == 2
    assert "is a checkpoint in shards, none of which has a whole tensor; name its run" in capsys.readouterr().err

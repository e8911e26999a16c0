"""Common slips of the pen are answered with what to write."""

from __future__ import annotations

import pytest

from surefoot import recipe
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.losses import FINDINGS
from surefoot.optimizers import OPTIMIZERS
from surefoot.planning import MISTAKES
from surefoot.registry import did_you_mean

WHOLE = "epochs: 3\nmodel: LeNet5\ndata: {name: garments, batch_size: 64}\nloss: CrossEntropyLoss\n"


def refusal(tmp_path, text, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        recipe.load_recipe(path, overrides)
    return str(refused.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("Adma", "Adam"), ("adamw", "AdamW"), ("SDG", "SGD"), ("RMSPorp", "RMSprop"), ("Adagard", "Adagrad")],
)
def test_letters_that_changed_places_are_put_right(word, meant):
    assert did_you_mean(word, OPTIMIZERS.names()) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("optimizer: {name: AdamW, betas: (0.9, 0.999), lr: 0.1}", "write [0.9, 0.999]"),
        ("optimizer:\n  name: AdamW\n  betas: (0.9, 0.999)\n  lr: 0.1", "write [0.9, 0.999]"),
        ("optimizer: {name: SGD, lr: 0,1}", "write 0.1 for 0,1"),
        ("optimizer:\n  name: SGD\n  lr: 0,1", "write 0.1"),
        ("optimizer: {name: SGD\uff0c lr: 0.1}", "write ', '"),
        ("optimizer\uff1a SGD", "write ': '"),
        ("optimizer: {name\uff1a SGD, lr: 0.1}", "write ': '"),
        ("optimizer: {name: SGD, lr: 0.1}\nscheduler: {name: ReduceLROnPlateau, verbose: true}", "leave it out"),
    ],
)
def test_a_value_as_python_or_another_keyboard_writes_it(tmp_path, line, advice):
    told = refusal(tmp_path, WHOLE + line + "\n")
    assert advice in told
    assert all("r.yaml:5:" in line or "r.yaml:7:" in line or "r.yaml:6:" in line for line in told.splitlines())


def test_a_text_of_full_width_signs_alone_is_told_too(tmp_path):
    assert "write ': '" in refusal(tmp_path, "epochs\uff1a 3\n")


def test_full_width_signs_inside_of_a_text_stay(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(WHOLE + "optimizer: {name: SGD, lr: 0.1}\nname: \u7b2c\u4e00\uff1a\u4e8c\n", encoding="utf-8")
    assert recipe.load_recipe(path, []).name == "\u7b2c\u4e00\uff1a\u4e8c"


def test_a_list_is_not_advised_that_would_be_refused(tmp_path):
    told = refusal(tmp_path, WHOLE + "optimizer: {name: SGD, lr: 0.1}\n", "metrics=f1")
    assert "[f1]" not in told and "metrics: unknown metric 'f1'; did you mean 'f1_macro'?" in told


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["train", "quickstart", "--epochs", "3"], "epochs=3"),
        (["check", "quickstart", "--batch-size=16"], "data.batch_size=16"),
        (["plan", "quickstart", "--lr", "0.1"], "optimizer.lr=0.1"),
        (["list", "loss"], "did you mean 'losses'?"),
        (["list", "optimiser"], "did you mean 'optimizers'?"),
        (["list", "what"], "the kinds are losses, "),
    ],
)
def test_the_command_line_says_what_to_write(words, advice, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("name", [*FINDINGS, *MISTAKES])
def test_every_finding_is_explained_by_the_command_that_it_names(name, capsys):
    assert main(["explain", name]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{name}\n\n") and len(told) > len(name) + 40
    assert main(["explain"]) == 0
    assert f"  {name}\n" in capsys.readouterr().out


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main(["explain", "rate-vanish"]) == 2
    assert "did you mean 'rate-vanishes'?" in capsys.readouterr().err

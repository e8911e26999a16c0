"""Every refusal has a code, each code is explained in both languages, and no explanation is of nothing."""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.cli.explain import LANGUAGES, sections
from surefoot.errors import CODES, Problems, RankFailed, RunFailed, Stopped, SurefootError, UsageError, code_of_module
from surefoot.rank_errors import described, raised_as
from surefoot.recipe import parse_recipe
from surefoot.safe_tensors import BadFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "site"))

from messages import ANOTHERS, OWN, PATHS, by_code, module, raised, tree_of  # noqa: E402

REFUSALS = [name for name, (page, _) in sections().items() if page == "refusals"]


@pytest.mark.parametrize("path", PATHS, ids=module)
def test_no_error_is_raised_without_a_code_that_is_explained(path):
    explained = sections()
    for call, code in raised(tree_of(path)):
        code = code_of_module(module(path)) if code is None else code
        assert code in explained or code is ANOTHERS, (
            f"{path.name}:{call.lineno}: {code or 'no code'}: give code= with a name of explanations/refusals.md, "
            "or a code to its module in errors.CODES"
        )


def test_an_error_of_a_module_without_a_code_would_be_found():
    assert code_of_module("new_module") == "" and [code for _, code in raised(ast.parse("raise UsageError('x')"))] == [
        None
    ]


def test_no_explanation_is_of_nothing():
    words = {
        node.value
        for path in PATHS
        if path.name != "errors.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used = {*OWN.values()} | {
        code_of_module(module(path)) for path in PATHS if any(code is None for _, code in raised(tree_of(path)))
    }
    assert [name for name in REFUSALS if name not in words | used] == []


def test_the_messages_of_each_code_are_found():
    messages = by_code()
    assert set(messages) <= {*sections(), ANOTHERS, ""}
    assert sum(map(len, messages.values())) > 500
    assert "…: is empty; a table begins with a line of its columns' names" in messages["data-table"]
    assert "unknown key …" not in messages and any("missing; give" in text for text in messages["recipe-missing-key"])


def test_every_place_of_the_table_is_there():
    modules = {module(path) for path in PATHS}
    assert [name for name in CODES if name not in modules] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_explanation_has_a_cause_and_a_cure(language):
    cause, cure = {"en": ("**Cause.**", "**Cure.**"), "zh": ("**原因。**", "**办法。**")}[language]
    texts = sections(language)
    assert list(texts) == list(sections())
    for name in REFUSALS:
        text = texts[name][1]
        assert text.startswith(cause) and f"\n\n{cure}" in text, name


RECIPE = "epochs: 1\nmodel: LeNet5\ndata: garments\nloss: CrossEntropyLoss\noptimizer: {name: SGD, lr: 0.1}\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RECIPE + "epoch: 2\n", "recipe-unknown-key"),
        (RECIPE.replace("epochs: 1\n", ""), "recipe-missing-key"),
        (RECIPE.replace("epochs: 1", "epochs: many"), "recipe-value"),
        (RECIPE + "early_stopping: {monitor: val/nothing, patience: 1}\n", "recipe-together"),
        (RECIPE.replace("LeNet5", "LeNet6"), "unknown-name"),
        (RECIPE.replace("lr: 0.1", "lr: -1"), "part-arguments"),
        (RECIPE + "a: [1\n", "recipe-yaml"),
        ("", "recipe-missing-key"),
        (RECIPE.replace("epochs: 1", "epochs: 0") + "epoch: 2\n", "recipe-value recipe-unknown-key"),
    ],
)
def test_the_mistakes_of_a_recipe_have_their_codes(text, code):
    with pytest.raises(Problems) as caught:
        parse_recipe(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "no-such.yaml"], "recipe-file"),
        (["train", "quickstart", "epochs"], "recipe-override"),
        (["resume", "no-such-run"], "run-missing"),
        (["plan", "quickstart", "--svg", "there/is/none.svg"], "output-file"),
        (["explain", "no-such-name"], "unknown-name"),
        (["train", "--timeout", "0"], "command-line"),
        (["train", "--no-such-option"], "command-line"),
    ],
)
def test_the_command_prints_the_code_and_explains_it(words, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(words) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert f"(`surefoot explain {code}` tells more)\n" in capsys.readouterr().err
    assert main(["explain", code, "--lang", "zh"]) == 0
    assert "原因" in capsys.readouterr().out


def test_the_message_itself_is_as_it_was():
    error = UsageError("epochs: 0 is below 1", code="argument")
    assert str(error) == "epochs: 0 is below 1" and error.with_reference.endswith(
        "(`surefoot explain argument` tells more)"
    )
    assert Problems(["a", "b"], code="argument").with_reference.splitlines()[2].startswith("(`surefoot")
    assert UsageError("raised by a user's own code").with_reference == "raised by a user's own code"
    assert Stopped(15).code == ""


@pytest.mark.parametrize("kind", [UsageError, RunFailed, SurefootError])
def test_a_code_comes_out_of_another_process(kind):
    error = kind("cut", code="file-refused")
    assert pickle.loads(pickle.dumps(error)).code == "file-refused"
    if kind is UsageError:
        assert raised_as(1, described(error)).code == "file-refused"


@pytest.mark.parametrize(
    "error",
    [Problems(["one", "two"], code="argument"), Stopped(15), RankFailed(1, "died"), BadFile("p", "is damaged")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_whole_from_another_process(error):
    """As a ProcessPoolExecutor sends it; torch's DataLoader makes it again of its text."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert str(Problems("one\ntwo")) == "one\ntwo"

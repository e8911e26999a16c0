"""Every code block of every page runs as printed: Python from top to bottom, YAML as (part of) a recipe."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
from recipe_tables import REST

import surefoot
from surefoot.cli import VERBS, make_parser, parse
from surefoot.recipe import parse_recipe
from surefoot.runs.sweep.settings import parse_plan

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "ARCHITECTURE.md"]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
COURSE = sorted((ROOT / "docs" / "course").glob("*.py"))
PAGES += sorted((Path(surefoot.__file__).parent / "explanations").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# The other languages of blocks, and what is done with them.
LEFT = {"json", "text", "py", ""}  # py: with packages that `dev.py libraries` installs (tests/other_trainers.py)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of each block in `language`."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text) if m[1] == language]


def ids(page: Path) -> str:
    return page.name if page.parent != ROOT / "docs" else f"docs/{page.name}"


def having(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.filterwarnings("ignore:Using a target size")  # a wrong line of the findings' page, beside the right one
@pytest.mark.parametrize("page", having("python"), ids=ids)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {"__name__": "docs"}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * line + text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", having("yaml"), ids=ids)
def test_the_yaml_of_a_page_is_a_recipe_or_part_of_one(page):
    for line, text in blocks(page, "yaml"):
        top = set(re.findall(r"^(\w+):", text, re.M))
        if "search" in top:
            parse_plan(text, f"{page.name}, block at line {line}")
            continue
        if "objective" in top:  # in the place of a loss
            top.add("loss")
        whole = text + "".join(f"{rest}\n" for key, rest in REST.items() if key not in top)
        parse_recipe(whole, f"{page.name}, block at line {line}")


def test_the_json_of_a_page_is_json():
    for page in having("json"):
        for _, text in blocks(page, "json"):
            for line in text.splitlines() if text.count("\n{") else [text]:
                json.loads(line)


def test_no_block_is_of_a_language_that_nothing_runs():
    used = {match[1] for page in PAGES for match in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert used <= LEFT | {"python", "yaml"}


# Commands in running text, in tables and in indented blocks.
COMMAND = re.compile(r"(?:`|^ {4}(?:\$ )?)(?:python3 dev\.py|surefoot) ([^`\n]+?)(?:`|  +#.*$|$)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    return sorted(
        {(page.name, m[1].strip()) for page in [*PAGES, *COURSE] for m in COMMAND.finditer(page.read_text("utf-8"))}
    )


def test_the_commands_of_the_pages_parse():
    """With what stands in capitals taken as a word, and what is in brackets left out."""
    tried = 0
    for page, text in commands():
        text = re.sub(r"\[[^\]]*\]+|\.\.\.", "", re.split(" [#>]", text)[0]).replace("\\|", "|")
        words = [word.partition("|")[0] for word in shlex.split(re.sub(r"\bN\b", "2", text.replace("KIND", "losses")))]
        if not words or words[0].rstrip(",") not in VERBS or text.rstrip().endswith(","):
            continue
        try:
            parse(make_parser(only=words[0]), words)
        except SystemExit as ended:
            if len(words) > 1:
                raise AssertionError(f"{page}: `{text}`") from ended
        tried += 1
    assert tried > 15


# Of other programs: hf, torchrun, and an example of the gallery.
THEIRS = {"--local-dir", "--nproc-per-node", "--max-restarts", "--fashion"}


def test_the_options_that_pages_name_are_taken_by_a_command():
    verbs = make_parser()._subparsers._group_actions[0].choices.values()
    taken = {option for verb in verbs for action in verb._actions for option in action.option_strings} | THEIRS
    places = ("benchmarks/*.py", "tests/*.py", "tests/faults/run.py", "docs/site/*.py", "dev.py")
    text = "".join(path.read_text("utf-8") for place in places for path in ROOT.glob(place))
    taken |= set(re.findall(r'"(--[a-z][\w-]*)[="]', text))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text("utf-8")))
        assert not (more := named - taken), f"{page}: {more}"


def test_the_files_that_pages_name_are_there():
    for page in [*PAGES, *COURSE, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        text = page.read_text("utf-8")
        paths = re.findall(r"(?<![\w/.-])((?:tests|benchmarks|src|docs|examples)/[\w./-]*\w)", text)
        missing = {path for path in paths if not (ROOT / path).exists()} - {"benchmarks/.venv"}
        assert not missing, f"{page}: {missing}"


def found(name: str) -> object:
    """What a dotted name leads to."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        try:
            place = importlib.import_module(".".join(words[:length]))
        except ImportError:
            continue
        for word in words[length:]:
            place = getattr(place, word)
        return place
    raise AssertionError(name)


def test_the_names_of_surefoot_that_pages_give_exist():
    names = {
        name
        for page in [*PAGES, *COURSE]
        for name in re.findall(r"\bsurefoot(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8"))
    }
    assert len(names) > 40 and all(found(name) is not None for name in names)


def test_calls_in_running_text_have_arguments_that_exist():
    modules = [
        surefoot,
        *(
            importlib.import_module(f"surefoot.{m.name}")
            for m in pkgutil.iter_modules(surefoot.__path__)
            if m.ispkg and m.name != "cli"
        ),
    ]
    known = {
        name: getattr(module, name) for module in modules[::-1] for name in dir(module) if not name.startswith("_")
    }
    tried = 0
    for page in [*PAGES, *COURSE]:
        for code in re.findall(r"`([^`\n]+\([^`]*)`", page.read_text("utf-8")):
            plain = re.sub(r"=(?=[,)])", "=0", re.sub(r"\.\.\., |, \.\.\.(?=\))", "", " ".join(code.split())))
            try:
                calls = [node for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.Call)]
            except SyntaxError:  # `(N, C, ...)` of a sentence
                continue
            for call in calls:
                target = known.get(ast.unparse(call.func).rpartition(".")[2])
                parameters = inspect.signature(target).parameters if callable(target) else {}
                given = {word.arg for word in call.keywords if word.arg}
                if given and parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                    assert given <= set(parameters), f"{page}: {code}"
                    tried += 1
    assert tried > 20

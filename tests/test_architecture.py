"""The building stands: imports point down, files are short and say what they are for, nothing unpickles."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SRC / "surefoot"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

# From the ground up. A module imports from lower floors and from its own package only.
FLOORS = (
    {"version", "errors", "text", "lazy", "annotations", "torch_compat"},
    {"rank_errors", "process_group", "shared_memory", "asking"},
    {"other_ranks"},
    {"registry", "rng", "files", "signals", "places", "fingerprint", "wrapping", "finding", "charts", "world"},
    {"own_code"},
    {"generators"},
    {"variables"},
    {"safe_tensors", "limits", "trust", "untouched", "arguments", "monitor", "modes", "copying"},
    {"batches", "nonfinite", "micro_batches", "step_options"},
    {"gradients", "metrics", "reduction"},
    {
        "losses",
        "optimizers",
        "schedules",
        "models",
        "pictures",
        "preprocessing",
        "moving_average",
        "table_columns",
        "sharding",
    },
    {"data", "artifacts", "tracking", "step_result"},
    {"divided"},
    {"scaler", "closure"},
    {"step"},
    {"execution", "checkpoint"},
    {"training"},
    {"recipe"},
    {"build"},
    {"planning", "proof", "runs"},  # what a recipe would do; what a killed run does; many runs
    {"cli"},
    {"__init__", "__main__"},  # the public names, and `python -m surefoot`
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MOST_LINES = 450


@pytest.fixture(scope="module", params=FILES, ids=NAMES)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")  # pytest runs the tests of a file one after the other, so each is parsed once
def tree(path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The top-level module or package that a file belongs to: `losses/conventions.py` -> `losses`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_parts(path: Path, tree: ast.Module):
    """(line, top-level part) of each import from the package, wherever in the file it stands."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import rng` names modules; `from ..rng import fold` names one in `module` itself.
            targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] == "surefoot":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def test_the_floors_name_every_module():
    there = {part_of(path) for path in FILES} - {"recipes"}
    assert there <= set(FLOOR), f"give these a floor in FLOORS: {sorted(there - set(FLOOR))}"


def test_imports_point_down(path, tree):
    here = part_of(path)
    wrong = [
        f"line {line}: {here} imports {there}, which is not on a lower floor"
        for line, there in imported_parts(path, tree)
        if there != here and FLOOR.get(there, len(FLOORS)) >= FLOOR.get(here, 0)
    ]
    assert not wrong, "\n".join(wrong)


def modules_imported(path: Path, tree: ast.Module, known: set[str]) -> set[str]:
    """The package's own modules that a file imports, anywhere in it; `from package import name` is its file."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full if (full := f"{module}.{alias.name}") in known else module for alias in node.names}
    return found & known - {dotted(path)}


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, the first again at the end; [] where there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports[module]):
            if circle := walk(other, [*way, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := walk(module, []))), [])


def test_no_files_import_one_another_in_a_circle():
    """Imports within functions count: a file is understood, and moved, without those that need it."""
    known = {dotted(path) for path in FILES}
    imports = {dotted(path): modules_imported(path, ast.parse(path.read_text("utf-8")), known) for path in FILES}
    assert not (circle := circle_in(imports)), " imports ".join(circle)


def test_a_circle_would_be_found():
    known = {"surefoot.recipe.kinds", "surefoot.recipe.parse", "surefoot.recipe"}
    path = PACKAGE / "recipe" / "kinds.py"
    found = modules_imported(path, ast.parse("def f():\n    from .parse import x\n    from . import y"), known)
    assert found == {"surefoot.recipe.parse", "surefoot.recipe"}
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_wrong_import_would_be_found():
    """The test above sees each way of writing an import."""
    source = (
        "from ..training import fit\n"
        "from .. import cli\n"
        "import surefoot.build\n"
        "def f():\n    from ..recipe.load import x\n"
    )
    found = list(imported_parts(PACKAGE / "losses" / "conventions.py", ast.parse(source)))
    assert found == [(1, "training"), (2, "cli"), (3, "build"), (5, "recipe")]


def test_a_file_is_short_and_its_first_line_says_what_it_is_for(path, tree):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES, f"{len(lines)} lines: make it a folder of files with one job each"
    docstring = ast.get_docstring(tree)
    assert docstring and len(docstring.splitlines()[0]) > 15


def test_one_update_can_be_read_at_a_sitting():
    source = (PACKAGE / "step.py").read_text(encoding="utf-8")
    step = next(node for node in ast.parse(source).body if getattr(node, "name", None) == "TrainStep")
    texts = set()
    for node in ast.walk(step):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            texts |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [
        line
        for number, line in enumerate(source.splitlines()[step.lineno - 1 : step.end_lineno], step.lineno)
        if number not in texts and line.strip() and not line.strip().startswith("#")
    ]
    assert 60 < len(lines) <= 95, f"{len(lines)} lines, without texts: give what is of one optimizer a file of its own"


def test_every_public_name_is_documented(path, tree):
    module = importlib.import_module(dotted(path))
    bare = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            bare.append(node.name)
        if isinstance(node, ast.ClassDef):
            owner = getattr(module, node.name)
            for member in node.body:
                # A method that a base class documents (`nn.Module.forward`) needs no second text.
                if not isinstance(member, ast.FunctionDef) or member.name.startswith("_"):
                    continue
                if not inspect.getdoc(getattr(owner, member.name)):
                    bare.append(f"{node.name}.{member.name}")
    assert not bare, f"without a docstring: {', '.join(bare)}"


def test_examples_in_docstrings_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(dotted(path))
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert not list(tmp_path.iterdir()), "an example left files in the working directory"


def test_private_names_of_torch_are_in_one_file(path, tree):
    if path.name == "torch_compat.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            private = len(parts) > 1 and parts[1].startswith("_") and not parts[1].startswith("__")
            assert parts[0] != "torch" or not private, f"line {node.lineno}: {'.'.join(parts)}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            private = [a.name for a in node.names if a.name.startswith("_") and a.name != "_pytree"]
            assert not private and "._" not in node.module, f"line {node.lineno}: {node.module} {private}"


def calls_in(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_nothing_is_unpickled_or_evaluated(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("pickle", "marshal", "shelve"), f"line {node.lineno}"
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            assert not names & {"marshal", "shelve", "dill", "cloudpickle", "joblib"}, f"line {node.lineno}"
    for call, name in calls_in(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"line {call.lineno}: torch.load without weights_only=True"
        assert given.get("allow_pickle", "False") == "False", f"line {call.lineno}"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"), call.lineno


def test_no_error_is_swallowed_and_nothing_is_left_for_later(path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (broad and empty), f"line {node.lineno}: swallows every error"
    text = path.read_text(encoding="utf-8")
    for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X"):
        assert word not in text


@pytest.mark.parametrize(
    "code",
    [
        "import surefoot",
        "import surefoot.errors, surefoot.registry, surefoot.rng, surefoot.files",
        "import surefoot.tracking, surefoot.tracking.trackers",
        "import surefoot.runs.listing, surefoot.runs.comparison_shown, surefoot.runs.removing, surefoot.runs.packing",
        "from surefoot.cli import main; main(['--help'])",
        "from surefoot.cli import main; main(['--version'])",
    ],
)
def test_torch_is_imported_only_when_it_is_needed(code):
    """Importing torch takes a second: help, versions and shell completion do not wait for it."""
    check = (
        "import sys\n"
        f"try:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_one_module_prints(path, tree):
    """What reaches a terminal goes through `text.say`, which takes the escape sequences out of it."""
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not printing or part_of(path) == "text"


def test_type_checkers_know_every_public_name(path, tree):
    """Of a package that shows them its names; one that is looked up at its first use only is Any to them."""
    if path.name == "__init__.py" and "if TYPE_CHECKING:" in path.read_text(encoding="utf-8"):
        imported = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        public = importlib.import_module(".".join(path.parent.relative_to(SRC).parts)).__all__
        made = {t.id for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        assert set(public) <= imported | made

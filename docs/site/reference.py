"""The reference, generated: public names, recipe keys, verbs of the command, what every refusal and finding means."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from messages import by_code

# Whose `__all__` is public, beside that of `surefoot` itself.
MODULES = (
    *("schedules", "optimizers", "losses", "metrics", "models", "data", "planning", "tracking"),
    *("artifacts", "checkpoint", "training", "charts.figure"),
)


def public() -> Iterator[tuple[str, str, Any]]:
    """(module, name, object) of each public name, each once, at the shortest path."""
    seen: set[int] = set()
    for module in ("surefoot", *(f"surefoot.{name}" for name in MODULES)):
        home = importlib.import_module(module)
        for name in sorted(home.__all__, key=str.lower):
            thing = getattr(home, name)
            if id(thing) not in seen and name != "__version__":
                seen.add(id(thing))
                yield module, name, thing


def undocumented() -> list[str]:
    """What the reference lacks: public names, methods, arguments, recipe keys and options of verbs without a word."""
    from surefoot.recipe import json_schema

    schema = json_schema()
    missing = [
        f"recipe: {name}.{key}"
        for name, section in (("Recipe", schema), *schema["$defs"].items())
        for key, value in section.get("properties", {}).items()
        if not value.get("description")
    ]
    missing += [
        f"surefoot {verb}: {action.dest}"
        for verb, parser in _verbs().items()
        for action in parser._actions
        if not action.help
    ]
    for module, name, thing in public():
        if not callable(thing):
            continue
        text = inspect.getdoc(thing) or ""
        if not text or text.startswith(f"{name}("):  # a dataclass without a docstring is given its signature
            missing.append(f"{module}.{name}")
            continue
        whole = text + "".join(inspect.getdoc(base) or "" for base in ours(thing))
        missing += [
            f"{module}.{name}: its argument {argument}"
            for argument in _arguments(thing)
            if not re.search(rf"\b{argument.lstrip('*')}\b", whole)
        ]
        missing += [f"{module}.{name}.{method}" for method, member in members(thing) if not inspect.getdoc(member)]
    return missing


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class of ours, those of its bases in this package too."""
    found = {name: member for base in reversed(ours(thing)) for name, member in vars(base).items()}
    for name, member in found.items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, _DESCRIPTORS)):
            yield name, member


_DESCRIPTORS = (property, classmethod, staticmethod)


def ours(thing: Any) -> list[type]:
    """A class of this package and its bases of this package; nothing for what is no class."""
    return [base for base in getattr(thing, "__mro__", ()) if base.__module__.startswith("surefoot.")]


def _arguments(thing: Any) -> list[str]:
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in parameters if name != "self"]


def python_page(title: str, lead: str) -> str:
    """Every public name: its signature and its docstring, which is Markdown but for doctests."""
    parts, home = [f"# {title}\n\n{lead}\n"], ""
    for module, name, thing in public():
        if module != home:
            home = module
            parts.append(f"## {module}\n")
        parts.append(f"### {name}\n")
        if not callable(thing):
            parts.append(f"`{type(thing).__name__}`: {_values(thing)}\n")
            continue
        parts += [_signature(f"{module}.{name}", thing), _markdown(inspect.getdoc(thing) or "")]
        for method, member in members(thing):
            inner = getattr(member, "fget", None) or getattr(member, "__func__", member)
            head = f"`.{method}`" if isinstance(member, property) else f"`.{method}{_short(inner)}`"
            parts.append(f"**{head}**\n\n{_markdown(inspect.getdoc(member) or '')}")
    return "\n".join(parts)


def _values(thing: Any) -> str:
    if hasattr(thing, "names"):
        thing = thing.names()
    return f"`{thing!r}`" if isinstance(thing, int | float | str) else ", ".join(f"`{each}`" for each in thing)


def _short(function: Any) -> str:
    text = re.sub(r"\(self(, )?", "(", str(inspect.signature(function)))
    return text.replace("'", "")


def _signature(name: str, thing: Any) -> str:
    try:
        parameters = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    shown = [
        str(p).replace("'", "") if p.default is p.empty else _with_default(p) for p in parameters.parameters.values()
    ]
    lines = "".join(f"    {text},\n" for text in _starred(shown, list(parameters.parameters.values())))
    kind = "class " if inspect.isclass(thing) else ""
    returns = parameters.return_annotation
    arrow = "" if returns is parameters.empty or kind else f" -> {returns}".replace("'", "")
    return f"```python\n{kind}{name}(\n{lines}){arrow}\n```\n" if lines else f"```python\n{kind}{name}(){arrow}\n```\n"


def _with_default(parameter: inspect.Parameter) -> str:
    default = repr(parameter.default)
    short = default if len(default) < 40 and " at 0x" not in default and not default.startswith("<") else "..."
    return str(parameter.replace(default=inspect.Parameter.empty)).replace("'", "") + f" = {short}"


def _starred(shown: list[str], parameters: list[inspect.Parameter]) -> list[str]:
    """With the `*` before the first argument that is given by keyword only."""
    out: list[str] = []
    for text, parameter in zip(shown, parameters, strict=True):
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        if keyword and "*" not in out and not any(line.startswith("*") for line in out):
            out.append("*")
        out.append(text)
    return out


def _markdown(doc: str) -> str:
    """A docstring as Markdown: its doctests become blocks of code."""
    blocks = re.split(r"\n\s*\n", doc)
    out = []
    for block in blocks:
        lead, found, examples = block.partition(">>> ")
        if found and (not lead or lead.endswith("\n")):
            out += [lead.rstrip()] if lead.strip() else []
            out.append(f"```python\n{inspect.cleandoc(found + examples)}\n```")
        else:
            out.append(block)
    return "\n\n".join(out) + "\n"


def recipe_page(title: str, lead: str) -> str:
    """Every key of a recipe, from its JSON Schema."""
    from surefoot.recipe import json_schema

    schema = json_schema()
    parts = [f"# {title}\n\n{lead}\n", "## Recipe\n", _keys(schema)]
    for name, section in sorted(schema["$defs"].items()):
        if table := _keys(section):
            parts += [f"## {name}\n", section.get("description", "") + "\n", table]
    return "\n".join(parts)


def _keys(section: dict[str, Any]) -> str:
    variants = [section, *section.get("anyOf", ()), *section.get("oneOf", ())]
    rows: dict[str, str] = {}
    for variant in variants:
        for key, value in variant.get("properties", {}).items():
            default = f"`{value['default']!r}`" if "default" in value else ""
            described = value.get("description", "").replace("|", "\\|").replace("\n", " ")
            rows.setdefault(key, f"| `{key}` | {_kind(value)} | {default} | {described} |")
    return (
        "| key | value | default | what it is |\n|---|---|---|---|\n" + "\n".join(rows.values()) + "\n" if rows else ""
    )


def _kind(value: dict[str, Any]) -> str:
    """What a key takes, in a few words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"][:12]) + (", ..." if len(value["enum"]) > 12 else "")
    if "const" in value:
        return f"`{value['const']}`"
    if parts := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(kind for kind in map(_kind, parts) if kind))
    kind = value.get("type", "")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    limits = [f"{sign} {value[key]}" for key, sign in _LIMITS.items() if key in value and abs(value[key]) < 2**53]
    return " ".join([kind, *limits])


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def command_page(title: str, lead: str) -> str:
    """Every verb of the command, with its arguments."""
    parts = [f"# {title}\n\n{lead}\n"]
    for verb, each in _verbs().items():
        each.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)
        parts.append(f"## surefoot {verb}\n\n```text\n{each.format_help().strip()}\n```\n")
    return "\n".join(parts)


TROUBLE = {
    "en": "Whatever a command or a call refuses, and whatever is found before a run or on its first batch, by the name "
    "that is printed: cause and cure. `surefoot explain NAME` prints the same; in Python it is the error's `code`.",
    "zh": "命令或调用拒绝的一切，以及训练之前和第一个批次上发现的问题，按打印出的名称排列：原因和办法。"
    "`surefoot explain NAME --lang zh` 打印同样的内容；在 Python 里，名称就是异常的 `code`。",
}


def _verbs() -> dict[str, argparse.ArgumentParser]:
    from surefoot.cli import make_parser

    return next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


SAID = {"en": "Its messages", "zh": "它的消息"}
GROUPS = {
    "en": {"refusals": "Refusals", "lint": "Found on the first batch", "schedules": "Found in the schedule"},
    "zh": {"refusals": "拒绝", "lint": "第一个批次上发现的", "schedules": "学习率设置里发现的"},
}


def trouble_page(title: str, language: str) -> str:
    """What every refusal and finding means, by the name that is printed: the text of `surefoot explain`."""
    from surefoot.cli.explain import sections

    found = sections(language)
    parts = [f"# {title}\n\n{TROUBLE[language]}\n"]
    for page, group in GROUPS[language].items():
        names = [name for name, (where, _) in found.items() if where == page]
        parts.append(f"**{group}**: " + " · ".join(f"[{name}](#{name})" for name in names) + "\n")
    messages = by_code()
    for page in GROUPS[language]:
        for name, text in ((name, text) for name, (where, text) in found.items() if where == page):
            parts.append(f"## {name}\n\n{text}\n")
            if name in messages:
                lines = "\n".join(messages[name])
                parts.append(f"<details><summary>{SAID[language]}</summary>\n\n```text\n{lines}\n```\n\n</details>\n")
    return "\n".join(parts)


def project() -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    with open(os.path.join(os.path.dirname(__file__), "..", "..", "pyproject.toml"), "rb") as file:
        return tomllib.load(file)["project"]

"""Builds the site in English and Chinese, warnings as errors: `python3 dev.py docs`; it lies in build/docs/html.

The course is executed in each language. Sphinx and what it needs are installed into an environment of their own, so
that nothing of them is in the one that trains and tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import course
import reference

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "docs" / "site"
BUILD = ROOT / "build" / "docs"
LANGUAGES = {"en": "en", "zh": "zh_CN"}
# The pages of the site by the file of the repository that they are.
GUIDES = ("data", "models", "losses", "objectives", "optimizers", "schedules", "saving", "tracking", "runs", "recipe")
MORE = ("recipes", "gallery", "benchmarks", "reliability", "log")
PROJECT = {"ARCHITECTURE.md": "architecture", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing"}
TITLES = {
    "en": {
        **{"course": "Course", "guides": "Guides", "reference": "Reference", "project": "Project"},
        **{"python": "Python", "keys": "Recipe keys", "command": "The command", "trouble": "Trouble"},
        "course_title": "The course",
        "course_lead": "Eight chapters. Each is a notebook: its code is run whenever this site is built.",
        "download": "This chapter as a notebook",
    },
    "zh": {
        **{"course": "教程", "guides": "指南", "reference": "参考", "project": "项目"},
        **{"python": "Python", "keys": "配方的键", "command": "命令", "trouble": "问题排查"},
        "course_title": "教程目录",
        "course_lead": "共八章，每章都是一个 notebook，构建本站时其中的代码都会运行一遍。",
        "download": "下载本章的 notebook",
    },
}
# Of the theme's own words, those that it has in English only.
WORDS = {
    "On this page": "本页目录",
    "Back to top": "回到顶部",
    "Next": "下一页",
    "Previous": "上一页",
    "Home": "首页",
}
LEADS = {
    "python": "Every public name, with its arguments, shapes, units and errors.",
    "keys": "Every key of a recipe, made from `surefoot schema`. How they work together: [recipes](../recipe.md).",
    "command": "Every verb of `surefoot` and its arguments, as `surefoot VERB --help` prints them.",
}
ENGLISH_ONLY = "```{note}\n本页目前只有英文。\n```\n"
_OTHER_LANGUAGE = re.compile(r"^.*README(?:\.zh)?\.md\).*\n+", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def pages() -> dict[str, str]:
    """Files of the repository, and the page of the site that each is."""
    found = {f"docs/{path.name}": path.stem for path in english("docs")}
    found |= {f"docs/guides/{path.name}": f"guides/{path.stem}" for path in english("docs/guides")}
    found |= {f"docs/course/{path.name}": f"course/{path.stem}" for path in course.chapters()}
    found |= {name: f"project/{page}" for name, page in PROJECT.items()}
    found |= {"docs/course": "course/index", "README.md": "index", "README.zh.md": "index"}
    return found | {
        f"src/surefoot/explanations/{path.name}": "trouble" for path in english("src/surefoot/explanations")
    }


def english(folder: str) -> list[Path]:
    """The pages of a folder of the repository, without their translations (NAME.zh.md)."""
    return [path for path in sorted((ROOT / folder).glob("*.md")) if not path.stem.endswith(".zh")]


def translated(source: str) -> str | None:
    """The Chinese text of the page `source`, with the English page's blocks of code; None where there is none."""
    from surefoot.cli.explain import with_code_of

    path = ROOT / source
    chinese = path.with_suffix(".zh.md")
    if not source.startswith("docs/") or not chinese.exists():
        return None
    return joined(with_code_of(path.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")))


def joined(text: str) -> str:
    """Chinese lines of a paragraph without the space that a line break between them would be."""
    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else course.joined(part) for part in parts)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, text without code signs) of the headings of a page."""
    parts = [part for part in _FENCE.split(text) if not part.startswith("```")]
    return [(len(mark), words.replace("`", "")) for mark, words in re.findall(r"^(#+) (.*)$", "".join(parts), re.M)]


def slugs() -> dict[str, str]:
    """What each Chinese heading is called in links: as the English one is. Raises ValueError for one of two."""
    found: dict[str, str] = {}
    for source in pages():
        if (text := translated(source)) is not None:
            english_text = (ROOT / source).read_text(encoding="utf-8")
            for (_, chinese), (_, name) in zip(headings(text), headings(english_text), strict=True):
                slug = re.sub(r"[^\w\- ]", "", name.strip().lower()).replace(" ", "-")
                if found.setdefault(chinese, slug) != slug:
                    raise ValueError(f"{source}: {chinese!r} stands for {slug!r}, and elsewhere for {found[chinese]!r}")
    return found


def linked(text: str, source: str, page: str, tree: Path) -> str:
    """`text` of the file `source`, its links led to the pages of the site, or to copies of the files that they name.

    Raises FileNotFoundError for a link to nothing.
    """
    known = pages()

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[1]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        path = path if path in known else path.replace(".zh.md", ".md")
        up = "../" * page.count("/")
        if path in known:
            ending = ".ipynb" if re.match(r"course/\d", known[path]) else ".md"
            return f"{up}{known[path]}{ending}" + (f"#{anchor}" if anchor else "")
        if not (ROOT / path).is_file():
            raise FileNotFoundError(f"{source}: the link {match[1]} leads to nothing")
        copy = tree / "_files" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
        return f"{up}_files/{path}"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def lay_out(tree: Path, language: str) -> None:
    """Write the sources of one language's site into `tree`."""
    titles = TITLES[language]
    shutil.rmtree(tree, ignore_errors=True)
    note = "" if language == "en" else ENGLISH_ONLY

    def write(page: str, text: str) -> None:
        path = tree / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for source, page in pages().items():
        if page in ("index", "course/index", "trouble"):
            continue
        chinese = translated(source) if language == "zh" else None
        text = (ROOT / source).read_text(encoding="utf-8") if chinese is None else chinese
        if page.startswith("course/"):
            made = course.notebook(text, language)
            write(f"_files/notebooks/{page.rpartition('/')[2]}.ipynb", json.dumps(made, ensure_ascii=False))
            made["cells"].append(_download(page, titles["download"]))
            for cell in made["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = linked(cell["source"], source, page, tree)
            write(f"{page}.ipynb", json.dumps(made, ensure_ascii=False))
        else:
            head, _, rest = text.partition("\n")
            write(f"{page}.md", linked(f"{head}\n\n{note if chinese is None else ''}{rest}", source, page, tree))
    if language != "en":
        entries = ("", "Content-Type: text/plain; charset=UTF-8\\n"), *WORDS.items()
        text = "".join(f'msgid "{word}"\nmsgstr "{theirs}"\n\n' for word, theirs in entries)
        write(f"locale/{LANGUAGES[language]}/LC_MESSAGES/sphinx.po", text)
    readme = "README.md" if language == "en" else "README.zh.md"
    text = _OTHER_LANGUAGE.sub("", (ROOT / readme).read_text(encoding="utf-8"))  # the site has a switch of its own
    write("index.md", linked(text, readme, "index", tree) + _contents(titles))
    entries = [
        f"- [{course.title(text, language)}]({path.stem}.ipynb): {course.lead(text, language)}"
        for path in course.chapters()
        for text in (path.read_text(encoding="utf-8"),)
    ]
    contents = _toctree([path.stem for path in course.chapters()])
    write(
        "course/index.md",
        "\n\n".join([f"# {titles['course_title']}", titles["course_lead"], "\n".join(entries), contents]),
    )
    makers: dict[str, Callable[[str, str], str]] = {
        "reference/python": reference.python_page,
        "reference/keys": reference.recipe_page,
        "reference/command": reference.command_page,
    }
    for page, make in makers.items():
        name = page.rpartition("/")[2]
        write(f"{page}.md", make(titles[name], note + LEADS[name]))
    trouble = reference.trouble_page(titles["trouble"], language)
    write("trouble.md", linked(trouble, "src/surefoot/explanations/refusals.md", "trouble", tree))
    (tree / "slugs.json").write_text(json.dumps(slugs() if language == "zh" else {}), encoding="utf-8")


def _download(page: str, text: str) -> dict[str, object]:
    source = f"{{download}}`{text} <../_files/notebooks/{page.rpartition('/')[2]}.ipynb>`"
    return {"id": "download", "cell_type": "markdown", "metadata": {}, "source": source}


def _contents(titles: dict[str, str]) -> str:
    """What stands at the side of every page."""
    placed = {"index", "course/index", "trouble", *GUIDES, *MORE, *(f"project/{page}" for page in PROJECT.values())}
    others = [page for page in pages().values() if page not in placed and not page.startswith("course/")]
    parts = {
        titles["course"]: ["course/index"],
        titles["guides"]: [*GUIDES, *others],
        titles["reference"]: ["reference/python", "reference/keys", "reference/command", "trouble"],
        titles["project"]: [*MORE, *(f"project/{page}" for page in PROJECT.values())],
    }
    return "\n" + "\n".join(_toctree(entries, caption) for caption, entries in parts.items())


def _toctree(entries: list[str], caption: str = "") -> str:
    options = (f":caption: {caption}\n" if caption else "") + ":hidden:\n\n"
    return "```{toctree}\n" + options + "\n".join(entries) + "\n```\n"


def broken_links(html: Path) -> Iterator[str]:
    """Links of the built pages that lead to no file of the site, or to no place on its page; and pictures."""
    places: dict[Path, set[str]] = {}

    def of(path: Path) -> set[str]:
        if path not in places:
            places[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))
        return places[path]

    for path in sorted(html.rglob("*.html")):
        for target in re.findall(r'(?:href|src)="([^"]*)"', path.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:|//", name):
                continue
            there = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not there.exists():
                yield f"{path.relative_to(html)}: {target} is not there"
            elif anchor and there.suffix == ".html" and anchor not in of(there):
                yield f"{path.relative_to(html)}: {target} names no place on that page"


def broken_search(html: Path) -> Iterator[str]:
    """Languages whose search would stop at its first line: it names a stemmer that is not there."""
    for path in sorted(html.glob("*/_static/language_data.js")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"window\.Stemmer = (\w+)", text):
            if not re.search(rf"\b{name} ?=", text):
                yield f"{path.relative_to(html)}: names {name}, which is not there"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every page was built without a warning and every link leads somewhere, else 1."""
    parser = argparse.ArgumentParser(prog="dev.py docs", description=__doc__)
    parser.add_argument("--env", type=Path, default=BUILD / "env", metavar="DIR", help="the environment of Sphinx")
    options = parser.parse_args(arguments)
    if missing := reference.undocumented():
        print("without a word in the reference:", *missing, sep="\n  ")
        return 1
    python = options.env / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(options.env)], check=True)
    wanted = reference.project()["optional-dependencies"]["docs"]
    pip = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*pip, *wanted], check=True)
    html = BUILD / "html"
    for made in (html, BUILD / "executed"):  # outputs of an older library are none of this one
        shutil.rmtree(made, ignore_errors=True)
    # What trains comes from this environment, Sphinx from its own.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *site.getsitepackages()]),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        "SUREFOOT_DOCS_CACHE": str(BUILD / "executed"),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    if subprocess.run([str(python), str(HERE / "notebook_check.py")], env=environment).returncode:
        return 1
    for language, code in LANGUAGES.items():
        tree = BUILD / "source" / language
        lay_out(tree, language)
        environment |= {"SUREFOOT_DOCS_LANGUAGE": code, "SUREFOOT_DOCS_SOURCE": str(tree)}
        command = [str(python), "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-c", str(HERE)]
        done = subprocess.run([*command, str(tree), str(html / language)], env=environment)
        if done.returncode:
            return 1
    shutil.rmtree(html / "jupyter_execute", ignore_errors=True)
    (html / "index.html").write_text(_FRONT, encoding="utf-8")
    if broken := [*broken_links(html), *broken_search(html)]:
        print("links that lead nowhere:", *broken, sep="\n  ")
        return 1
    print(f"{html / 'index.html'}: {len(list(html.rglob('*.html')))} pages")
    return 0


_FRONT = """<!doctype html><meta charset="utf-8"><title>Surefoot</title>
<script>location.replace((navigator.language || "en").startsWith("zh") ? "zh/index.html" : "en/index.html")</script>
<p><a href="en/index.html">English</a> <a href="zh/index.html">简体中文</a></p>
"""


if __name__ == "__main__":
    sys.exit(main())

"""Every file of examples/gallery, held to its figure, killed at random and compared: `python3 dev.py gallery`.

python3 dev.py gallery                  all of them
python3 dev.py gallery vae dcgan        only some
python3 dev.py gallery --kills 5        killed more often
python3 dev.py gallery --write          and their rows, pictures and texts in docs/gallery.md made anew
python3 dev.py gallery --others PYTHON  the same jobs by hand, in Lightning and in the HF Trainer, run by PYTHON
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from surefoot.charts.svg import Line, line_chart, picture
from surefoot.proof import Job, prove
from surefoot.tracking.journal import read_records

ROOT = Path(__file__).resolve().parents[1]
GALLERY, DOCS = ROOT / "examples" / "gallery", ROOT / "docs"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
SAMPLE_CHARACTERS = 360
# Lines of the Python files that do the same job in pytorch/examples at commit 77f55b9; of reinforcement_learning the
# one of the same name, and gpt's is distributed/minGPT-ddp.
ORIGINALS = {
    "actor_critic": 181,
    "dcgan": 277,
    "fast_neural_style": 460,
    "gat": 370,
    "gcn": 255,
    "gpt": 505,
    "imagenet": 530,
    "language_translation": 538,
    "mnist": 141,
    "mnist_forward_forward": 174,
    "mnist_rnn": 142,
    "regression": 68,
    "reinforce": 107,
    "siamese_network": 302,
    "snli": 293,
    "super_resolution": 273,
    "time_sequence_prediction": 103,
    "vae": 139,
    "word_language_model": 578,
}


# The same job without Surefoot: examples/gallery/by_hand/NAME_KIND.py
OTHERS = {"torch": "by hand", "lightning": "Lightning", "trainer": "HF Trainer"}


@dataclass(frozen=True)
class Shown:
    """One file's row: what it does, its lines, what it printed last, its time, kills survived."""

    name: str
    title: str
    lines: int
    figure: str
    seconds: float
    kills: int


def names() -> list[str]:
    """The files of the gallery, without their ending."""
    return sorted(path.stem for path in GALLERY.glob("*.py"))


def lines_of(name: str) -> int:
    """All lines of a file, docstrings and empty ones too, as its original's are counted."""
    return len((GALLERY / f"{name}.py").read_text("utf-8").splitlines())


def others_lines(name: str) -> list[str]:
    """The lines of the files that do the job of `name` in other ways, "" where there is none."""
    paths = [GALLERY / "by_hand" / f"{name}_{kind}.py" for kind in OTHERS]
    return [str(len(path.read_text("utf-8").splitlines())) if path.exists() else "" for path in paths]


def title_of(name: str) -> str:
    """What a file says of itself in its first sentence."""
    text = ast.get_docstring(ast.parse((GALLERY / f"{name}.py").read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(" (pytorch/examples")[0].rstrip(".")


def job_of(name: str) -> Job:
    """The file as a command, in a directory of its own; what it says that it leaves there is compared, too."""
    leaves = "Leaves " in (GALLERY / f"{name}.py").read_text("utf-8").split('"""')[1]
    return Job.of_command(["python", str(GALLERY / f"{name}.py")], compared=("*.*",) if leaves else ())


def show(name: str, home: Path, kills: int, say=print) -> Shown:
    """Run it, then kill it. Raises RunFailed where it misses its figure, AssertionError where a kill changes a bit.

    `home` is left with the directories of both runs, `untouched` and `killed`.
    """
    verdict = prove(job_of(name), kills=kills, seed=len(name), keep=home, say=say)
    assert verdict.same, f"{name}: {verdict.summary()}"
    return Shown(name, title_of(name), lines_of(name), figure_in(verdict.printed), verdict.seconds, verdict.kills)


def figure_in(printed: str) -> str:
    """The figure that a file printed last."""
    return next(line for line in printed.splitlines()[::-1] if line.startswith("figure: ")).removeprefix("figure: ")


def row_of(shown: Shown) -> str:
    """Its row in the table of docs/gallery.md."""
    link = f"[{shown.name}](../examples/gallery/{shown.name}.py)"
    cells = [link, shown.title, shown.lines, ORIGINALS.get(shown.name, ""), *others_lines(shown.name)]
    return "| " + " | ".join(map(str, [*cells, shown.figure, f"{shown.seconds:.0f}", shown.kills])) + " |"


def write_rows(part: str, rows: dict[str, str]) -> None:
    """Put these rows, by name, into a table of docs/gallery.md: below its two lines of head, beside those of others."""
    page = DOCS / "gallery.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN.format(part))
    old, _, after = rest.partition(END.format(part))
    first, rule, *lines = old.strip().splitlines()
    rows = {line.split("[")[1].split("]")[0]: line for line in lines} | rows
    text = "\n".join([first, rule, *(rows[name] for name in sorted(rows))])
    page.write_text(f"{before}{BEGIN.format(part)}\n{text}\n{END.format(part)}{after}", "utf-8")


def learning_curve(name: str, home: Path) -> str:
    """The newest run under `home` as the text of an SVG file: what it measured beside the loss, else the loss."""
    newest = max(home.glob("**/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    records = list(read_records(newest))
    kind = max((record["kind"] for record in records), key=("step", "epoch").index)
    measured = [record for record in records if record["kind"] == kind]
    names = [key for key in measured[-1] if key not in ("kind", "split", "epoch", "step", "lr", "wall_s")]
    key = next((key for key in names if key != "loss"), "loss")
    lines = []
    for colour, (split, label) in enumerate({"train": "training", "val": "validation"}.items()):
        points = [(record[kind] + (kind == "epoch"), record[key]) for record in measured if record["split"] == split]
        lines += [Line(label, points, colour)] if points else []
    return picture(line_chart(lines, x_label=kind, y_label=key, title=name))


def keep_results(name: str, home: Path) -> None:
    """Copy the picture that a file left to docs/gallery, else draw how it learnt; put its text into the page."""
    (DOCS / "gallery").mkdir(exist_ok=True)
    if not any(home.glob("*.png")) and any(home.glob("**/metrics.jsonl")):
        (DOCS / "gallery" / f"{name}.svg").write_text(learning_curve(name, home), "utf-8")
    for left in home.glob("*.png"):
        shutil.copyfile(left, DOCS / "gallery" / f"{name}.png")
    for written in home.glob("sampled.txt"):
        sample = written.read_text("utf-8")[:SAMPLE_CHARACTERS].replace("```", "")
        lines = [line.rstrip() for line in sample.splitlines() if line.strip()]
        page = DOCS / "gallery.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN.format(name))
        after = rest.partition(END.format(name))[2]
        block = "\n".join(["```text", *(part for line in lines for part in textwrap.wrap(line, 118)), "```"])
        page.write_text(f"{before}{BEGIN.format(name)}\n{block}\n{END.format(name)}{after}", "utf-8")


def write_curves() -> None:
    """Show the drawn curves in the page, two in a row."""
    names = sorted(path.stem for path in (DOCS / "gallery").glob("*.svg"))
    shown = [f"![What {name} measured as it learnt](gallery/{name}.svg)" for name in names] + [""] * (len(names) % 2)
    rows = [f"| {left} | {right} |" for left, right in zip(shown[::2], shown[1::2], strict=True)]
    page = DOCS / "gallery.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN.format("curves"))
    text = "\n".join([BEGIN.format("curves"), "| | |", "|---|---|", *rows, END.format("curves")])
    page.write_text(before + text + rest.partition(END.format("curves"))[2], "utf-8")


def seconds_of(path: Path, python: str) -> tuple[float, str, int]:
    """Run a file of by_hand with one thread: seconds of a processor, what it printed, exit code."""
    with tempfile.TemporaryDirectory(prefix="surefoot-gallery-") as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        with open(os.path.join(folder, "printed"), "w+") as printed:
            command = [os.path.abspath(python), str(path)]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            printed.seek(0)
            return used.ru_utime, printed.read(), process.returncode


def run_others(chosen: list[str], python: str, write: bool) -> int:
    """Run the files of by_hand of these jobs with the packages of `python`, two at a time; 0 where all are right."""
    paths = [path for path in sorted((GALLERY / "by_hand").glob("*.py")) if path.stem.rpartition("_")[0] in chosen]
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for path, (took, printed, code) in zip(
            paths, pool.map(lambda path: seconds_of(path, python), paths), strict=True
        ):
            if code:
                failed += 1
                print(f"{path.stem}: FAILED: {printed[-2000:]}", flush=True)
                continue
            figure, lines = figure_in(printed), len(path.read_text("utf-8").splitlines())
            print(f"{path.stem}: {figure}; {took:.0f} s of a processor", flush=True)
            if write:
                name, _, kind = path.stem.rpartition("_")
                link = f"[{path.stem}](../examples/gallery/by_hand/{path.name})"
                row = f"| {link} | {OTHERS[kind]} | {lines} | {lines_of(name)} | {figure} | {took:.0f} |"
                write_rows("by hand", {path.stem: row})
    return 1 if failed else 0


def main() -> int:
    """Run what is asked for; 0 where all are right."""
    parser = argparse.ArgumentParser(prog="python3 dev.py gallery", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--kills", type=int, default=2, metavar="N")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/gallery.md")
    parser.add_argument("--others", metavar="PYTHON", help="run by_hand/ with it; it has lightning and transformers")
    arguments = parser.parse_args()
    if wrong := sorted(set(arguments.names) - set(names())):
        parser.error(f"{', '.join(wrong)}: no file of the gallery is called so; there are {', '.join(names())}")
    if arguments.others:
        return run_others(arguments.names or names(), arguments.others, arguments.write)
    rows, failed = [], []
    for name in arguments.names or names():
        with tempfile.TemporaryDirectory(prefix="surefoot-gallery-") as folder:
            try:
                rows.append(show(name, Path(folder), arguments.kills, say=lambda text: None))
            except Exception as error:
                failed.append(name)
                print(f"{name}: FAILED: {error}", flush=True)
                continue
            print(f"{name}: {rows[-1].figure}; {rows[-1].seconds:.0f} s; {rows[-1].kills} kills, identical", flush=True)
            if arguments.write:
                keep_results(name, Path(folder) / "untouched")
                write_rows("gallery", {name: row_of(rows[-1])})
    if arguments.write:
        write_curves()
    print(f"{len(rows)} right, {len(failed)} wrong{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

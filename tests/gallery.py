"""Every file of examples/gallery, held to its figure, killed at random and compared: `python3 dev.py gallery`.

python3 dev.py gallery                  all of them
python3 dev.py gallery vae dcgan        only some
python3 dev.py gallery --kills 5        killed more often
python3 dev.py gallery --write          and the table and pictures of docs/gallery.md made anew
"""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from surefoot.proof import Job, prove

ROOT = Path(__file__).resolve().parents[1]
GALLERY, DOCS = ROOT / "examples" / "gallery", ROOT / "docs"
BEGIN, END = "<!-- gallery -->", "<!-- end of gallery -->"
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


def title_of(name: str) -> str:
    """What a file says of itself in its first sentence."""
    text = ast.get_docstring(ast.parse((GALLERY / f"{name}.py").read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(" (pytorch/examples")[0].rstrip(".")


def job_of(name: str, pictures: tuple[str, ...] = ()) -> Job:
    """The file as a command, in a directory of its own."""
    return Job.of_command(["python", str(GALLERY / f"{name}.py")], compared=pictures)


def show(name: str, home: Path, kills: int, say=print) -> Shown:
    """Run it, then kill it. Raises RunFailed where it misses its figure, AssertionError where a kill changes a bit."""
    began = time.monotonic()
    with job_of(name).start(home / "first") as running:
        running.wait()
        running.require_success(name)
    took = time.monotonic() - began
    printed = [line for line in running.printed.splitlines() if line.startswith("figure: ")]
    written = tuple(path.name for path in (home / "first").iterdir() if path.is_file())
    verdict = prove(job_of(name, written), kills=kills, seed=len(name), keep=home / "proof", say=say)
    assert verdict.same, f"{name}: {verdict.summary()}"
    return Shown(name, title_of(name), lines_of(name), printed[-1].removeprefix("figure: "), took, verdict.kills)


def table(rows: list[Shown]) -> str:
    """The rows as the table of docs/gallery.md."""
    out = [
        "| file | what it does | lines | the original's | figure | seconds | kills |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        link = f"[{row.name}](../examples/gallery/{row.name}.py)"
        original = ORIGINALS.get(row.name, "")
        out.append(
            f"| {link} | {row.title} | {row.lines} | {original} | {row.figure} | {row.seconds:.0f} | {row.kills} |"
        )
    return "\n".join(out)


def main() -> int:
    """Run what is asked for; 0 where all are right."""
    parser = argparse.ArgumentParser(prog="python3 dev.py gallery", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--kills", type=int, default=2, metavar="N")
    parser.add_argument("--write", action="store_true", help="put the table into docs/gallery.md")
    arguments = parser.parse_args()
    if wrong := sorted(set(arguments.names) - set(names())):
        parser.error(f"{', '.join(wrong)}: no file of the gallery is called so; there are {', '.join(names())}")
    if arguments.write and arguments.names:
        parser.error("--write makes the whole table: name no files with it")
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
                for picture in (Path(folder) / "first").glob("*.png"):
                    (DOCS / "gallery").mkdir(exist_ok=True)
                    shutil.copyfile(picture, DOCS / "gallery" / f"{name}.png")
    print(f"{len(rows)} right, {len(failed)} wrong{': ' + ', '.join(failed) if failed else ''}")
    if arguments.write and not failed:
        page = DOCS / "gallery.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The records of a run, damaged between two sittings or taken away while it trains."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path

from surefoot import cli, proof
from surefoot.checkpoint import Checkpointer

from .command import _ends_exactly, _message, _recipe, _stopped, _train, reference, surefoot
from .harness import FAST, TESTS, Result, Settings, Sitting, add


def _change(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _flip(share: float, bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = int(share * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

    return change


def _one_byte(share: float, bit: int):
    """One wrong byte among the records that the checkpoint knows: mended, and the run ends exactly."""

    def check(folder: Path) -> str:
        _stopped(folder)
        _change(folder / "run/metrics.jsonl", _flip(share, bit))
        return f"mended; {_ends_exactly(folder)}"

    return check


def _usable(folder: Path) -> Result:
    run, to = str(folder / "run"), str(folder / "out.safetensors")

    def main(*_: object) -> int:
        return cli.main(["checkpoints", run]) or cli.main(["eval", run]) or cli.main(["export", run, "--to", to])

    return Sitting(Path(), Settings(), main=main).result()


def _lines(change: Callable[[list[bytes]], list[bytes]], word: str):
    """More damage than can be mended: told, marked, and the run goes on; the model is that of the untouched run."""

    def check(folder: Path) -> str:
        _stopped(folder)
        path = folder / "run/metrics.jsonl"
        size = path.stat().st_size
        lines = change(path.read_bytes().splitlines(keepends=True))
        data = b"".join(lines)
        # A checkpoint knows the size: what is changed keeps it.
        path.write_bytes(data[: size - 1].ljust(size - 1) + b"\n")
        result = surefoot("resume", str(folder / "run")).result()
        assert result.code == 0 and word in result.out + result.err, result
        about = json.loads((folder / "run/run.json").read_text())
        assert about["status"] == "done" and any(word in text for text in about["damaged"]), about.get("damaged")
        assert escape(word) in (folder / "run/report.html").read_text()
        used = _usable(folder)
        assert used.code == 0, used.err
        for name in ("model", "model/best"):
            mine, untouched = (run / name / "model.safetensors" for run in (folder / "run", reference()[0]))
            assert mine.read_bytes() == untouched.read_bytes(), name
        return "named, marked; the model is the untouched run's"

    return check


def _at_step(step: int, action: Callable[[], None]) -> Callable[[], None]:
    inner = Checkpointer.step

    def stepped(self: Checkpointer) -> None:
        if self.steps + 1 == step:
            action()
        inner(self)

    def install() -> None:
        Checkpointer.step = stepped  # type: ignore[method-assign]

    return install


def _removed(what: str):
    """A file of the run is removed while it trains: made again, or one message; a resume ends exactly."""

    def check(folder: Path) -> str:
        place = folder / "run" / what

        def remove() -> None:
            # At once, as for whoever is writing in it.
            os.rename(place, folder / "away")
            shutil.rmtree(folder / "away") if (folder / "away").is_dir() else (folder / "away").unlink()

        result = _train(folder, _at_step(6, remove))
        told = "went on" if result.code == 0 else _message(result, 1, "o such file")
        if not what or (what == "checkpoints" and not list((folder / "run/checkpoints").glob("step-*"))):
            return told  # nothing is left to go on from, and it never starts over silently
        if what == "metrics.jsonl":
            assert result.code == 0, result.err
            difference, _ = proof.compare(reference()[0], folder / "run")
            assert difference is None, difference
        return f"{told}; {_ends_exactly(folder)}"

    return check


def _written_between(line: bytes):
    """Somebody else appends to the records while the run trains."""

    def check(folder: Path) -> str:
        def append() -> None:
            descriptor = os.open(folder / "run/metrics.jsonl", os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, line)
            os.close(descriptor)

        result = _train(folder, _at_step(6, append))
        assert result.code == 0 and "Traceback" not in result.err, result
        assert (folder / "run/model/model.safetensors").exists()
        again = surefoot("train", _recipe(folder), "--run", str(folder / "run"), "--resume").result()
        assert again.code in (0, 1, 2) and "Traceback" not in again.err, again
        used = _usable(folder)
        assert used.code == 0, used.err
        return "the model is saved; every command works"

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    for number, share in enumerate((0.0, 0.13, 0.31, 0.5, 0.77, 1.0)):
        for bit in (1, 128):
            tier = TESTS if (number, bit) in ((2, 1), (5, 128)) else FAST
            add("records", f"bit {bit} of the byte at {100 * share:.0f} % is wrong", _one_byte(share, bit), tier)
    for name, word, change in (
        ("two lines are noise", ":2: not a JSON record", lambda ls: [ls[0], b"~" * len(ls[1][:-1]) + b"\n", *ls[2:]]),
        ("a line has no kind", "lacks 'kind'", lambda ls: [ls[0], ls[1].replace(b'"kind"', b'"kine"'), *ls[2:-1],
                                                           ls[-1].replace(b"loss", b"lost")]),
        ("a line is no object", "expected a JSON object",
         lambda ls: [ls[0], b"[1]".ljust(len(ls[1]) - 1) + b"\n", *ls[2:]]),
        ("digits are changed", "checksum does not hold",
         lambda ls: [line.replace(b"loss\": 2", b"loss\": 7") for line in ls]),
        ("two bytes of the last line", "not a JSON record", lambda ls: [*ls[:-1], b"??" + ls[-1][2:]]),
    ):  # fmt: skip
        add("records", name, _lines(change, word), TESTS if "kind" in name else FAST)
    for what in ("metrics.jsonl", "tensorboard", "recipe.yaml", "run.json", "LOCK", "checkpoints", ""):
        tier = TESTS if what == "metrics.jsonl" else FAST
        add("records", f"{what or 'the run'} is removed while it trains", _removed(what), tier)
    for line in (b'{"step": 1}\n', b"[1, 2]\n", b"noise"):
        add("records", f"somebody appends {line.decode().strip()} while it trains", _written_between(line), FAST)

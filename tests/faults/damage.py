"""Damage: a bit flipped in each region of each file, files cut and grown."""

from __future__ import annotations

import os
from pathlib import Path

from .harness import add, dice, expect_exact, expect_message, half_run, newest, sit, spread, valid_steps

PARTS = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
# Where a region begins, as a share of the file; the first two are the length and the header of a safetensors file.
REGIONS = {
    "first byte": lambda size: 0,
    "byte 8": lambda size: 8,
    "a tenth": lambda size: size // 10,
    "a quarter": lambda size: size // 4,
    "the middle": lambda size: size // 2,
    "three quarters": lambda size: 3 * size // 4,
    "last byte": lambda size: size - 1,
}
CUTS = {
    "0 bytes": lambda data: b"",
    "1 byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "twice its content": lambda data: data + data,
}


def _flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def _stepped_over(damage, part: str):
    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        path = newest(run).path / part
        damage(path)
        assert valid_steps(run) == [6]
        result = expect_exact(run)
        assert result.resumed_at == 6
        assert "stepped over" in result.err and part in result.err, result.err
        return f"{part} named, resumed at 6, exact"

    return check


def _flipped(part: str, region: str):
    place = REGIONS[region]
    bit = dice(part + region).randrange(8)
    return _stepped_over(lambda path: _flip(path, place(path.stat().st_size), bit), part)


def _cut(part: str, cut: str):
    return _stepped_over(lambda path: path.write_bytes(CUTS[cut](path.read_bytes())), part)


def _all_damaged(part: str):
    """Checkpoints exist and none is valid: stop, and leave everything as it is."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        for path in (run / "checkpoints").iterdir():
            _flip(path / part, 10, 3)
        before = sorted(os.listdir(run / "checkpoints"))
        journal = (run / "metrics.jsonl").read_bytes()
        told = expect_message(sit(run), 2, "none of 2 checkpoints is valid", part)
        assert sorted(os.listdir(run / "checkpoints")) == before
        assert (run / "metrics.jsonl").read_bytes() == journal
        return told[:60]

    return check


def _run_json_flipped(region: str):
    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        path = run / "run.json"
        _flip(path, REGIONS[region](path.stat().st_size - 1), 2)
        result = expect_exact(run)
        assert "run.json was lost or damaged" in result.err, result.err
        return "told, written again, exact"

    return check


def _several(folder: Path) -> str:
    run = folder / "run"
    half_run(run, keep_last=4)
    paths = sorted((run / "checkpoints").iterdir())
    _flip(paths[-1] / "model.safetensors", 20, 1)
    (paths[-2] / "state.json").unlink()
    (paths[-3] / "extra").write_text("x")
    result = expect_exact(run, keep_last=4)
    assert result.resumed_at == 4 and result.err.count("stepped over") == 3, result
    return "three named, the fourth resumed, exact"


def catalogue() -> None:
    """Add the cases of this file."""
    cases = [(part, region) for part in PARTS for region in REGIONS]
    for (part, region), tier in zip(cases, spread(len(cases), tests=5, fast=28), strict=True):
        add("damage", f"a bit flipped in {part}, {region}", _flipped(part, region), tier)
    cuts = [(part, cut) for part in PARTS for cut in CUTS]
    for (part, cut), tier in zip(cuts, spread(len(cuts), tests=4, fast=24), strict=True):
        add("damage", f"{part} holds {cut}", _cut(part, cut), tier)
    for part in PARTS:
        add("damage", f"{part} of every checkpoint", _all_damaged(part), 0)
    for region in ("first byte", "a quarter", "the middle", "last byte"):
        add("damage", f"a bit flipped in run.json, {region}", _run_json_flipped(region), 1)
    add("damage", "the three newest, each otherwise", _several, 0)

"""`surefoot pack` and `unpack`: every byte comes back and the run goes on; what is damaged or hostile makes nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile
from pathlib import Path

import pytest
from command_runs import SMALL, files_in, refused
from run_directories import make_run

from surefoot import files
from surefoot.checkpoint import RunDirectory
from surefoot.cli import main
from surefoot.errors import RunFailed, UsageError
from surefoot.runs import packing
from surefoot.runs.labels import noted
from surefoot.runs.packing import ENDINGS, MANIFEST, pack, unpack


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def content(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in files_in(path) if (path / name).is_file() and name != "LOCK"}


def small_run(name: str = "run") -> Path:
    run = make_run(Path(name), [0.5, 0.6])
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(random.Random(0).randbytes(70_000))
    (run / "labels.json").write_text('{"tags": ["good"], "note": ""}')
    return run


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_byte_comes_back(ending):
    run, to = small_run(), Path(f"packed{ending}")
    pack(run, to)
    unpack(to, Path("new/back"))
    assert content(Path("new/back")) == content(run)
    first = to.read_bytes()
    to.unlink()
    pack(run, to)
    assert to.read_bytes() == first, "the same run is the same file"


def test_what_a_kill_left_of_a_writer_is_no_part_of_the_pack():
    run = small_run()
    before = content(run)
    for left in ("model/.best.0123abcd.new/model.safetensors", "model/.model.json.0123abcd.tmp"):
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_text("half")
    pack(run, Path("run.tar"))
    unpack(Path("run.tar"), Path("back"))
    assert content(Path("back")) == before
    (run / "model" / ".hidden").write_text("somebody's")
    with pytest.raises(UsageError, match="hidden: its name cannot be packed"):
        pack(run, Path("other.tar"))


@pytest.mark.parametrize("note", ["", "new", "a longer note"])
def test_what_is_written_while_it_is_packed_is_told_and_makes_no_pack(note, monkeypatch):
    run, described = make_run(Path("run"), [0.5]), packing._described
    noted(run, "old")

    def described_and_changed(path):
        manifest = described(path)
        noted(path, note)
        return manifest

    monkeypatch.setattr(packing, "_described", described_and_changed)
    with pytest.raises(UsageError, match="labels.json: changed while it was packed; pack again"):
        packing.pack(run, Path("run.tar"))
    assert os.listdir(".") == ["run"]


def test_any_tar_reads_it():
    pack(small_run(), Path("r.tar.gz"))
    with tarfile.open("r.tar.gz") as tar:
        names = tar.getnames()
    assert names[0] == MANIFEST and "model/model.safetensors" in names


def test_a_real_run_goes_on_elsewhere_with_its_newest_whole_checkpoint(capsys):
    small = [*SMALL, "execution=plain"]
    assert main(["train", "quickstart", "--run", "run", *small]) == 0
    damaged = sorted(Path("run/checkpoints").iterdir())[-1] / "state.json"
    whole = sorted(Path("run/checkpoints").iterdir())[0].name
    damaged.write_bytes(damaged.read_bytes().replace(b"1", b"2"))
    capsys.readouterr()
    assert main(["pack", "run", "--to", "r.tar.zst"]) == 0
    assert "the checkpoint of step 10" in capsys.readouterr().out
    assert main(["unpack", "r.tar.zst", "--to", "there"]) == 0
    assert "surefoot resume there" in capsys.readouterr().out
    assert os.listdir("there/checkpoints") == [whole]
    assert main(["resume", "there"]) == 0
    assert json.loads(Path("there/run.json").read_text())["resumes"] == [10], "the report marks it"
    models = [Path(folder, "model/model.safetensors").read_bytes() for folder in ("run", "there")]
    assert models[0] == models[1]


def test_a_recipe_that_imports_is_told_on_both_sides(capsys):
    run = small_run()
    (run / "recipe.yaml").write_text("model: {import: 'my.net:Net'}\n")
    assert main(["pack", "run", "--to", "r.tar"]) == 0
    assert "not in it: your own code, which the recipe imports: my.net:Net" in capsys.readouterr().out
    assert main(["unpack", "r.tar"]) == 0
    out = capsys.readouterr().out
    assert "r: " in out and "--trust-code" in out and Path("r/recipe.yaml").is_file()


def hostile(path: str, members: list[tuple[tarfile.TarInfo, bytes]], manifest: object = None) -> Path:
    """A tar of these members, with a manifest that lists them as they are unless it is given."""
    listed = {m.name: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for m, d in members}
    text = json.dumps(manifest or {"format": "surefoot-pack", "version": 1, "files": listed}).encode()
    first = tarfile.TarInfo(MANIFEST)
    first.size = len(text)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(first, io.BytesIO(text))
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return Path(path)


def member(name: str, data: bytes = b"x", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in changes.items():
        setattr(entry, key, value)
    return entry, data


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/etc/x",
        "model/../../out",
        "a",
        "LOCK",
        "model//x",
        "model/.hidden",
        "model/a\nb",
        "model/" + "x" * 200,
    ]
    + ["checkpoints/\x1b[2J"],
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(UsageError) as caught:
        unpack(hostile("h.tar", [member(name)]), Path("there"))
    assert "no part of a run" in str(caught.value)
    assert sorted(os.listdir()) == ["h.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_what_is_no_plain_file_is_refused(kind):
    entry, _ = member("model/x", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(UsageError, match="no plain file"):
        unpack(hostile("h.tar", [(entry, b"")]), Path("there"))
    assert not Path("there").exists()


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ({"format": "other"}, "of another form"),
        ({"format": "surefoot-pack", "version": 2}, "format version 2"),
        ({"format": "surefoot-pack", "version": 1, "files": [1]}, "lists no files"),
        ({"format": "surefoot-pack", "version": 1, "files": {"run.json": 3}}, "size and SHA-256"),
        ({"format": "surefoot-pack", "version": 1, "files": {"run.json": {"bytes": -1, "sha256": ""}}}, "size and"),
        ({"format": "surefoot-pack", "version": 1, "files": {}}, "otherwise than"),
        ({"format": "surefoot-pack", "version": 1, "files": {"run.json": {"bytes": 1, "sha256": ""}}}, "damaged"),
        ({"format": "surefoot-pack", "version": 1, "files": {"run.json": {"bytes": 10**18, "sha256": ""}}}, "MB free"),
    ],
)
def test_a_manifest_that_is_not_so_is_refused(manifest, told):
    with pytest.raises(UsageError, match=told):
        unpack(hostile("h.tar", [member("run.json")], manifest), Path("there"))
    assert not Path("there").exists()


def test_a_file_that_stands_twice_or_is_missing_is_refused():
    with pytest.raises(UsageError, match="otherwise than"):
        unpack(hostile("h.tar", [member("run.json"), member("run.json")]), Path("there"))
    listed = {"run.json": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    listed["recipe.yaml"] = listed["run.json"]
    manifest = {"format": "surefoot-pack", "version": 1, "files": listed}
    with pytest.raises(UsageError, match="lacks 'recipe.yaml'"):
        unpack(hostile("h.tar", [member("run.json")], manifest), Path("there"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_wrong_byte_or_a_cut_anywhere_makes_nothing(ending):
    run, to = small_run(), Path(f"r{ending}")
    pack(run, to)
    data, draw = to.read_bytes(), random.Random(1)
    expected = content(run)
    for _ in range(60):
        place = draw.randrange(len(data))
        for wrong in (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[:place]):
            to.write_bytes(wrong)
            try:
                unpack(to, Path("there"))
            except UsageError:
                assert not Path("there").exists()
            else:  # padding, the mark of an end, a header's field that says nothing of the file
                assert content(Path("there")) == expected
                for path in sorted(Path("there").rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                Path("there").rmdir()
    assert sorted(os.listdir()) == [to.name, "run"]


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", bytes(2000), gzip.compress(b"x" * 999, mtime=0)]
)
def test_a_foreign_file_is_named(data, capsys):
    Path("f.tar").write_bytes(data)
    assert "f.tar" in refused(capsys, "unpack", "f.tar", "--to", "there")
    assert "f.tar" in refused(capsys, "unpack", "f.tar", "--to", "new/there")
    assert os.listdir() == ["f.tar"]


def test_bad_input_is_answered_with_what_to_do(capsys, monkeypatch):
    small_run()
    Path("there.tar").write_text("x")
    assert "is there already" in refused(capsys, "pack", "run", "--to", "there.tar")
    assert "ends in .tar.zst, .tar.gz, .tar" in refused(capsys, "pack", "run", "--to", "run.zip")
    assert "no such run directory" in refused(capsys, "pack", "none", "--to", "r.tar")
    Path("lost").mkdir()
    Path("lost/run.json").write_text("{")
    assert "has nothing to go on with" in refused(capsys, "pack", "lost", "--to", "r.tar")
    assert "is there already" in refused(capsys, "unpack", "there.tar", "--to", "run")
    assert "none.tar" in refused(capsys, "unpack", "none.tar")
    with RunDirectory.open("run"):
        assert "already open in this process" in refused(capsys, "pack", "run", "--to", "r.tar")
    Path("run/model/link").symlink_to("/etc/passwd")
    assert "model/link" not in pack(Path("run"), Path("r.tar"))["files"]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install 'surefoot[pack]'" in refused(capsys, "pack", "run", "--to", "run.tar.zst")
    assert "or name it .tar.gz" in refused(capsys, "pack", "run", "--to", "run.tar.zst")


def test_a_full_disk_leaves_nothing(monkeypatch):
    run = small_run()
    pack(run, Path("r.tar"))

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.system, "write", full)
    with pytest.raises(RunFailed, match="No space left"):
        pack(run, Path("other.tar"))
    for to in ("there", "new/er/there"):
        with pytest.raises(UsageError, match="No space left"):
            unpack(Path("r.tar"), Path(to))
    assert sorted(os.listdir()) == ["r.tar", "run"]

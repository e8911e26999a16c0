"""A hand-written FSDP2 loop with a Checkpointer: each rank writes its pieces, and all are there or none."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ranks import RanksFailed, run_ranks
from test_checkpoint_ranks import _terminate, _train, records
from torch import nn

import surefoot
from surefoot import files
from surefoot.checkpoint import scan, store
from surefoot.errors import Stopped, SurefootError, UsageError
from surefoot.proof import compare
from surefoot.world import World


def in_pieces(model):
    """As torch's documentation has it."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


train = functools.partial(_train, wrap=in_pieces, keep_last=None)


def harmed(world, folder):
    """Digests of a run that was never stopped, of one that was, and of one whose second rank once had no room."""
    untouched = train(world, f"{folder}/untouched")
    with pytest.raises(Stopped):
        train(world, f"{folder}/stopped", 5, _terminate)
    stopped = train(world, f"{folder}/stopped")
    system, inner = files.system, files.write_new

    def full(path, chunks):
        if world.rank == 1 and "step-000000012" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return inner(path, chunks)

    files.write_new = full
    with pytest.raises(SurefootError) as caught:
        train(world, f"{folder}/full")
    files.write_new = inner
    left = sorted(os.listdir(f"{folder}/full/checkpoints")) if world.rank == 0 else None
    assert files.system is system
    return untouched, stopped, train(world, f"{folder}/full"), str(caught.value), left


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, run_ranks(3, harmed, str(folder))


def test_a_run_in_pieces_that_was_stopped_or_had_no_room_ends_as_one_that_was_not(ran):
    folder, ranks = ran
    untouched, stopped, full, told, left = zip(*ranks, strict=True)
    assert len({*untouched, *stopped, *full}) == 1
    assert records(folder / "stopped") == records(folder / "full") == records(folder / "untouched")
    assert all("could not be written: No space left on device; the run is kept up to step 6" in text for text in told)
    assert all(text.startswith("rank 1: ") and "-00002-of-00003.safetensors: " in text for text in (told[0], told[2]))
    assert left[0] == ["step-000000006"]
    difference, items = compare(folder / "untouched", folder / "full")
    assert difference is None and items > 8


def test_what_is_read_back_is_whole_and_every_file_is_listed(ran, tmp_path):
    folder = ran[0] / "untouched"
    last = [*scan(folder)][-1]
    manifest = json.loads((last.path / "MANIFEST.json").read_text())
    assert manifest["version"] == 2 and manifest["shards"] == 3 and len(manifest["files"]) == 7
    assert manifest["pieces"]["model.safetensors"]["0.weight"] == {"shape": [16, 6], "dim": 0, "sizes": [6, 6, 4]}
    assert manifest["pieces"]["model.safetensors"]["3.bias"]["sizes"] == [1, 1, 1]
    content = store.load(last)
    assert content.model["0.weight"].shape == (16, 6) and content.model["3.bias"].shape == (3,)
    run = shutil.copytree(folder, tmp_path / "run")
    alone = _train(World.alone(), str(run), wrap=lambda model: model, allow=["world"])
    assert alone == ran[1][0][0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def of_another_step(path):
    shutil.copy(min(path.parent.parent.glob("step-*")) / path.name, path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "is missing"),
        (cut, "its manifest says"),
        (flipped, "its SHA-256 is not the one in the manifest"),
        (of_another_step, "its SHA-256 is not the one in the manifest"),
        (lambda path: shutil.copy(path, path.with_name("model-00004-of-00003.safetensors")), "is not listed"),
    ],
)
def test_a_shard_that_is_damaged_or_missing_is_named(ran, tmp_path, harm, reason):
    run = shutil.copytree(ran[0] / "untouched", tmp_path / "run")
    shard = max(run.glob("checkpoints/step-*")) / "model-00002-of-00003.safetensors"
    harm(shard)
    *earlier, last = scan(run)
    assert last.valid is False and reason in last.reason and re.search(r"model-0000[24]-of-00003", last.reason)
    assert all(status.valid for status in earlier)


def test_a_manifest_whose_pieces_do_not_make_a_tensor_is_refused(ran, tmp_path):
    run = shutil.copytree(ran[0] / "untouched", tmp_path / "run")
    path = max(run.glob("checkpoints/step-*")) / "MANIFEST.json"
    honest = json.loads(path.read_text())
    for change, reason in (
        (lambda cuts: cuts["0.weight"].update(sizes=[6, 6, 5]), "lacks 'pieces'"),
        (lambda cuts: cuts["0.weight"].update(shape=[16, 7]), "of another shape or dtype than its manifest says"),
        (lambda cuts: cuts.pop("0.weight"), "holds '0.weight', which is no piece of a tensor"),
        (lambda cuts: cuts.update(more=cuts["0.weight"]), "lacks its piece of 'more'"),
    ):
        manifest = json.loads(json.dumps(honest))
        change(manifest["pieces"]["model.safetensors"])
        manifest["sha256"] = store._own_hash(manifest)
        path.write_bytes(store._encoded(manifest))
        with pytest.raises(store.BadFile, match=reason):
            store.load(store.listed(path.parent.parent)[-1])


def dies_while_writing(world, run):
    """Rank 1 is killed in the thread that writes its pieces of the second checkpoint."""
    inner = files.write_new

    def write(path, chunks):
        if world.rank == 1 and "optimizer" in path.name and "step-000000004" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(path, chunks)

    files.write_new = write
    train(world, run, every="2 steps")


def test_a_rank_that_dies_while_it_writes_leaves_nothing_visible_that_is_not_whole(ran, run_dir):
    with pytest.raises(RanksFailed) as caught:
        run_ranks(3, dies_while_writing, str(run_dir), die={1})
    assert all("RankFailed: rank 1: has ended" in caught.value.errors[rank] for rank in (0, 2)), caught.value
    assert [(status.step, status.valid) for status in scan(run_dir)] == [(2, True)]
    assert set(run_ranks(3, functools.partial(train, every="2 steps"), str(run_dir))) == {ran[1][0][0]}


def refused(world, run):
    """Spread otherwise than over all ranks in one dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "pieces")))
    with pytest.raises(SurefootError) as caught:
        surefoot.Checkpointer(run, world=world, model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="model: is under FSDP2 already; give it, and its optimizer, as they were"):
        surefoot.fit(model, nn.MSELoss(), optimizer, (torch.ones(4, 4), torch.ones(4, 4)), epochs=1)
    return str(caught.value)


def test_tensors_that_are_spread_otherwise_are_refused_by_name_and_models_in_pieces_by_fit(run_dir):
    for told in run_ranks(2, refused, str(run_dir)):
        assert told.startswith("weight: a tensor spread over ranks as") and "on a mesh of (2, 1)" in told
    assert not run_dir.exists()

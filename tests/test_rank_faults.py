"""What befalls one of several processes: killed in a save, an old view of the disk, other losses; the run stays one."""

from __future__ import annotations

import functools
import hashlib
import shutil
from pathlib import Path

import pytest
from faults.ranks import killed_in_a_save, saved
from ranks import run_ranks
from test_fit_ranks import _fit, _killed, left

from surefoot.errors import RunFailed


def test_a_rank_that_dies_in_a_save_leaves_whole_checkpoints_only(tmp_path):
    """Before the rename that makes it visible; the catalogue has every operation of every rank."""
    operations, others = saved(2, False)[0]
    assert others == [] and {"rename", "unlink"} < set(operations)
    killed_in_a_save(2, 0, operations.index("rename"), tmp_path)


def _each_its_own(world, runs):
    return _fit(world, runs[world.rank])


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_only_rank_0s_view_of_the_run_directory_counts(tmp_path):
    """Rank 1 sees it as it was long ago, as over a network; it neither believes that nor writes there."""
    run, old, untouched = tmp_path / "run", tmp_path / "old", tmp_path / "untouched"
    run_ranks(2, functools.partial(_killed, at=6), str(run), 1, die={1})
    shutil.copytree(run, old)
    for checkpoint in sorted((old / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    before = _contents(old)
    run_ranks(2, _each_its_own, [str(run), str(old)])
    run_ranks(2, _fit, str(untouched))
    assert left(run) == left(untouched) and _contents(old) == before


def _stops_early(world, run):
    """Ends where the validation loss, of which each rank has its own part, no longer falls."""
    return _fit(world, run, epochs=40, micro_batches=2, patience=2, plateau=True)


def test_all_ranks_stop_early_at_the_epoch_of_one_process(tmp_path):
    (alone,) = run_ranks(1, _stops_early, str(tmp_path / "alone"))
    assert alone[0] < 40 * 7
    assert run_ranks(2, _stops_early, str(tmp_path / "two")) == [alone, alone]
    assert left(tmp_path / "two") == left(tmp_path / "alone")


def _not_finite(world, run):
    with pytest.raises(RunFailed) as caught:
        _fit(world, run, lr=1e30)
    return str(caught.value), caught.value.everybodys


def test_a_loss_that_is_not_finite_is_said_once_for_all_ranks(tmp_path):
    (text, everybodys), other = run_ranks(2, _not_finite, str(tmp_path / "run"))
    assert text.startswith("epoch 1, step 2: the loss is nan on samples [") and everybodys and other == (text, True)

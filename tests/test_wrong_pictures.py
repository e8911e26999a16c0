"""TensorBoard's pictures of the most wrongly answered samples: from validation.json, once, at a run's end."""

from __future__ import annotations

import base64
import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from surefoot.pictures import thumbnail
from surefoot.tracking import RunRecords
from surefoot.tracking.validation import write_validation
from surefoot.tracking.wrong_pictures import wrong_pictures

PIXELS = np.arange(28 * 20, dtype=np.uint8).reshape(28, 20)


def found(count: int = 3, **entry) -> dict:
    png = base64.b64encode(thumbnail(PIXELS)).decode()
    wrong = [
        {"index": 7 * k, "loss": 9.0 - k, "true": 0, "predicted": 1, "confidence": 0.98, **entry} for k in range(count)
    ]
    shown = {str(7 * k): {"picture": png} for k in range(count)}
    return {
        "epoch": 0,
        "step": 5,
        "samples": 100,
        "classes": ["shirt", "coat\n\x1b[2J"],
        "wrong": wrong,
        "shown": shown,
    }


def images(run):
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    return {tag: reader.Images(tag) for tag in reader.Tags()["images"]}


def test_the_worst_stand_first_each_with_what_it_was_taken_for():
    pictures = wrong_pictures(found(40))
    assert len(pictures) == 16 and (pictures[0].width, pictures[0].height) == (20, 28)
    assert pictures[1].caption.startswith(r"02: shirt, taken for coat\n\x1b[2J; sample 7; 98.0 % sure, loss 8")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures[0].data))), PIXELS)


def test_what_is_no_picture_is_left_out():
    content = found(4)
    content["shown"] |= {"0": {"text": "words"}, "7": {"picture": "aGFsZg=="}, "14": {"picture": "?"}}
    assert [picture.caption[:3] for picture in wrong_pictures(content)] == ["01:"]
    (alone,) = wrong_pictures({**found(1), "wrong": [{"index": 0, "loss": 2.0, "right": 0.25}]})
    assert alone.caption == "01: sample 0; 25.0 % right, loss 2"


@pytest.mark.parametrize("torn", [b"", b"{"])
def test_a_run_without_the_file_has_none(tmp_path, torn):
    if torn:
        (tmp_path / "validation.json").write_bytes(torn)
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.append({"kind": "epoch", "split": "val", "epoch": 0, "step": 5, "loss": 0.5})
        run.end({}, 5, 1.0)
    assert images(tmp_path) == {}


def test_a_run_that_is_trained_on_shows_those_of_its_end_only(tmp_path):
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.append({"kind": "epoch", "split": "val", "epoch": 0, "step": 5, "loss": 0.5})
        offset, marks = run.offset, run.marks()
        write_validation(tmp_path, found(3))
        run.end({}, 5, 1.0)
    assert [[e.step for e in each] for each in images(tmp_path).values()] == [[5]] * 3
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.truncate(offset, marks)
        run.append({"kind": "epoch", "split": "val", "epoch": 1, "step": 10, "loss": 0.4})
        write_validation(tmp_path, found(2, predicted=0))
        run.end({}, 10, 2.0)
    kept = images(tmp_path)
    assert [[e.step for e in each] for each in kept.values()] == [[10]] * 2
    assert all("taken for shirt" in tag for tag in kept)

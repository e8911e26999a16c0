"""Streams: gone on with exactly at any batch, by their state or by reading again; another stream is found."""

from __future__ import annotations

import itertools
import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import ChainDataset, DataLoader, IterableDataset, get_worker_info

import surefoot
from surefoot import rng
from surefoot.cli import main
from surefoot.data import Loader, StreamSource, as_source
from surefoot.data.torch_loader import loader_of
from surefoot.errors import UsageError


def share(numbers):
    """A worker's part of the numbers."""
    info = get_worker_info()
    return numbers if info is None else itertools.islice(numbers, info.id, None, info.num_workers)


class Plain(IterableDataset):
    """Numbers in a new order each pass, with noise; no state."""

    def __init__(self, count=23):
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def numbers(self):
        order = list(range(self.count))
        random.Random(self.epoch).shuffle(order)
        return share(order)

    def __iter__(self):
        return map(sample_of, self.numbers())


def sample_of(number):
    return torch.tensor([float(number)]) + 0.5 * torch.rand(1), number % 3


class Stateful(Plain):
    """The same, with a state."""

    read = 0
    begin = 0

    def __iter__(self):
        self.read = self.begin
        for number in itertools.islice(self.numbers(), self.begin, None):
            self.read += 1
            yield sample_of(number)

    def state_dict(self):
        return {"read": self.read}

    def load_state_dict(self, state):
        self.begin = state["read"]


class Rewinding(Stateful):
    """Goes back to its beginning when it has ended."""

    def __iter__(self):
        for number in itertools.islice(self.numbers(), self.read, None):
            self.read += 1
            yield sample_of(number)
        self.read = 0

    def load_state_dict(self, state):
        self.read = state["read"]


class ByIterator(Plain):
    """The same, where the iterator has the state, as torchdata has it."""

    class Numbers:
        def __init__(self, numbers):
            self.numbers, self.read = numbers, 0

        def __iter__(self):
            return self

        def __next__(self):
            number = next(self.numbers)
            self.read += 1
            return sample_of(number)

        def state_dict(self):
            return {"read": torch.tensor(self.read)}

        def load_state_dict(self, state):
            self.numbers = itertools.islice(self.numbers, int(state["read"]), None)
            self.read = int(state["read"])

    def __iter__(self):
        return self.Numbers(iter(self.numbers()))


class Buffered(Stateful):
    """Shuffles in a buffer, which its state loses: as `datasets` does it."""

    def __iter__(self):
        buffer = []
        for sample in super().__iter__():
            buffer.append(sample)
            if len(buffer) == 5:
                yield buffer.pop(random.randrange(5))
        yield from buffer


KINDS = [Plain, Stateful, Rewinding, ByIterator, Buffered]


def taken(loader, most=None):
    return [inputs.flatten().tolist() for inputs, _ in itertools.islice(loader, most)]


def passes(loader, epochs):
    return [taken(loader) for _ in range(epochs)]


@pytest.mark.parametrize("num_samples", [None, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_from_any_batch_to_the_bit(kind, num_samples):
    def made():
        return Loader(kind(), 4, seed=3, num_samples=num_samples)

    whole = sum(passes(made(), 4), [])
    assert len({tuple(batch) for batch in whole}) == len(whole)
    for stop in range(len(whole)):
        rng.seed_all(stop)
        first, given = made(), []
        while len(given) < stop:
            given += taken(first, stop - len(given))
        resumed = made()
        resumed.load_state_dict(first.state_dict())
        assert (resumed.epoch, resumed.position) == (first.epoch, first.position)
        while resumed.epoch < 4:
            given += taken(resumed)
        assert given == whole
        assert sum(passes(first, 4 - first.epoch), []) == whole[stop:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_workers_read_ahead_does_not_count(kind):
    def made():
        return Loader(kind(43), 4, seed=3, workers=2)

    loader = made()
    whole = sum(passes(loader, 2), [])
    assert len(whole) == 24  # two workers, with a short batch each
    numbers = [int(x) for batch in whole[:12] for x in batch]
    assert sorted(numbers) == list(range(43))
    for stop in (1, 5, 11, 12, 13, 20):
        loader.seek(0)
        given = taken(loader, stop)
        while len(given) < stop:
            given += taken(loader, stop - len(given))
        state = loader.state_dict()
        loader.seek(1, 2)
        loader.load_state_dict(state)
        while loader.epoch < 2:
            given += taken(loader)
        assert given == whole
    loader.close()


def test_a_resume_by_state_reads_nothing_again():
    class Counting(Stateful):
        given = []

        def __iter__(self):
            for sample in super().__iter__():
                self.given.append(1)
                yield sample

    first = Loader(Counting(2000), 4)
    taken(first, 400)
    state = first.state_dict()
    assert state["reading"]["workers"][0]["state"] == {"read": 1600}
    resumed = Loader(Counting(2000), 4)
    assert resumed.source.stateful
    Counting.given.clear()
    resumed.load_state_dict(state)
    taken(resumed, 1)
    assert len(Counting.given) == 4


def test_how_a_stream_is_resumed_is_said():
    for kind, reason in (
        (Plain, "it has no state_dict"),
        (Buffered, "its state cannot be saved, or does not lead back"),
    ):
        (note,) = Loader(kind(), 4).notes
        assert reason in note and "read again up to there" in note
    for kind in (Stateful, ByIterator):
        assert Loader(kind(), 4).notes == []

    class Unseeded(Plain):
        def __iter__(self):
            generator = random.SystemRandom()
            return iter([generator.random() for _ in range(20)])

    assert any("read differently each time" in note for note in Loader(Unseeded(), 4).notes)


@pytest.mark.parametrize("kind", KINDS)
def test_another_stream_is_found(kind):
    class Longer(kind):
        def __init__(self, count=40):
            super().__init__(count)

    Longer.__qualname__ = kind.__qualname__
    assert as_source(kind()).fingerprint() == as_source(kind()).fingerprint() != as_source(Longer()).fingerprint()
    saved = Loader(kind(), 4, seed=1)
    taken(saved, 3)
    if kind in (Plain, Buffered):
        for other, message in ((Longer(), "not the same stream"), (Longer(7), "the stream ended after 2 batches")):
            loader = Loader(other, 4, seed=1)
            loader.load_state_dict(saved.state_dict())
            with pytest.raises(UsageError, match=message):
                taken(loader)
    for other, message in (
        (Loader(ChainDataset([kind()]), 4), "stream"),
        (Loader(kind(), 4, seed=1, workers=2), "workers: the saved run has 0, this one 2"),
        (Loader(kind(), 4, seed=1, num_samples=8), "num_samples: the saved run has None, this one 8"),
        (Loader(kind(), 4), "seed: the saved run has 1, this one 0"),
    ):
        with pytest.raises(UsageError, match=message):
            other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(("kind", "workers"), [(Stateful, 0), (ByIterator, 0), (Stateful, 2)])
def test_a_stream_that_changed_where_it_was_read_last_is_found(kind, workers):
    """Though its first samples are as they were, and its state leads on at once."""

    class Changed(kind):
        def numbers(self):
            return iter([-1 if number == changed else number for number in super().numbers()])

    Changed.__qualname__ = kind.__qualname__
    saved = Loader(kind(60), 4, workers=workers)
    for batch in saved:
        state, changed = saved.state_dict(), int(batch[0][2, 0])
        if saved.position == 7:
            break
    saved.close()
    for other in (kind(60), Changed(60)):
        loader = Loader(other, 4, workers=workers)
        assert loader.source.fingerprint() == saved.source.fingerprint()
        loader.load_state_dict(state)
        if type(other) is kind:
            taken(loader, 2)
        else:
            with pytest.raises(UsageError, match="its batch ., read again, is not that of the saved run"):
                taken(loader, 2)
        loader.close()


def test_a_state_that_the_stream_refuses_is_told():
    saved = Loader(Stateful(), 4)
    taken(saved, 2)
    state = saved.state_dict()
    state["reading"]["workers"][0]["state"] = {"lines": 8}
    loader = Loader(Stateful(), 4)
    loader.load_state_dict(state)
    with pytest.raises(UsageError, match="Stateful: its load_state_dict refuses the state of the saved run: 'read'"):
        taken(loader)


def test_a_state_of_another_number_of_workers_is_refused_though_it_is_allowed():
    saved = Loader(Stateful(), 4, workers=2)
    taken(saved, 2)
    state = saved.state_dict()
    saved.close()
    with pytest.raises(UsageError, match="was read by 2 workers, each a part of it"):
        Loader(Stateful(), 4).load_state_dict(state, allow={"workers"})


def test_batches_of_another_size_go_on_from_a_state_where_the_stream_has_one():
    numbers = list(range(23))
    random.Random(0).shuffle(numbers)
    for kind in (Stateful, Plain):
        saved = Loader(kind(), 4)
        for _ in range(3):
            taken(saved, 1)
            state = saved.state_dict()
        loader = Loader(kind(), 3)
        if kind is Plain:
            with pytest.raises(UsageError, match="was read in batches of 4 and has no state of its own"):
                loader.load_state_dict(state, allow={"batch_size"})
        else:
            loader.load_state_dict(state, allow={"batch_size"})
            assert [int(number) for batch in taken(loader) for number in batch] == numbers[12:]


def test_a_state_that_cannot_be_saved_is_not_relied_on():
    class Odd(Stateful):
        def state_dict(self):
            return {"read": self.read, "by": object()}

    (note,) = Loader(Odd(), 4).notes
    assert "its state cannot be saved" in note


@pytest.mark.parametrize("kind", [Plain, Stateful])
def test_after_an_error_of_the_streams_own_it_goes_on_where_it_was(kind):
    class Broken(kind):
        broken = True

        def numbers(self):
            for place, number in enumerate(super().numbers()):
                if place == 9 and Broken.broken:
                    raise OSError("the disk is gone")
                yield number

    whole = taken(Loader(kind(), 4, seed=3))
    loader, given = Loader(Broken(), 4, seed=3), []
    with pytest.raises(OSError, match="the disk is gone"):
        for inputs, _ in loader:
            given.append(inputs.flatten().tolist())
    Broken.broken = False
    assert given + taken(loader) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_stream_is_told(workers):
    for arguments in ({}, {"num_samples": 8}):
        loader = Loader(Plain(0), 4, workers=workers, **arguments)
        for use in (loader.peek, lambda loader=loader: taken(loader)):
            with pytest.raises(UsageError, match="the stream Plain is empty"):
                use()
        loader.close()
    with pytest.raises(UsageError, match="no full batch of 40"):
        taken(Loader(Plain(), 40, drop_last=True))


class Sized(Plain):
    def __init__(self, count, said):
        super().__init__(count)
        self.said = said

    def __len__(self):
        return self.said


def two_streams():
    return Sized(8, 8), Plain(7)


def test_a_recipe_of_streams_is_checked(tmp_path, capsys):
    data = f"{{import: '{__name__}:two_streams', batch_size: 4, num_samples: 8}}"
    (tmp_path / "r.yaml").write_text(
        "model: {name: MLP, in_features: 1, hidden: [4], classes: 3}\n"
        f"data: {data}\nloss: CrossEntropyLoss\noptimizer: {{name: SGD, lr: 0.1}}\nepochs: 1\n"
    )
    assert main(["check", str(tmp_path / "r.yaml")]) == 0
    assert "data    8 samples to train, a stream to validate" in capsys.readouterr().out


def test_a_stream_that_is_not_as_long_as_it_says_is_told():
    assert len(Loader(Sized(23, 23), 4)) == 6
    assert len(taken(Loader(Sized(23, 23), 4))) == 6
    for said, message in (
        (30, "ended after batch 6, and by its __len__ it has 30 samples"),
        (12, "goes on after batch 3"),
    ):
        with pytest.raises(UsageError, match=message):
            taken(Loader(Sized(23, said), 4))


def test_what_needs_the_length_says_what_to_write():
    loader = Loader(Plain(), 4)
    assert len(list(loader)) == 6
    assert loader.length is None and loader.samples is None
    with pytest.raises(
        UsageError, match=r"length of the stream Plain is not known; .*Loader\(stream, 4, num_samples=4000\)"
    ):
        len(loader)
    assert len(Loader(Plain(), 4, num_samples=10)) == 3
    with pytest.raises(UsageError, match="its samples have no indices"):
        loader.order(0)
    for arguments in ({"weights": "balanced"}, {"sampler": [1]}, {"lengths": "auto"}):
        with pytest.raises(UsageError, match="a stream is read in its own order"):
            Loader(Plain(), 4, **arguments)


def test_looking_at_a_stream_moves_nothing():
    loader = Loader(Stateful(), 4, seed=3)
    whole = taken(Loader(Stateful(), 4, seed=3))
    rng.seed_all(1)
    expected = torch.rand(2)
    rng.seed_all(1)
    assert [batch[0].flatten().tolist() for batch in loader.first_batches(3)] == whole[:3]
    assert loader.peek()[0].flatten().tolist() == whole[0]
    assert taken(loader) == whole
    assert torch.equal(torch.rand(2), expected)


def test_streams_are_augmented_and_finished_as_other_data():
    class Shift:
        batched = True

        def __call__(self, inputs, draws):
            return inputs + draws.integers(1, 9)[:, None]

    loader = Loader(Plain(), 4, augment=[Shift()], seed=2)
    whole = taken(loader)
    loader.seek(0, 3)
    assert taken(loader) == whole[3:]


def test_a_data_loader_over_a_stream_is_taken_over():
    def list_of(samples):
        return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])

    given = DataLoader(Plain(), batch_size=4, drop_last=True, collate_fn=list_of)
    loader = loader_of(given, 3)
    assert taken(loader) == taken(Loader(Plain(), 4, seed=3, drop_last=True))
    assert isinstance(loader.source, StreamSource) and loader.source.collate is list_of
    with pytest.raises(UsageError, match="worker_init_fn is not called"):
        loader_of(DataLoader(Plain(), batch_size=4, num_workers=2, worker_init_fn=print), 3)


def test_a_chain_of_streams_is_one():
    first, second = Plain(6), Plain(5)
    numbers = [int(x) for batch in taken(Loader(ChainDataset([first, second]), 4)) for x in batch]
    assert sorted(numbers[:6]) == list(range(6)) and sorted(numbers[6:]) == list(range(5))


def test_a_pass_begins_with_the_stream_as_it_was_given():
    class Once(IterableDataset):
        def __init__(self):
            self.left = list(range(8))

        def __iter__(self):
            while self.left:
                yield torch.tensor([float(self.left.pop())]), 0

    stream = Once()
    loader = Loader(stream, 4)
    assert passes(loader, 2) == [[[7.0, 6.0, 5.0, 4.0], [3.0, 2.0, 1.0, 0.0]]] * 2
    assert len(stream.left) == 8


# --- fit -------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def fitted(stream, run_dir, *, stop_at=None, epochs=3, workers=0, num_samples=None, schedule=None, every="1 steps"):
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps = []

    def loss(outputs, targets):
        steps.append(1)
        if stop_at is not None and model.training and len(steps) > stop_at:
            raise Stop
        return nn.functional.cross_entropy(outputs, targets)

    loader = Loader(stream, 4, seed=5, workers=workers, num_samples=num_samples)
    run = surefoot.RunOptions(
        progress=False, execution="plain", 
        checkpoints=surefoot.Checkpoints(every=every, keep_last=2), allow=("loss", "code"),
    )  # fmt: skip
    made = None if schedule is None else schedule(optimizer)
    try:
        result = surefoot.fit(
            model, loss, optimizer, loader, val=Stateful(9), epochs=epochs, run_dir=run_dir, resume=True, run=run,
            schedule=made,
        )  # fmt: skip
    except Stop:
        return None
    finally:
        loader.close()
    return [*model.state_dict().values(), torch.tensor(result.metrics["train/loss"]), torch.tensor(result.steps)]


@pytest.mark.parametrize(("kind", "num_samples"), [(Plain, None), (Stateful, None), (ByIterator, 12), (Buffered, 12)])
def test_a_run_on_a_stream_ends_in_the_same_bits_after_an_end_at_any_batch(tmp_path, kind, num_samples):
    whole = fitted(kind(), tmp_path / "whole", num_samples=num_samples)
    for stop in (1, 3, 8):  # of 18 batches, or of 9
        run_dir = tmp_path / str(stop)
        assert fitted(kind(), run_dir, stop_at=stop, num_samples=num_samples) is None
        assert all(map(torch.equal, fitted(kind(), run_dir, num_samples=num_samples), whole))


@pytest.mark.parametrize("kind", [Plain, Stateful])
def test_so_it_does_with_workers(tmp_path, kind):
    whole = fitted(kind(), tmp_path / "whole", workers=2, epochs=2)
    run_dir = tmp_path / "stopped"
    assert fitted(kind(), run_dir, stop_at=7, workers=2, epochs=2) is None
    assert all(map(torch.equal, fitted(kind(), run_dir, workers=2, epochs=2), whole))


def test_a_run_of_another_stream_is_refused(tmp_path):
    assert fitted(Stateful(), tmp_path, epochs=1) is not None
    with pytest.raises(UsageError, match=r"data.loader"):
        fitted(Stateful(40), tmp_path, epochs=2)


def test_schedules_work_on_streams_and_an_unknown_length_is_no_obstacle(tmp_path):
    by_epoch = fitted(Stateful(), tmp_path / "a", schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    plain = fitted(Stateful(), tmp_path / "b")
    assert not torch.equal(by_epoch[0], plain[0])


def test_evaluate_counts_each_sample_of_a_stream_once():
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    data = [x for x, _ in as_source(Stateful(50)).samples()]
    result = surefoot.evaluate(model, nn.CrossEntropyLoss(), Stateful(50), batch_size=8)
    assert (result.samples, len(data)) == (50, 50)


def test_a_recipe_reads_a_stream_and_asks_for_its_length(tmp_path, monkeypatch):
    from surefoot.build import build
    from surefoot.recipe import load_recipe

    (tmp_path / "flow.py").write_text(
        "import torch\nfrom torch.utils.data import IterableDataset\n"
        "class Flow(IterableDataset):\n    def __iter__(self):\n        n = 0\n        while True:\n"
        "            n += 1\n            yield torch.full((3,), float(n)), n % 2\n"
        "def made():\n    return Flow()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "r.yaml"
    text = """
        model: {name: MLP, in_features: 3, classes: 2, hidden: []}
        data: {import: "flow:made", batch_size: 8, num_samples: 40}
        loss: CrossEntropyLoss
        optimizer: {name: SGD, lr: 0.1}
        epochs: 2
    """
    recipe.write_text(text)
    built = build(load_recipe(recipe))
    assert (built.steps_per_epoch, built.train.samples) == (5, 40)
    assert [int(x[0, 0]) for x, _ in [*built.train, *built.train]] == list(range(1, 81, 8))
    recipe.write_text(text.replace(", num_samples: 40", ""))
    with pytest.raises(
        UsageError, match=r"r.yaml:3:\d+: data: the length of the stream Flow is not known; .*num_samples"
    ):
        build(load_recipe(recipe))


def test_what_can_be_read_only_once_is_no_stream():
    with open(__file__) as file:
        for stream in (file, (number for number in range(9))):
            with pytest.raises(UsageError, match="can be read only once; give an IterableDataset"):
                next(iter(Loader(StreamSource(stream, collate=len), 3)))
    for nothing in (5, Plain):
        with pytest.raises(UsageError, match="cannot be iterated over"):
            StreamSource(nothing)


def test_the_classes_of_a_stream_may_be_in_any_list():
    assert StreamSource(Plain(), classes=numpy.array(["a", "b"])).classes == ("a", "b")
    with pytest.raises(UsageError, match="classes: 2 is not a list of names"):
        StreamSource(Plain(), classes=2)

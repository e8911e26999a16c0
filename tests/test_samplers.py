"""Weights, samplers and DataLoaders of torch's: taken by their meaning, as a function of seed and epoch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import surefoot
from surefoot import rng
from surefoot.data import DatasetSource, Loader, as_source
from surefoot.data.orders import occurrences
from surefoot.data.torch_loader import loader_of
from surefoot.errors import UsageError

COUNT = 300
LABELS = torch.tensor([0] * 240 + [1] * 50 + [2] * 10)


def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(COUNT, dtype=torch.float32)[:, None], LABELS


class Rows(Dataset):
    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.tensor([float(index)]), int(LABELS[index])


def drawn(loader: Loader, epochs: int = 1) -> list[list[int]]:
    """The indices of each batch, read from the batches themselves."""
    return [inputs[:, 0].long().tolist() for _ in range(epochs) for inputs, _ in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain(*batches))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [numbered, Rows])
def test_weights_are_what_weighted_random_sampler_means(data):
    loader = Loader(data(), 50, weights="balanced", num_samples=3000, seed=1)
    assert (len(loader), loader.samples) == (60, 3000)
    indices = torch.tensor(flat(drawn(loader)))
    assert loader.order(0).tolist() == indices.tolist()
    # Of 3,000 draws each class gets 1,000 on average, with a deviation of 26; the same as torch's own, from its seed.
    theirs = WeightedRandomSampler(1.0 / LABELS.bincount().double()[LABELS], 3000, generator=torch.Generator())
    for chosen in (indices, torch.tensor(list(theirs))):
        assert all(900 < count < 1100 for count in LABELS[chosen].bincount().tolist())
    assert indices.tolist() != loader.order(1).tolist() != loader.order(0).tolist()


def test_what_is_drawn_has_the_frequencies_of_the_weights_and_weight_0_is_never_drawn():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    loader = Loader((torch.arange(6.0)[:, None], torch.arange(6)), 6, weights=weights, num_samples=80_000)
    counts = loader.order(0).bincount(minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    assert torch.allclose(counts / 80_000, weights.double().float() / 8, atol=0.01)


@pytest.mark.parametrize("given", [[1, 4, 20], [1.0] * 240 + [4.0] * 50 + [20.0] * 10, torch.tensor([1, 4, 20])])
def test_weights_are_one_for_each_sample_or_for_each_class(given):
    per_sample = torch.tensor([1.0, 4.0, 20.0])[LABELS]
    expected = Loader(numbered(), 50, weights=per_sample).order(3)
    assert torch.equal(Loader(numbered(), 50, weights=given).order(3), expected)


def test_a_column_of_weights_is_no_input():
    inputs, labels = numbered()
    often = (labels == 2).float()
    loader = Loader({"x": inputs, "often": often, "label": labels}, 50, weights="often")
    ((batch,),) = itertools.islice(loader, 1)
    assert set(batch) == {"x", "label"} and batch["label"].tolist() == [2] * 50


@pytest.mark.parametrize("workers", [0, 2])
def test_a_weighted_loader_goes_on_anywhere_and_workers_change_nothing(workers):
    def made():
        return Loader(Rows(), 50, weights="balanced", seed=4, workers=workers)

    expected = drawn(Loader(numbered(), 50, weights="balanced", seed=4), epochs=2)
    stopped = made()
    assert [next(iter(stopped))[0][:, 0].tolist() for _ in range(4)] == expected[:4]
    resumed = made()
    resumed.load_state_dict(stopped.state_dict())
    assert drawn(resumed, epochs=2) == expected[4:]
    stopped.close(), resumed.close()


def test_a_sample_that_comes_again_is_augmented_in_another_way():
    class Noise:
        batched = True

        def __call__(self, inputs, draws):
            return inputs + draws.uniform()[:, None]

    class NoisyRows(Rows):
        def __getitem__(self, index):
            return torch.rand(1) + index, 0

    for data, augment in ((numbered(), [Noise()]), (NoisyRows(), [])):
        loader = Loader(data, 7, weights=[1.0] * 3 + [0.0] * 297, num_samples=21, augment=augment)
        values = torch.cat([inputs for inputs, _ in loader]).flatten()
        assert len(values.unique()) == 21 and set(values.long().tolist()) == {0, 1, 2}
        loader.seek(0, 1)
        assert torch.equal(torch.cat([inputs for inputs, _ in loader]).flatten(), values[7:])
    assert occurrences(torch.tensor([5, 5, 2, 5, 2])).tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "2 were given; give one for each of 300 samples, or for each of 3 classes"),
        ([0.0, 0.0, 0.0], "all are 0"),
        ([1.0, -1.0, 0.0], "number 1 is -1; give finite weights of 0 or more"),
        ([1.0, float("nan"), 0.0], "number 1 is nan"),
        ("balance", "'balance' is neither balanced nor a column; these data have no columns by name"),
        ({"a": 1}, "a mapping is no list of numbers"),
        (["a", "b"], r"the list \['a', 'b'\] is no list of numbers"),
        (0.5, "0.5 is no list of numbers"),
        (torch.ones(300, 2), r"\(300, 2\) were given"),
    ],
)
def test_weights_that_cannot_be_are_told(weights, message):
    with pytest.raises(UsageError, match=f"data: weights: {message}"):
        Loader(numbered(), 50, weights=weights)
    with pytest.raises(UsageError, match="no class labels"):
        Loader((torch.zeros(4, 1), torch.zeros(4)), 2, weights="balanced")
    with pytest.raises(UsageError, match="did you mean 'often'.; its columns are x, often"):
        Loader({"x": torch.zeros(4), "often": torch.ones(4)}, 2, weights="offen")
    with pytest.raises(UsageError, match="an array of str.* is no array of numbers; encode it"):
        Loader([(torch.zeros(1), "cat"), (torch.ones(1), "dog")], 2, weights="balanced")
    with pytest.raises(UsageError, match="1 of 3 labels lie outside the 2 classes"):
        Loader(DatasetSource([(0.0, k) for k in range(3)], classes=["a", "b"]), 2, weights=[1, 2])


def test_a_state_of_other_weights_is_refused():
    saved = Loader(numbered(), 50, weights="balanced").state_dict()
    for other in ({}, {"weights": [1, 2, 3]}, {"weights": "balanced", "num_samples": 100}, {"sampler": Count(5)}):
        with pytest.raises(UsageError, match="the saved run has"):
            Loader(numbered(), 50, **other).load_state_dict(saved)
    with pytest.raises(UsageError, match="weights: the saved run has None"):
        Loader(numbered(), 50, weights="balanced").load_state_dict(Loader(numbered(), 50).state_dict())


def test_num_samples_alone_takes_so_many_of_each_permutation():
    loader = Loader(numbered(), 50, num_samples=450)
    order = loader.order(0)
    assert sorted(order[:300].tolist()) == list(range(300)) and len(order[300:].unique()) == 150
    assert len(Loader(numbered(), 50, num_samples=120).order(0).unique()) == 120


# --- samplers --------------------------------------------------------------------------------------------------------


class Count(Sampler):
    """The first so many, in an order of the process's generator, or of its own."""

    def __init__(self, count, generator=None):
        self.count, self.generator = count, generator

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(torch.randperm(self.count, generator=self.generator).tolist())


class Turning(Sampler):
    """Remembers how often it was asked."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 5

    def __iter__(self):
        self.asked.append(1)
        start = len(self.asked)
        return iter(range(start, start + 5))


class Saved(Turning):
    def state_dict(self):
        return {"asked": len(self.asked)}

    def load_state_dict(self, state):
        self.asked = [1] * state["asked"]


class ByEpoch(Turning):
    def set_epoch(self, epoch):
        self.asked = [1] * epoch


def test_torchs_samplers_are_taken_by_their_meaning():
    def order(sampler, epoch=0):
        return Loader(numbered(), 50, sampler=sampler, seed=3).order(epoch)

    data = range(COUNT)
    assert order(SequentialSampler(data)).tolist() == list(data)
    assert torch.equal(order(RandomSampler(data, generator=torch.Generator())), Loader(numbered(), 50, seed=3).order(0))
    with_replacement = order(RandomSampler(data, replacement=True, num_samples=1000))
    assert len(with_replacement) == 1000 and 250 < len(with_replacement.unique()) < 300
    assert len(order(RandomSampler(data, num_samples=40)).unique()) == 40
    assert sorted(order(SubsetRandomSampler([7, 3, 9])).tolist()) == [3, 7, 9]
    once = order(WeightedRandomSampler([0.0] * 200 + [1.0] * 100, 90, replacement=False))
    assert len(once.unique()) == 90 and int(once.min()) >= 200
    again = order(WeightedRandomSampler([0.0] * 200 + [1.0] * 100, 90, replacement=False), epoch=1)
    assert once.tolist() != again.tolist()
    with pytest.raises(UsageError, match="only 100 have a weight above 0"):
        order(WeightedRandomSampler([0.0] * 200 + [1.0] * 100, 101, replacement=False))
    assert order(SequentialSampler(range(5))).tolist() == [0, 1, 2, 3, 4]
    assert sorted(order(RandomSampler(range(5))).tolist()) == [0, 1, 2, 3, 4]
    some = order(RandomSampler(range(5), replacement=True, num_samples=400))
    assert len(some) == 400 and some.unique().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="RandomSampler gives index 300; the data have 300 samples"):
        order(RandomSampler(range(301)))


def test_weighted_draws_without_replacement_prefer_heavy_samples():
    sampler = WeightedRandomSampler([1.0] * 299 + [1e9], 10, replacement=False)
    loader = Loader(numbered(), 10, sampler=sampler)
    assert all(loader.order(epoch)[0] == 299 for epoch in range(20))


@pytest.mark.parametrize("sampler", [Count(40), Count(40, torch.Generator().manual_seed(5)), ByEpoch(), Turning()])
def test_a_users_own_sampler_is_a_function_of_seed_and_epoch(sampler):
    loader = Loader(numbered(), 2, sampler=sampler, seed=2)
    rng.seed_all(1)
    orders = [loader.order(epoch).tolist() for epoch in range(4)]
    rng.seed_all(2)
    for epoch in (3, 0, 2, 1):
        assert loader.order(epoch).tolist() == orders[epoch]
    assert len({tuple(order) for order in orders}) == 4
    assert (len(loader.notes) == 1) is (type(sampler) is Turning)


@pytest.mark.parametrize("kind", [Turning, Saved, ByEpoch])
def test_a_sampler_with_a_memory_goes_on_as_the_untouched_one(kind):
    whole = drawn(Loader(numbered(), 2, sampler=kind()), epochs=4)
    for stop in range(1, 12):
        first = Loader(numbered(), 2, sampler=kind())
        given = []
        while len(given) < stop:
            for inputs, _ in first:
                given.append(inputs[:, 0].long().tolist())
                if len(given) == stop:
                    break
        resumed = Loader(numbered(), 2, sampler=kind())
        resumed.load_state_dict(first.state_dict())
        assert given + drawn(resumed, epochs=4 - resumed.epoch) == whole


def test_a_sampler_that_gives_another_order_is_found():
    saved = Loader(numbered(), 2, sampler=Count(40), seed=1)
    next(iter(saved))

    class Backwards(Count):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    Backwards.__name__ = "Count"
    other = Loader(numbered(), 2, sampler=Backwards(40), seed=1)
    with pytest.raises(UsageError, match="Count gives another order of epoch 1 than in the saved run"):
        other.load_state_dict(saved.state_dict())


def test_a_batch_sampler_of_ones_own_makes_the_batches():
    class Pyramid(Sampler):
        def __len__(self):
            return 4

        def __iter__(self):
            order = torch.randperm(10).tolist()
            return iter([order[:1], order[1:3], order[3:6], order[6:]])

    for data in (numbered(), Rows()):
        loader = Loader(data, 1, sampler=Pyramid(), seed=3)
        assert (len(loader), loader.samples, loader.short_batch()) == (4, 10, None)
        batches = drawn(loader)
        assert [len(batch) for batch in batches] == [1, 2, 3, 4] and sorted(flat(batches)) == list(range(10))
        loader.seek(0, 2)
        assert drawn(loader) == batches[2:] and loader.last_indices.tolist() == batches[3]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (7, "int has no __iter__ and __len__"),
        (Count, "type has no __iter__ and __len__"),
        (["a"], "list gives str and not the index of a sample"),
        ([300], "list gives index 300; the data have 300 samples"),
        ([], "list gives no samples"),
        (SubsetRandomSampler([]), "SubsetRandomSampler gives no samples"),
        (SequentialSampler([]), "SequentialSampler gives no samples"),
    ],
)
def test_a_sampler_that_cannot_be_is_told(sampler, message):
    with pytest.raises(UsageError, match=message):
        Loader(numbered(), 1, sampler=sampler)
    with pytest.raises(UsageError, match="sampler: says by itself what is read, and in which order; leave weights out"):
        Loader(numbered(), 1, sampler=[1], weights="balanced")


def test_a_sampler_whose_epochs_are_of_unequal_length_is_told():
    class Growing(ByEpoch):
        def __len__(self):
            return 5 + len(self.asked)

        def __iter__(self):
            return iter(range(len(self)))

    with pytest.raises(UsageError, match="gives 6 samples in epoch 2 and 5 samples in the first"):
        Loader(numbered(), 1, sampler=Growing()).order(1)


# --- a DataLoader ----------------------------------------------------------------------------------------------------


def pairs(samples):
    return samples


def test_a_data_loader_is_taken_over():
    said = []
    data = TensorDataset(*numbered())
    plain = loader_of(DataLoader(data, batch_size=32, shuffle=True, drop_last=True), 3, said.append)
    assert torch.equal(plain.order(1), Loader(numbered(), 32, seed=3, drop_last=True).order(1))
    assert said == [
        "data: the DataLoader is read as a Loader: its samples and batches, in an order from seed 3 and the epoch"
    ]
    weighted = WeightedRandomSampler([1.0] * COUNT, 64)
    taken = loader_of(DataLoader(Rows(), batch_size=32, sampler=weighted, num_workers=2, collate_fn=pairs), 0)
    assert (len(taken), taken.workers, taken.source.collate) == (2, 2, pairs)
    batches = BatchSampler(SequentialSampler(data), 7, False)
    assert drawn(loader_of(DataLoader(data, batch_sampler=batches), 0)) == [
        list(range(COUNT))[k : k + 7] for k in range(0, COUNT, 7)
    ]
    one = loader_of(DataLoader(Rows(), batch_size=None), 0)
    assert len(one) == COUNT and next(iter(one))[0].tolist() == [0.0]


def test_fit_and_evaluate_take_a_data_loader_and_resume_to_the_bit(tmp_path):
    inputs, labels = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0)), LABELS
    data = TensorDataset(inputs, labels)

    def trained(epochs, run_dir, resume=False):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sampler = WeightedRandomSampler([1.0] * COUNT, 100)
        train = DataLoader(data, batch_size=16, sampler=sampler)
        quiet = surefoot.RunOptions(progress=False, execution="plain")
        surefoot.fit(
            model, torch.nn.CrossEntropyLoss(), optimizer, train, val=DataLoader(data, batch_size=64), epochs=epochs,
            run_dir=run_dir, resume=resume, run=quiet,
        )  # fmt: skip
        return model

    whole = trained(2, tmp_path / "a")
    trained(1, tmp_path / "b")
    assert torch.equal(whole.weight, trained(2, tmp_path / "b", resume=True).weight)
    result = surefoot.evaluate(whole, torch.nn.CrossEntropyLoss(), DataLoader(data, batch_size=64))
    assert result.samples == COUNT
    with pytest.raises(UsageError, match="8 was given beside a DataLoader with batches of 16"):
        loader = DataLoader(data, batch_size=16)
        surefoot.fit(
            whole, torch.nn.CrossEntropyLoss(), torch.optim.SGD(whole.parameters()), loader, epochs=1, batch_size=8
        )


# --- data sets inside of data sets -----------------------------------------------------------------------------------


def test_classes_and_targets_are_found_through_subsets_and_concatenations():
    class Named(Rows):
        classes = ("a", "b", "c")
        targets = LABELS

    nested = ConcatDataset([Subset(Named(), [299, 0]), Subset(Subset(Named(), list(range(240, 300))), [1, 55])])
    source = as_source(nested)
    assert isinstance(source, DatasetSource)
    assert source.classes == ("a", "b", "c") and source.targets().tolist() == [2, 0, 1, 2]
    assert source.fingerprint() == as_source(nested).fingerprint()
    tensors = TensorDataset(*numbered())
    joined = as_source(ConcatDataset([Subset(tensors, [5, 1]), tensors]))
    assert joined.tensors[0][:3, 0].tolist() == [5.0, 1.0, 0.0] and len(joined) == COUNT + 2
    assert len(Loader(joined, 50, weights="balanced")) == 7


def test_columns_by_name_are_read_a_batch_at_a_time_and_weighed():
    inputs, labels = numbered()
    loader = Loader({"x": inputs, "label": labels}, 60, weights="balanced")
    ((batch,),) = itertools.islice(loader, 1)
    assert torch.equal(batch["x"][:, 0].long(), loader.order(0)[:60]) and torch.equal(
        batch["label"], labels[loader.order(0)[:60]]
    )
    assert torch.equal(loader.batch_at(0, 0)[0]["x"], batch["x"])
    with pytest.raises(UsageError, match="augment: the samples have columns by name"):
        Loader({"x": inputs}, 60, augment=[torch.relu])


def test_a_recipe_draws_by_weight(tmp_path):
    from surefoot.build import build
    from surefoot.recipe import load_recipe

    text = """
        model: LeNet5
        data: {name: garments, train_size: 40, val_size: 10, batch_size: 8, weights: WEIGHTS, num_samples: 24}
        loss: CrossEntropyLoss
        optimizer: {name: SGD, lr: 0.1}
        epochs: 1
    """
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text.replace("WEIGHTS", "[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]"))
    built = build(load_recipe(recipe))
    assert (len(built.train), built.steps_per_epoch) == (3, 3) and set(next(iter(built.train))[1].tolist()) == {9}
    recipe.write_text(text.replace("WEIGHTS", "rare"))
    with pytest.raises(UsageError, match=r"r.yaml:3:\d+: data.weights: 'rare' is neither balanced nor a column"):
        build(load_recipe(recipe))


class Turned:
    """Its order begins at `first`, which is its state."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([(self.first + k) % 4 for k in range(4)])

    def state_dict(self):
        return {"first": self.first}

    def load_state_dict(self, state):
        self.first = state["first"]


def test_an_order_that_was_looked_at_before_a_state_is_loaded_is_not_gone_on_with():
    saved, loader = (Loader((torch.arange(4),), 1, sampler=Turned(first)) for first in (1, 3))
    next(iter(saved))
    assert loader.peek()[0].tolist() == [3]
    loader.load_state_dict(saved.state_dict())
    assert [batch.item() for (batch,) in loader] == [2, 3, 0]


@pytest.mark.parametrize("less", [{"num_samples": 3}, {"sampler": SubsetRandomSampler([1, 2])}])
def test_an_epoch_of_no_batch_is_refused(less):
    data = torch.arange(9)
    assert len(Loader((data,), 4, **less)) == 1
    with pytest.raises(UsageError, match="drop_last: an epoch has fewer samples than a batch of 4"):
        Loader((data,), 4, drop_last=True, **less)


class Changed(Dataset):
    """As torchvision's data sets: `targets` are kept as they were before `target_transform`."""

    def __init__(self):
        self.targets, self.target_transform = [0, 0, 0, 1], lambda target: 1 - target

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(2), self.target_transform(self.targets[index])


def test_targets_are_those_that_samples_have():
    assert DatasetSource(Changed()).targets().tolist() == [1, 1, 1, 0]
    assert DatasetSource(Subset(Changed(), [0, 3])).targets().tolist() == [1, 0]


def weighed():
    """Data for a recipe: training and validation samples with a column to draw by."""
    inputs, labels = torch.rand(40, 3), torch.arange(40) % 2
    columns = {"x": inputs, "often": (labels == 1).float(), "label": labels}
    return columns, {name: column[:10] for name, column in columns.items()}


def test_a_column_of_weights_is_no_input_of_validation_either(monkeypatch):
    from surefoot.build import build
    from surefoot.recipe import parse_recipe

    monkeypatch.setattr("surefoot.build.imports.import_object", lambda path: weighed)
    monkeypatch.setattr("surefoot.build.conditions.import_object", lambda path: weighed)
    text = """
        model: {name: MLP, in_features: 3, hidden: [4], classes: 2}
        data: {import: "my.data:weighed", batch_size: 8, weights: often}
        loss: CrossEntropyLoss
        optimizer: {name: SGD, lr: 0.1}
        epochs: 1
    """
    built = build(parse_recipe(text))
    (batch,), (validated,) = next(iter(built.train)), next(iter(built.val))
    assert set(batch) == set(validated) == {"x", "label"} and set(batch["label"].tolist()) == {1}

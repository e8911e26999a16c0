"""A recipe is read whole or refused whole: every mistake told at once, with its place and what to do."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys

import pytest
from recipe_texts import (
    BASE,
    FAKES,
    read,
    told,
)

from surefoot.errors import Problems, UsageError
from surefoot.recipe import Frozen, load_recipe, packaged_names, packaged_summary, parse_recipe
from surefoot.recipe.check import BY_STEP
from surefoot.recipe.sections import Part


def test_keys_become_typed_fields_with_their_defaults():
    recipe = read()
    assert (recipe.name, recipe.seed, recipe.epochs, recipe.precision) == ("r", 0, 3, "float32")
    assert recipe.model.part.name == "LeNet5" and recipe.model.part.args == {}
    assert recipe.data.part.name == "garments" and recipe.data.batch_size == 32 and recipe.data.shuffle is True
    assert recipe.optimizer.part.args == {"lr": 0.1} and recipe.optimizer.groups == ()
    assert recipe.loss[0].part.name == "CrossEntropyLoss" and recipe.loss[0].factor == 1.0
    assert recipe.checkpoint.every == "1 epoch" and recipe.scheduler is None


def test_one_name_is_a_mapping_with_only_that_name():
    assert read() == read(BASE.replace("model: LeNet5", "model: {name: LeNet5}"))


def test_a_part_knows_where_it_stands():
    recipe = read(BASE, "model.classes=7")
    assert recipe.where("optimizer.name") == "r.yaml:6:9" and recipe.optimizer.part.path == "optimizer"
    assert recipe.where("optimizer.lr") == "r.yaml:7:7"
    assert recipe.where("model.classes") == "argument 'model.classes=7'"
    assert recipe.where("data.workers") == recipe.where("data") == "r.yaml:3:7"
    assert recipe.problem("optimizer.lr", "too large") == "r.yaml:7:7: optimizer.lr: too large"


def test_numbers_are_of_the_kind_that_the_key_has():
    recipe = read(BASE + "max_grad_norm: 1\n")
    assert type(recipe.max_grad_norm) is float and type(read(BASE, "epochs=012").epochs) is int


def test_the_issue_s_example_is_told_as_the_issue_says():
    text = BASE.replace("lr: 0.1", "lr: -0.1")
    assert told(text) == ["r.yaml:7:7: optimizer.lr: -0.1 is below 0; give a positive rate, e.g. 0.001"]


def test_all_mistakes_come_at_once_in_the_order_of_the_file():
    text = """\
epochs: 0
modle: LeNet5
data: {name: garment, batch_size: none, batchsize: 3}
loss: {name: CrossEntropyLoss, label_smoothin: 0.1}
optimizer: {name: SGD, lr: fast, momentun: 0.9}
scheduler: {name: StepLR}
early_stopping: {monitor: val/acc}
loss: MSELoss
"""
    assert told(text, "seed=-1", "precison=bf16") == [
        "r.yaml:1:9: epochs: 0 is below 1; give at least one epoch",
        "r.yaml:2:1: unknown key 'modle'; did you mean 'model'?",
        "r.yaml:3:14: data: unknown data set 'garment'; did you mean 'garments'?",
        "r.yaml:3:35: data.batch_size: the text 'none' is not a whole number, 1 or more",
        "r.yaml:4:32: loss: CrossEntropyLoss has no argument 'label_smoothin'; did you mean 'label_smoothing'?",
        "r.yaml:5:28: optimizer.lr: the text 'fast' is not a number",
        "r.yaml:5:34: optimizer: SGD has no argument 'momentun'; did you mean 'momentum'?",
        "r.yaml:6:19: scheduler: StepLR needs the argument 'step_size'",
        "r.yaml:7:27: early_stopping.monitor: val/acc is not measured; did you mean 'val/accuracy'?",
        "r.yaml:8:1: 'loss' is given twice; it first stands at r.yaml:4:1",
        "argument 'seed=-1': seed: -1 is below 0; give 0 or more",
        "argument 'precison=bf16': unknown key 'precison'; did you mean 'precision'?",
    ]


def test_a_misspelt_key_of_a_section_is_found_among_the_section_s_own():
    (message,) = told(BASE.replace("batch_size", "batchsize"))
    assert message == "r.yaml:3:24: data: garments has no argument 'batchsize'; did you mean 'batch_size'?"


# One line added to (or put in the place of a line of) the base recipe, and what is told about it.
LINES = [
    ("batch_size: 3", "8:1: unknown key 'batch_size'; it belongs under 'data'"),
    ("learning_rate: 3", "8:1: unknown key 'learning_rate'; it belongs under 'optimizer': optimizer.lr"),
    ("num_epochs: 3", "8:1: unknown key 'num_epochs'; it is called 'epochs' here"),
    ("gradient_clip_val: 3", "8:1: unknown key 'gradient_clip_val'; it is called 'max_grad_norm' here"),
    ("patience: 3", "8:1: unknown key 'patience'; it belongs under 'early_stopping'"),
    ("checkpoint: {seed: 1}", "8:14: checkpoint: unknown key 'seed'; it stands at the top level of the recipe"),
    ("epochs: true", "1:9: epochs: true is not a whole number, 1 or more"),
    ("epochs: 2.0", "1:9: epochs: 2.0 is not a whole number, 1 or more; write 2"),
    ("epochs: '3'", "1:9: epochs: the text '3' is not a whole number, 1 or more; write it without quotation marks"),
    ("epochs: 60_000", "1:9: epochs: the text '60_000' is not a whole number, 1 or more; write 60000"),
    ("epochs: [3]", "1:9: epochs: a list is not a whole number, 1 or more"),
    ("epochs:", "1:8: epochs: an empty value is not a whole number, 1 or more"),
    ("strict: yes", "8:9: strict: the text 'yes' is not true or false; write true"),
    (
        "tensorboard: 'false'",
        "8:14: tensorboard: the text 'false' is not together, true, false or a mapping; write false",
    ),
    ("strict: 1", "8:9: strict: 1 is not true or false"),
    ("precision: fp32", "8:12: precision: the text 'fp32' is not one of float32, bf16, fp16; write float32"),
    ("max_grad_norm: 0", "8:16: max_grad_norm: 0 is not above 0; give a norm above 0, or null for no clipping"),
    (
        "max_grad_norm: .inf",
        "8:16: max_grad_norm: inf is not a finite number; give a norm above 0, or null for no clip",
    ),
    ("clip_value: none", "8:13: clip_value: the text 'none' is not a number, above 0, or null; write null"),
    (
        "scheduler: none",
        "8:12: scheduler: the text 'none' is not the name of a scheduler, or a mapping with it, or null; w",
    ),
    ("checkpoint: false", "8:13: checkpoint: false is not a mapping, or null; write null"),
    ("precision: 16", "8:12: precision: 16 is not one of float32, bf16, fp16; write fp16"),
    ("ema: 0.99", "8:6: ema: 0.99 is not a mapping; write {decay: 0.99}"),
    ("ema: {decay: 1}", "8:14: ema.decay: 1 is not below 1; give a decay such as 0.999"),
    ("name: a/b", "8:7: name: the text 'a/b' is not a name for a directory"),
    ("name: 7", "8:7: name: 7 is not a name for a directory"),
    ("name: ..", "8:7: name: the text '..' is not a name for a directory"),
    ("seed: 9223372036854775808", "8:7: seed: 9223372036854775808 is above 9223372036854775807"),
    ("device: gpu", "8:9: device: the text 'gpu' is not auto, cpu, cuda, cuda:N or mps; a GPU is cuda"),
    ("execution: fast", "8:12: execution: the text 'fast' is not auto, plain or a mapping"),
    ("execution: {threads: 0}", "8:22: execution.threads: 0 is below 1; give at least one"),
    ("execution: {threads: 99999999999999999999}", "8:22: execution.threads: 99999999999999999999 is above 4096"),
    ("execution: {onednn: no}", "8:21: execution.onednn: the text 'no' is not auto or true or false; write false"),
    ("freeze: [1]", "8:10: freeze.0: 1 is not a pattern of parameter names such as '*.bias'"),
    ("freeze: {a: b}", "8:9: freeze: a mapping is not a pattern of parameter names"),
    ("unfreeze: 3", "8:11: unfreeze: 3 is not a list; write [3]"),
    ("unfreeze: [{match: a, epoch: 1}]", "8:11: unfreeze: nothing is frozen; give freeze:"),
    ("checkpoint: 500", "8:13: checkpoint: 500 is not a mapping"),
    ("checkpoint: 500 steps", "8:13: checkpoint: the text '500 steps' is not a mapping; write {every: 500 steps}"),
    ("ema: true", "8:6: ema: true is not a mapping; write {} for its defaults"),
    ("log_every: 1,5", "8:12: log_every: the text '1,5' is not a whole number, 1 or more; write 1.5"),
    ("log_every: 60,000", "8:12: log_every: the text '60,000' is not a whole number, 1 or more; write 60000"),
    ("log_every: 5,", "8:12: log_every: the text '5,' is not a whole number, 1 or more; write 5"),
    ("metrics: 3", "8:10: metrics: 3 is not the name of a metric, or a mapping with it, e.g. accuracy"),
    ("metrics: [f1]", "8:11: metrics.0: unknown metric 'f1'"),
    ("checkpoint: {every: 500}", "8:21: checkpoint.every: 500 is not a count and its unit; write for example 1 epoch"),
    ("checkpoint: {every: 0 steps}", "8:21: checkpoint.every: the text '0 steps' is not a count and its unit"),
    ("checkpoint: {every: 2 weeks}", "8:21: checkpoint.every: the text '2 weeks' is not a count and its unit"),
    ("checkpoint: {keep_last: 0}", "8:25: checkpoint.keep_last: 0 is below 1; one is needed to go on from"),
    (
        "checkpoint: {keep_best: loss}",
        "8:25: checkpoint.keep_best: the text 'loss' is not what is measured, val/NAME or train/NAME; w",
    ),
    (
        "checkpoint: {keep_best: val/accuracy, mode: min}",
        "8:45: checkpoint.mode: min would take the worst val/accuracy for the best; leave mode out, or give max",
    ),
    ("early_stopping: {mode: max}", "8:24: early_stopping.mode: max would take the worst val/loss for the best"),
    (
        f"early_stopping: {{patience: {10**400}}}",
        f"8:28: early_stopping.patience: 1{'0' * 29}...{'0' * 27} is above 9223372036854775807",
    ),
    ("early_stopping: {patience: 0}", "8:28: early_stopping.patience: 0 is below 1; give at least one epoch"),
    ("model:", "2:7: model: an empty value is not the name of a model, or a mapping with it, e.g. LeNet5"),
    ("model: {classes: 3}", "2:8: model: no model is named; give its name, e.g. LeNet5"),
    ("model: {type: LeNet5}", "2:8: model: no model is named; write 'name' for 'type'"),
    ("model: {name: [LeNet5]}", "2:15: model.name: a list is not the name of a model"),
    ("model: [LeNet5]", "2:8: model: a list is not the name of a model, or a mapping with it, e.g. LeNet5"),
    ("model: Lenet", "2:8: model: unknown model 'Lenet'; did you mean 'LeNet5'?"),
    ("model: VGG", "2:8: model: unknown model 'VGG'; the names are: LeNet5; your own is {import: my_package.m"),
    ("model: a.b:C", "2:8: model: 'a.b:C' is not a registered name; to use your own, write {import: a.b:C}"),
    ("model: {import: a.b.C}", "2:17: model.import: 'a.b.C' has no colon; write a.b:C"),
    ("model: {import: a/b.py:C}", "2:17: model.import: 'a/b.py:C' is a file; give the module and the name in it"),
    ("model: {import: 'a b:C'}", "2:17: model.import: 'a b:C' is not of the form module:Name"),
    ("model: {import: 'a:B', config: {import: torch}}", "2:32: model.config: 'torch' is not of the form module:Name"),
    ("model: {import: 3}", "2:17: model.import: 3 is not a text module:Name"),
    ("data: {name: garments, normalize: {mean: [0.1, 0.2], std: 1}}", "3:35: data.normalize: mean has 2 numbers and"),
    ("data: {name: garments, normalize: {std: 0}}", "3:41: data.normalize.std: 0 is not above 0; give a deviation"),
    ("data: {name: garments, normalize: atuo}", "3:35: data.normalize: the text 'atuo' is not auto or a mapping"),
    ("data: {name: garments, augment: RandomCrop}", "3:33: data.augment: the text 'RandomCrop' is not a list; write ["),
    ("data: {name: garments, augment: [{name: RandomCrop}]}", "3:41: data.augment.0: RandomCrop needs the argument"),
    ("loss: []", "4:7: loss: no items are fewer than 1"),
    ("loss: [CrossEntropyLoss, {name: CrossEntropyLoss, factor: x}]", "4:59: loss.1.factor: the text 'x' is not a num"),
    ("optimizer: {name: SGD, groups: [{weight_decay: 0}]}", "5:33: optimizer.groups.0.match: missing; give a pattern"),
    (
        "optimizer: {name: SGD, groups: [{match: '*', lr: -1}]}",
        "5:50: optimizer.groups.0.lr: -1 is below 0; give a positive rate",
    ),
    (
        "optimizer: {name: SGD, groups: [{match: '*', weight_deacy: 1}]}",
        "5:46: optimizer.groups.0: SGD has no argument 'weight_deacy'; did you mean 'weight_decay'?",
    ),
    ("loss: torch.nn.CrossEntropyLoss", "4:7: loss: unknown loss 'torch.nn.CrossEntropyLoss'; write CrossEntropyLoss"),
    ("optimizer: {SGD: {lr: 0.1}}", "5:12: optimizer: no optimizer is named; write {name: SGD, ...} with the argum"),
    ("optimizer: {name: SGD, learning_rate: 1}", "5:24: optimizer: SGD has no argument 'learning_rate'; it is called"),
    ("optimizer: {name: SGD, epochs: 1}", "5:24: optimizer: SGD has no argument 'epochs'; it stands at the top lev"),
    ("optimizer: {name: SGD, grad_clip: 1}", "5:24: optimizer: SGD has no argument 'grad_clip'; it stands at the top"),
    (
        "optimizer: {name: SGD, groups: [{match: a, learning_rate: 1}]}",
        "5:44: optimizer.groups.0: SGD has no argument 'learning_rate'; it is called 'lr' here",
    ),
    ("data: {name: garments, transforms: []}", "3:24: data: garments has no argument 'transforms'; it is called 'aug"),
    ("optimizer: {name: SGD, lr: '0.1'}", "5:28: optimizer.lr: the text '0.1' is not a number; write it without quo"),
    ("optimizer: {name: SGD, lr: '0,1'}", "5:28: optimizer.lr: the text '0,1' is not a number; write 0.1"),
    (
        "optimizer: {name: SGD, nesterov: yes}",
        "5:34: optimizer.nesterov: the text 'yes' is not true or false; wri",
    ),
    ("optimizer: {name: SGD, no_decay: norm_and_bais}", "5:34: optimizer.no_decay: the text 'norm_and_bais' is not no"),
    ("optimizer: {name: SGD, no_decay: [norm_and_bias]}", "5:34: optimizer.no_decay: norm_and_bias stands alone"),
    ("optimizer: {name: SGD, layer_decay: 1.5}", "5:37: optimizer.layer_decay: 1.5 is above 1; give a factor such"),
    ("scheduler: {name: StepLR, step_size: 3, by: batch}", "8:45: scheduler.by: the text 'batch' is not one of step"),
    (
        "scheduler: {name: StepLR, step_size: 3, monitor: val/loss}",
        "8:50: scheduler.monitor: StepLR watches no metric; only ReduceLROnPlateau does",
    ),
    (
        "scheduler: {name: StepLR, step_size: 3, schedulers: [StepLR]}",
        "8:53: scheduler.schedulers: StepLR has no parts; SequentialLR and ChainedScheduler have",
    ),
]


TOPS = ("epochs", "model", "data", "loss", "optimizer")


@pytest.mark.parametrize(("line", "message"), LINES, ids=[line for line, _ in LINES])
def test_a_mistake_is_told_with_place_key_and_remedy(line, message):
    top = line.partition(":")[0]
    if top in TOPS:
        kept = BASE.splitlines()[:4] + ["optimizer: {name: SGD}"]
        text = "\n".join(line if known == top else old for known, old in zip(TOPS, kept, strict=True))
    else:
        text = BASE + line
    messages = told(text)
    assert any(found.startswith(f"r.yaml:{message}") for found in messages), messages
    assert len(messages) == 1 or "needs the argument" in "".join(messages), messages


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("{name: SequentialLR}", "SequentialLR needs schedulers: a list of its parts"),
        ("{name: SequentialLR, schedulers: []}", "SequentialLR needs at least one scheduler"),
        (
            "{name: SequentialLR, milestones: [1, 2], schedulers: [StepLR, StepLR]}",
            "2 milestones for 2 schedulers; give one fewer, 1",
        ),
        (
            "{name: ChainedScheduler, schedulers: [OneCycleLR, StepLR]}",
            "OneCycleLR usually goes by step and StepLR by epoch; give by: step or by: epoch",
        ),
        (
            "{name: ChainedScheduler, by: step, schedulers: [{name: StepLR, by: epoch}]}",
            "schedulers.0.by: epoch differs from the step of the scheduler around it",
        ),
        ("{name: ReduceLROnPlateau, by: step}", "watches val/loss, which is known once an epoch; leave by out"),
        (
            "{name: ReduceLROnPlateau, monitor: val/accuracy}",
            "monitor: mode min would take the worst val/accuracy for the best; give mode: max",
        ),
        (
            "{name: ReduceLROnPlateau, mode: max}",
            "scheduler.mode: mode max would take the worst val/loss for the best; give mode: min",
        ),
        (
            "{name: ChainedScheduler, schedulers: [ReduceLROnPlateau, {name: ReduceLROnPlateau, monitor: train/loss}],"
            " monitor: val/loss}",
            "its parts watch val/loss and train/loss; one metric can be watched",
        ),
    ],
)
def test_schedulers_that_do_not_fit_together_are_told(scheduler, message):
    (found,) = told(f"{BASE}scheduler: {scheduler}", registries={})
    assert message in found


@pytest.mark.parametrize(
    ("scheduler", "by", "monitor"),
    [
        ("StepLR", "epoch", None),
        ("{name: StepLR, by: step}", "step", None),
        ("OneCycleLR", "step", None),
        ("CyclicLR", "step", None),
        ("ReduceLROnPlateau", "epoch", "val/loss"),
        ("{name: ReduceLROnPlateau, mode: max, monitor: val/accuracy}", "epoch", "val/accuracy"),
        ("{name: SequentialLR, milestones: [2], schedulers: [LinearLR, ReduceLROnPlateau]}", "epoch", "val/loss"),
        ("{name: ChainedScheduler, schedulers: [OneCycleLR, CyclicLR]}", "step", None),
        ("{import: my.module:Scheduler}", "epoch", None),
    ],
)
def test_what_a_scheduler_counts_and_watches_is_settled(scheduler, by, monitor):
    section = read(f"{BASE}scheduler: {scheduler}", registries={}).scheduler
    assert (section.by, section.monitor) == (by, monitor)
    assert all(child.by == by for child in section.children)


def test_the_usual_units_are_those_of_the_registry():
    from surefoot.schedules import SCHEDULERS

    assert tuple(sorted(e.name for e in SCHEDULERS if e.facts["by"] == "step")) == tuple(sorted(BY_STEP))


def test_what_is_watched_is_measured():
    text = BASE + "metrics: []\nearly_stopping: {monitor: val/accuracy}\ncheckpoint: {keep_best: val/accuracy}"
    assert told(text) == [
        "r.yaml:9:27: early_stopping.monitor: val/accuracy is not measured; add accuracy to metrics",
        "r.yaml:10:25: checkpoint.keep_best: val/accuracy is not measured; add accuracy to metrics",
    ]


def test_a_long_text_is_told_shortened():
    text = BASE + f"{'k' * 900}: 1\nprecision: {'x' * 100_000}\n"
    messages = told(text, f"model={'y' * 100_000}", f"optimizer.{'z' * 100_000}=1")
    assert len(messages) == 4 and all(len(message) < 800 for message in messages)


def test_modes_follow_the_metric():
    text = BASE + "early_stopping: {monitor: val/accuracy}\ncheckpoint: {keep_best: train/loss}"
    recipe = read(text)
    assert recipe.early_stopping.mode == "max" and recipe.checkpoint.mode == "min"


def test_an_unfreezing_that_never_comes_is_told():
    (message,) = told(BASE + "freeze: a.*\nunfreeze: [{epoch: 3, match: a.*}]")
    assert message.endswith("epoch 3 never comes: epochs are counted from 0 and the run has 3")


def test_an_imported_part_takes_any_arguments_even_one_called_name():
    recipe = read(BASE.replace("LeNet5", "{import: torchvision.models:get_model, name: resnet18, progress: null}"))
    assert recipe.model.part.imported and recipe.model.part.name == "torchvision.models:get_model"
    assert recipe.model.part.args == {"name": "resnet18", "progress": None}
    assert parse_recipe(recipe.to_yaml(), registries=FAKES) == recipe


def test_a_weighted_sum_is_a_list_of_losses():
    recipe = read(BASE.replace("loss: CrossEntropyLoss", "loss: [CrossEntropyLoss, {import: a:b, factor: 0.5}]"))
    assert [(term.part.name, term.factor) for term in recipe.loss] == [("CrossEntropyLoss", 1.0), ("a:b", 0.5)]
    assert [term.part.path for term in recipe.loss] == ["loss.0", "loss.1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1:1: the recipe is empty; `surefoot list recipes` shows some to begin with"),
        ("# only this\n", "r.yaml:1:1: the recipe is empty"),
        ("- epochs: 1", "r.yaml:1:1: a list stands where the recipe's keys were expected; write 'epochs: 10'"),
        ("epochs=1", "r.yaml:1:1: the text 'epochs=1' stands where the recipe's keys were expected"),
        ("!!python/object:x {}", "r.yaml:1:1: the tag '!!python/object:x' is not supported"),
        ("a: [", "r.yaml:1:5: not valid YAML"),
    ],
)
def test_what_is_no_recipe_at_all_is_one_message(text, message):
    (found,) = told(text)
    assert found.startswith(message)


def test_a_mistake_under_an_anchor_is_told_once():
    text = BASE.replace("LeNet5", "{name: LeNet5, classes: &n !bad 3}") + "  momentum: *n\n"
    (message,) = told(text)
    assert message.startswith("r.yaml:2:32: the tag '!bad'")


def test_a_recipe_cannot_change_and_is_hashable():
    recipe = read(BASE, "model={import: a:b, x: [1, {y: 2}]}")
    assert isinstance(recipe.model.part.args["x"][1], Frozen) and hash(recipe) == hash(copy.deepcopy(recipe))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 4
    with pytest.raises(TypeError):
        recipe.model.part.args["x"] = 1
    arguments = recipe.model.part.arguments()
    arguments["x"].append(3)
    assert recipe.model.part.args["x"] == (1, {"y": 2})


def test_a_recipe_survives_pickling_and_copying():
    recipe = read()
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


def test_the_dump_holds_every_default_and_loads_back_equal():
    recipe = read(BASE + "scheduler: {name: StepLR, step_size: 2}\nema: {}\n")
    text = recipe.to_yaml()
    again = parse_recipe(text, "elsewhere.yaml", registries=FAKES)
    assert again == recipe and again.digest() == recipe.digest() and again.to_yaml() == text
    for key in ("seed: 0", "grad_accum_steps: 1", "shuffle: true", "by: epoch", "decay: 0.999", "keep_last: 3"):
        assert key in text


@pytest.mark.parametrize(
    "text", ["1e-3", "no", "012", "0o7", "null", "~", "1:30", "", " a ", "a: b", "#", "\n", "é\u2028"]
)
def test_texts_that_look_like_other_values_are_quoted_in_the_dump(text):
    import yaml

    model = dataclasses.replace(read().model, part=Part("LeNet5", Frozen({"x": text})))
    recipe = dataclasses.replace(read(), model=model)
    dumped = recipe.to_yaml()
    assert parse_recipe(dumped, registries={}).model.part.args["x"] == text
    assert yaml.safe_load(dumped)["model"]["x"] == text


def test_the_dump_means_the_same_to_a_reader_of_yaml_1_1():
    import yaml

    recipe = read(BASE, "optimizer.lr=1e-05", "max_grad_norm=1e300", "model={import: a:b, x: 1e22}")
    assert yaml.safe_load(recipe.to_yaml()) == recipe.plain()


def test_the_digest_is_of_what_a_recipe_says_not_of_how():
    same = "# a comment\nname: r\noptimizer: {lr: 1e-1, name: SGD}\nseed: 0\n" + BASE.partition("optimizer")[0]
    assert read(same).digest() == read().digest()
    assert read(BASE, "optimizer.lr=0.2").digest() != read().digest()
    assert len(read().digest()) == 64


def test_a_file_is_read_and_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(BASE.replace("lr: 0.1", "lr: x"))
    with pytest.raises(Problems, match=r"^mine.yaml:7:7: optimizer.lr: "):
        load_recipe("mine.yaml", registries=FAKES)
    recipe = load_recipe("mine.yaml", ["optimizer.lr=1"], registries=FAKES)
    assert recipe.name == "mine" and recipe.source == "mine.yaml"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("quickstrat", "no packaged recipe 'quickstrat'; did you mean 'quickstart'? packaged are: fashion_mnist"),
        ("mien.yaml", "mien.yaml: no such file; did you mean 'mine.yaml'?"),
        ("mine", "no packaged recipe 'mine'; for the file, give mine.yaml"),
        ("quickstart.yaml", "quickstart.yaml: no such file; the packaged recipe is called quickstart"),
        ("no/where.yaml", "no/where.yaml: no such file; a packaged recipe goes by its name: fashion_mnist"),
        ("folder", "folder: this is a directory; give the recipe file in it"),
        ("latin.yaml", "latin.yaml:1:7: byte 0xe9 is not UTF-8"),
        ("huge.yaml", "huge.yaml: larger than 1 MiB, which no recipe is"),
        ("nul\0.yaml", "nul"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_message(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(BASE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    (tmp_path / "huge.yaml").write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(UsageError) as caught:
        load_recipe(source, registries=FAKES)
    assert str(caught.value).startswith(message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_message(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(BASE)
    path.chmod(0)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        load_recipe(path, registries=FAKES)


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_recipes_say_what_they_are_for_and_are_right(name):
    assert len(packaged_summary(name)) > 20
    recipe = load_recipe(name)
    assert recipe.name == name and parse_recipe(recipe.to_yaml()) == recipe


def test_real_catalogues_find_what_they_know():
    text = BASE + "lint_off: [broadcats]\nscheduler: {name: LambdaLR, lr_lambda: {import: 'm:f'}}\n"
    messages = told(text, "loss.weight=balanced", "optimizer.betas=[0.1, 2]", registries=None)
    assert messages[0] == "r.yaml:8:12: lint_off.0: unknown check 'broadcats'; did you mean 'broadcast'?"
    assert len(messages) == 2 and "SGD has no argument 'betas'" in messages[1]


def test_the_three_packaged_recipes_are_there():
    assert set(packaged_names()) >= {"quickstart", "fashion_mnist", "fashion_mnist_best"}


def test_reading_a_recipe_needs_no_torch():
    code = (
        "import sys; from surefoot.recipe import load_recipe, json_schema\n"
        "load_recipe('quickstart', ['epochs=1'], registries={}); json_schema({})\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", packaged_names())
def test_what_differs_from_the_defaults_is_the_same_recipe_and_shorter(name):
    recipe = load_recipe(name)
    assert parse_recipe(recipe.brief_yaml()) == recipe
    assert len(recipe.brief_yaml()) < len(recipe.to_yaml()) / 1.5

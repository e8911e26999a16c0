"""Whatever the text, a recipe is read or refused with a UsageError; and what is read, its dump gives back."""

from __future__ import annotations

import math

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.recipe import load_recipe, parse_recipe
from surefoot.recipe.check import better
from surefoot.recipe.dump import to_yaml

# The characters that YAML can hold, the awkward ones often.
CHARACTERS = st.one_of(
    st.sampled_from("\t\n\r :#&*!|>'\"%@`-?[]{},~=<.0123456789eE+xnotrue\x85\u2028\u2029\ufeff\\é✓：，、“”（）【】"),
    st.characters(blacklist_categories=("Cs",)),
)
TEXTS = st.text(CHARACTERS, min_size=0, max_size=12)
NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
RATES = st.floats(0, 1, exclude_min=True)
COUNTS = st.integers(1, 10**9)
PATTERNS = st.lists(st.text(CHARACTERS, min_size=1, max_size=8), min_size=1, max_size=3)

# Keys that a section lifts out of its part's arguments, or that name the part.
RESERVED = {
    *(
        "name",
        "import",
        "batch_size",
        "eval_batch_size",
        "shuffle",
        "drop_last",
        "weights",
        "num_samples",
        "workers",
        "normalize",
        "augment",
    ),
    *("factor", "groups", "no_decay", "layer_decay", "by", "monitor", "schedulers", "mode", "milestones"),
}
ARGUMENTS = st.dictionaries(TEXTS.filter(lambda t: t not in RESERVED), VALUES, max_size=3)
PART_NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda t: t.lower() not in ("none", "nil", "no", "off", "false", "true", "null", "auto")
)


NOTHING = st.just({})


@st.composite
def parts(draw, extra=NOTHING):
    named = draw(st.one_of(PART_NAMES.map(lambda n: {"name": n}), st.just({"import": "pkg.mod:Name"})))
    return {**named, **draw(ARGUMENTS), **draw(extra)}


def optional(**keys):
    return st.fixed_dictionaries({}, optional=keys)


def modes(key):
    """A section that watches a metric, in the mode that makes sense of it."""
    return st.sampled_from(("val/loss", "val/accuracy", "train/loss", "train/accuracy")).map(
        lambda metric: {key: metric, "mode": better(metric)}
    )


DATA = optional(
    batch_size=COUNTS,
    eval_batch_size=st.none() | COUNTS,
    shuffle=st.booleans(),
    workers=st.integers(0, 64),
    normalize=st.one_of(st.none(), st.just("auto"), st.fixed_dictionaries({"mean": RATES, "std": RATES})),
    augment=st.lists(parts(), max_size=2),
)
GROUPS = st.lists(
    st.fixed_dictionaries({"match": PATTERNS}, optional={"lr": RATES, "name": TEXTS.filter(bool)}), max_size=2
)
OPTIMIZER = optional(
    groups=GROUPS, no_decay=st.sampled_from([None, "norm_and_bias", "*.bias", ["a", "b"]]), layer_decay=RATES
)
SCHEDULER = optional(by=st.sampled_from(["step", "epoch"]))
RECIPES = st.fixed_dictionaries(
    {
        "epochs": st.integers(10, 10**6),
        "model": parts(),
        "data": parts(DATA),
        "loss": st.one_of(
            parts(), st.lists(parts(optional(factor=NUMBERS.filter(math.isfinite))), min_size=1, max_size=3)
        ),
        "optimizer": parts(OPTIMIZER),
    },
    optional={
        "name": st.from_regex(
            r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]{0,20}", fullmatch=True
        ),
        "seed": st.integers(0, 2**63 - 1),
        "scheduler": st.none() | parts(SCHEDULER),
        "warmup": st.none() | parts(SCHEDULER),
        "max_grad_norm": st.none() | RATES,
        "precision": st.sampled_from(["float32", "bf16", "fp16"]),
        "ema": st.none() | optional(decay=st.floats(0, 0.999)),
        "freeze": PATTERNS,
        "early_stopping": st.none() | modes("monitor"),
        "checkpoint": st.none() | modes("keep_best"),
        "execution": st.just("auto")
        | optional(threads=st.integers(1, 4096), onednn=st.booleans(), memory_format=st.just("contiguous")),
        "log_every": st.none() | COUNTS,
        "strict": st.booleans(),
    },
)


OWN = {"import": "pkg.mod:Name"}


@given(RECIPES)
@example({"epochs": 10, "model": OWN, "data": OWN, "loss": OWN, "optimizer": {"name": "SGD", "：": {}}})
def test_what_is_read_is_dumped_and_read_back_equal(given_recipe):
    recipe = parse_recipe(to_yaml(given_recipe), "r.yaml", registries={})
    again = parse_recipe(recipe.to_yaml(), "other.yaml", registries={})
    assert again == recipe and hash(again) == hash(recipe)
    assert again.digest() == recipe.digest() and again.to_yaml() == recipe.to_yaml()
    assert yaml.safe_load(recipe.to_yaml()) == recipe.plain()
    for key in ("epochs", "precision", "strict"):
        assert getattr(recipe, key) == given_recipe.get(key, getattr(recipe, key))
    model = dict(given_recipe["model"])
    assert recipe.model.part.name == (model.pop("name", None) or model.pop("import"))
    assert recipe.model.part.arguments() == model


def readable(text: str, *overrides: str) -> bool:
    """Whether a text is a recipe; anything but a UsageError comes through."""
    try:
        recipe = parse_recipe(text, "r.yaml", overrides, registries={})
    except UsageError as error:
        assert str(error) and "\n\n" not in str(error)
        return False
    assert parse_recipe(recipe.to_yaml(), registries={}) == recipe
    return True


QUICKSTART = load_recipe("quickstart", registries={}).to_yaml()


@given(st.data())
def test_a_mutated_recipe_is_read_or_refused_never_more(data):
    text = QUICKSTART
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(TEXTS) + text[at + cut :]
    readable(text)


@given(st.data())
def test_any_value_in_any_place_is_read_or_refused_never_more(data):
    plain = yaml.safe_load(QUICKSTART)
    here = plain
    while True:
        key = data.draw(st.sampled_from(sorted(here)) | TEXTS)
        if not isinstance(here.get(key), dict) or data.draw(st.booleans()):
            break
        here = here[key]
    here[key] = data.draw(VALUES)
    readable(to_yaml(plain))


@given(st.text(CHARACTERS, max_size=60))
def test_any_text_is_read_or_refused_never_more(text):
    assert not readable(text)


PATHS = st.sampled_from(
    ["epochs", "optimizer", "optimizer.lr", "optimizer.groups", "model", "model.x", "scheduler.by", "data.normalize"]
    + ["data.augment", "loss.factor", "loss.0", "execution.threads", "checkpoint.every", "a.b.c", "freeze", "unfreeze"]
)


@given(st.lists(st.tuples(PATHS | TEXTS, TEXTS).map("=".join), min_size=1, max_size=3))
def test_any_override_is_taken_or_refused_never_more(overrides):
    readable(QUICKSTART, *overrides)

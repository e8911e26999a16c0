"""Keys as other tools call them, or in another section than they are looked for: where they belong here."""

from __future__ import annotations

from collections.abc import Collection

from ..registry import did_you_mean
from .mappings import Section, innermost
from .model import Recipe
from .sections import keys_of

# What other tools call a key, for those who come from there.
ALIASES = {
    alias: key
    for key, aliases in {
        "optimizer": "optim",
        "optimizer.lr": "learning_rate lr",
        "optimizer.momentum": "momentum",
        "optimizer.weight_decay": "weight_decay",
        "epochs": "num_epochs n_epochs max_epochs num_train_epochs",
        "data": "dataset dataloader",
        "data.batch_size": "batch",
        "data.eval_batch_size": "val_batch_size",
        "data.workers": "num_workers",
        "data.augment": "transforms",
        "model": "net network architecture",
        "loss": "criterion loss_fn",
        "scheduler": "lr_scheduler sched",
        "warmup": "lr_warmup",
        "grad_accum_steps": "gradient_accumulation_steps accumulate_grad_batches accumulation_steps",
        "max_grad_norm": "gradient_clip_val grad_clip clip_grad_norm",
        "clip_value": "clip_grad_value",
        "precision": "amp mixed_precision dtype",
        "seed": "random_seed",
        "checkpoint.every": "save_every",
        "log_every": "log_interval log_every_n_steps",
    }.items()
    for alias in aliases.split()
}


def elsewhere(name: str, path: str, keys: Collection[str]) -> str:
    """Where a key that is unknown at `path`, whose keys are `keys`, would belong; "" when that is not clear.

    >>> elsewhere("learning_rate", "optimizer", ["lr"]), elsewhere("batch_size", "", ["data"])
    ("it is called 'lr' here", "it belongs under 'data'")
    """
    section, _, key = ALIASES.get(name.lower(), "").rpartition(".")
    if key in keys and (section in ("", path) or path.startswith(f"{section}.")):
        return f"it is called {key!r} here"
    if section and section != path:
        return f"it belongs under {section!r}: {section}.{key}"
    if did_you_mean(name, keys):
        return ""
    if path and (name in _TOP or key in _TOP):
        called = f", as {key!r}" if name not in _TOP else ""
        return f"it stands at the top level of the recipe{called}"
    homes = sorted(home for home in _HOMES.get(name, ()) if home != path)
    return "it belongs under " + " or ".join(map(repr, homes)) if homes and not path else ""


def key_called(name: str) -> str | None:
    """The recipe's key, from its top, for `name` as another tool or a flag calls it; None where there is none.

    >>> key_called("epochs"), key_called("batch-size"), key_called("lr"), key_called("gpus")
    ('epochs', 'data.batch_size', 'optimizer.lr', None)
    """
    name = name.lower().replace("-", "_")
    if name.partition(".")[0] in _TOP:
        return name
    homes = _HOMES.get(name, ())
    return ALIASES.get(name) or (f"{min(homes)}.{name}" if len(homes) == 1 else None)


_TOP = frozenset(keys_of(Recipe))
# The top-level keys under which each key of a section stands.
_HOMES: dict[str, set[str]] = {}
for _top, _key in keys_of(Recipe).items():
    if isinstance(_kind := innermost(_key.kind), Section):
        for _name in keys_of(_kind.cls()):
            _HOMES.setdefault(_name, set()).add(_top)

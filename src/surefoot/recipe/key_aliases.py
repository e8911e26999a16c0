"""Keys as other tools call them, or in another section than they are looked for: where they belong here."""

from __future__ import annotations

from collections.abc import Collection

from ..registry import did_you_mean
from .mappings import Section, innermost
from .model import Recipe
from .sections import keys_of

# What other tools call a key, for those who come from there.
ALIASES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "optim": "optimizer",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "dataset": "data",
    "dataloader": "data",
    "net": "model",
    "network": "model",
    "architecture": "model",
    "criterion": "loss",
    "loss_fn": "loss",
    "lr_scheduler": "scheduler",
    "sched": "scheduler",
    "lr_warmup": "warmup",
    "batch": "data.batch_size",
    "val_batch_size": "data.eval_batch_size",
    "num_workers": "data.workers",
    "transforms": "data.augment",
    "gradient_accumulation_steps": "grad_accum_steps",
    "accumulate_grad_batches": "grad_accum_steps",
    "accumulation_steps": "grad_accum_steps",
    "gradient_clip_val": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "clip_grad_value": "clip_value",
    "amp": "precision",
    "mixed_precision": "precision",
    "dtype": "precision",
    "random_seed": "seed",
    "save_every": "checkpoint.every",
    "log_interval": "log_every",
    "log_every_n_steps": "log_every",
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


def _homes() -> dict[str, set[str]]:
    """The top-level keys under which each key of a section stands."""
    homes: dict[str, set[str]] = {}
    for top, key in keys_of(Recipe).items():
        kind = innermost(key.kind)
        if isinstance(kind, Section):
            for name in keys_of(kind.cls()):
                homes.setdefault(name, set()).add(top)
    return homes


_TOP = frozenset(keys_of(Recipe))
_HOMES = _homes()

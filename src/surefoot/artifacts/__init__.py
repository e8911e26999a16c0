"""Models that outlive their code: saved, loaded, exported, imported and opened from any format.

No pickle is ever run: what a file claims is checked before anything of it is used.
"""

from __future__ import annotations

import importlib

_WHERE = {
    "save_model": "model_dir",
    "load_model": "model_dir",
    "ModelInfo": "info",
    "read_info": "model_dir",
    "import_weights": "importing",
    "read_state": "state_files",
    "Imported": "importing",
    "export": "exporting",
    "Exported": "exporting",
    "open_model": "opening",
    "LoadedModel": "opening",
    "read_images": "images",
    "describe_outputs": "answers",
    "shown": "answers",
    "remove_leftovers": "swap",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    # Lazy, because these modules import torch and `surefoot --help` must not.
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

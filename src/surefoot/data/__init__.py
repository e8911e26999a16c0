"""Data: sources of samples, the loader that orders them, and the data sets that Surefoot knows by name."""

from __future__ import annotations

_HOMES = {
    "Loader": "loader",
    "epoch_order": "loader",
    "Source": "sources",
    "TensorSource": "sources",
    "DatasetSource": "sources",
    "as_source": "sources",
    "DataSplits": "splits",
    "DATA": "catalogue",
    "AUGMENTATIONS": "catalogue",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    # These need torch, the catalogues do not: `surefoot list data` shows names without importing it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

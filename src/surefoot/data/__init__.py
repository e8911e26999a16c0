"""Data: sources of samples, the loader that orders them, and the data sets that Surefoot knows by name."""

from __future__ import annotations

from ..lazy import lazily

_HOMES = {
    "registry": "AUGMENTATIONS DATA",
    "loader": "Loader",
    "orders": "epoch_order",
    "sources": "DatasetSource Source TensorSource",
    "conversion": "as_source",
    "streams": "StreamSource",
    "splits": "DataSplits",
    "tables": "table",
}

__all__ = [name for names in _HOMES.values() for name in names.split()]
__getattr__ = lazily(__name__, _HOMES)

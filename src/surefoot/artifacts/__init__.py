"""Models that outlive their code: saved, loaded, exported, imported and opened from any format.

No pickle is ever run: what a file claims is checked before anything of it is used.
"""

from __future__ import annotations

from ..lazy import lazily

_HOMES = {
    "answers": "describe_outputs shown",
    "exporting": "Exported export",
    "images": "files_in read_images",
    "importing": "Imported import_weights",
    "info": "ModelInfo",
    "model_dir": "load_model needs_trust read_info save_model",
    "opening": "LoadedModel open_model",
    "weight_files": "read_state",
    "swap": "remove_directory remove_leftovers",
}

__all__ = [name for names in _HOMES.values() for name in names.split()]
__getattr__ = lazily(__name__, _HOMES)

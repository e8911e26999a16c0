"""Tensors that are spread over ranks: which rows each file of a checkpoint in shards holds, and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..safe_tensors import BadFile
from ..wrapping import rows

if TYPE_CHECKING:
    import torch

Pieces = dict[str, dict[str, Any]]


def file_name(part: str, number: int, shards: int) -> str:
    """The file of `part` (``model.safetensors``) that shard `number` of so many has.

    >>> file_name("model.safetensors", 0, 4), file_name("model.safetensors", 0, 1)
    ('model-00001-of-00004.safetensors', 'model.safetensors')
    """
    stem, _, suffix = part.rpartition(".")
    return part if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"


def cut_of(tensor: Any, path: str) -> dict[str, Any]:
    """How a tensor is spread: its `shape`, the dimension `dim` that it is cut along, and the `sizes` there by rank.

    Raises UsageError for one that is spread otherwise; `path` names it.
    """
    from torch.distributed import get_world_size

    placements, mesh = tensor.placements, tensor.device_mesh
    if len(placements) != 1 or not placements[0].is_shard() or mesh.size() != get_world_size():
        raise UsageError(
            f"{path}: a tensor spread over ranks as {placements} on a mesh of {tuple(mesh.shape)} cannot be saved; "
            "what can is cut along one dimension over all ranks, as fully_shard(model) does"
        )
    dim, shape = placements[0].dim, list(tensor.shape)
    parts = [rows(shape[dim], rank, mesh.size()) for rank in range(mesh.size())]
    return {"shape": shape, "dim": dim, "sizes": [part.stop - part.start for part in parts]}


def joined(paths: Sequence[Path], tables: Sequence[Mapping[str, torch.Tensor]], pieces: Any) -> dict[str, torch.Tensor]:
    """The whole tensors behind the files of all shards. Raises BadFile, naming a file that does not hold its own."""
    import torch

    whole = dict(tables[0])
    if len(tables) == 1:
        return whole
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        if missing := sorted(set(pieces) - set(table)):
            raise BadFile(path, f"lacks its piece of {missing[0][:80]!r}")
        if number and (more := sorted(set(table) - set(pieces))):
            raise BadFile(path, f"holds {more[0][:80]!r}, which is no piece of a tensor")
    for name, cut in pieces.items():
        shape, dim, sizes = cut["shape"], cut["dim"], cut["sizes"]
        for path, table, size in zip(paths, tables, sizes, strict=True):
            expected = [*shape[:dim], size, *shape[dim + 1 :]]
            if list(table[name].shape) != expected or table[name].dtype != tables[0][name].dtype:
                raise BadFile(path, f"holds a piece of {name[:80]!r} of another shape or dtype than its manifest says")
        whole[name] = torch.cat([table[name] for table in tables], dim)
    return whole


def are_valid(pieces: Any, shards: int) -> bool:
    """Whether a manifest's `pieces` are such as `cut_of` gives, for so many shards."""
    if not isinstance(pieces, dict):
        return False
    for cut in pieces.values():
        if not isinstance(cut, dict) or set(cut) != {"shape", "dim", "sizes"}:
            return False
        shape, dim, sizes = cut["shape"], cut["dim"], cut["sizes"]
        numbers = [*shape, *sizes] if isinstance(shape, list) and isinstance(sizes, list) else [-1]
        if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or type(dim) is not int:
            return False
        if not 0 <= dim < len(shape) or len(sizes) != shards or sum(sizes) != shape[dim]:
            return False
    return True

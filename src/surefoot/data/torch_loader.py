"""A DataLoader of torch's taken over: its data set, sampler, batches and workers as those of a Loader."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, default_collate

from ..errors import UsageError
from .conversion import as_source
from .loader import Loader
from .sources import DatasetSource
from .streams import StreamSource, is_stream


def loader_of(torch_loader: DataLoader[Any], seed: int, say: Callable[[str], None] = lambda text: None) -> Loader:
    """A Loader with the samples and batches that a DataLoader means.

    Their order depends on `seed` and epoch, so that it can be gone on with exactly, and not on the DataLoader's own
    generator. `say` receives a message meant for the user. Raises UsageError for what cannot be taken over.
    """
    dataset, stream, made = torch_loader.dataset, is_stream(torch_loader.dataset), torch_loader.batch_sampler
    if torch_loader.worker_init_fn is not None:
        if stream:
            raise UsageError(
                "data: the DataLoader's worker_init_fn is not called; divide the stream among workers in its __iter__, "
                "by torch.utils.data.get_worker_info()"
            )
        say("data: the DataLoader's worker_init_fn is not called: each sample has random numbers of its own")
    convert = torch_loader.collate_fn
    if made is None:  # each sample is a batch
        convert = functools.partial(_only, convert)
    kind = StreamSource if stream else DatasetSource
    source = as_source(dataset) if convert is default_collate else kind(dataset, collate=convert)
    reading: dict[str, Any] = {"seed": seed, "workers": torch_loader.num_workers}
    if stream:
        return Loader(source, torch_loader.batch_size or 1, drop_last=torch_loader.drop_last, **reading)
    say(
        f"data: the DataLoader is read as a Loader: its samples and batches, in an order from seed {seed} and the epoch"
    )
    if type(made) is BatchSampler:
        return Loader(source, made.batch_size, sampler=made.sampler, drop_last=made.drop_last, **reading)
    return Loader(source, 1, sampler=torch_loader.sampler if made is None else made, **reading)


def _only(convert: Callable[[Any], Any], samples: list[Any]) -> Any:
    (sample,) = samples
    return convert(sample)

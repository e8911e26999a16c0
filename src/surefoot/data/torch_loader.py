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
    if is_stream(torch_loader.dataset):
        if torch_loader.worker_init_fn is not None:
            raise UsageError(
                "data: the DataLoader's worker_init_fn is not called; divide the stream among workers in its __iter__, "
                "by torch.utils.data.get_worker_info()"
            )
        alone = torch_loader.batch_size is None
        convert = functools.partial(_only, torch_loader.collate_fn) if alone else torch_loader.collate_fn
        stream = (
            as_source(torch_loader.dataset)
            if convert is default_collate
            else StreamSource(torch_loader.dataset, collate=convert)
        )
        size = 1 if torch_loader.batch_size is None else torch_loader.batch_size
        return Loader(stream, size, seed=seed, drop_last=torch_loader.drop_last, workers=torch_loader.num_workers)
    if torch_loader.worker_init_fn is not None:
        say("data: the DataLoader's worker_init_fn is not called: each sample has random numbers of its own")
    if torch_loader.batch_sampler is None:  # each sample is a batch
        source: Any = DatasetSource(torch_loader.dataset, collate=functools.partial(_only, torch_loader.collate_fn))
        batches: dict[str, Any] = {"batch_size": 1, "sampler": torch_loader.sampler}
    else:
        collates = torch_loader.collate_fn is not default_collate
        source = (
            DatasetSource(torch_loader.dataset, collate=torch_loader.collate_fn)
            if collates
            else as_source(torch_loader.dataset)
        )
        made: Any = torch_loader.batch_sampler
        batches = {"batch_size": 1, "sampler": made}
        if type(made) is BatchSampler:
            batches = {"batch_size": made.batch_size, "sampler": made.sampler, "drop_last": made.drop_last}
    say(
        f"data: the DataLoader is read as a Loader: its samples and batches, in an order from seed {seed} and the epoch"
    )
    return Loader(source, **batches, seed=seed, workers=torch_loader.num_workers)


def _only(convert: Callable[[Any], Any], samples: list[Any]) -> Any:
    (sample,) = samples
    return convert(sample)

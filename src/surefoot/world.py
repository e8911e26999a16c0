"""World: the processes of one run, and what they must agree on; for a process alone every verb is the identity."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

from .asking import Asking
from .errors import RankFailed, SurefootError, UsageError, first_line
from .other_ranks import OtherRanks
from .process_group import as_bytes, gather_bytes, make_process_group
from .rank_errors import described, process_place, raised_as
from .shared_memory import SharedMemory, add_in_pairs
from .text import counted
from .torch_compat import default_store, gather_single

T = TypeVar("T")

TIMEOUT_S = 600.0
_LEAVING_S = 10.0
# Below so many numbers a sum is made of all that each rank has.
_SMALL_SUM = 1 << 12
_joins = 0


class World:
    """A process alone: rank 0 of 1. `World.join()` gives the same verbs over the processes that torchrun started.

    Every rank calls the same verbs in the same order, from its main thread. As a context manager it leaves at the end,
    and an error of one rank reaches all.

    >>> world = World.alone()
    >>> world.rank, world.size, world.share(10), world.gather("x"), world.agree(lambda: 3, on=0)
    (0, 1, slice(0, 10, None), ['x'], 3)
    """

    rank = 0
    size = 1
    local_rank = 0
    # What DDP reduces gradients over; None for a process alone.
    group: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls) -> World:
        """The world of one process."""
        return World()

    @classmethod
    def here(cls, timeout: float = TIMEOUT_S) -> World:
        """As this process was started: joined under torchrun or where a process group is there already, else alone."""
        started = int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1
        grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return cls.join(timeout) if grouped or started > 1 else cls.alone()

    @classmethod
    def only(cls, world: World | None) -> World:
        """`world`, or alone for None. Raises UsageError where this process is one of several all the same.

        Also for what is no World: an object to be saved that a Checkpointer was given by this name.
        """
        if world is not None and not isinstance(world, World):
            raise UsageError(
                f"world: a {type(world).__name__} was given; it is the processes of a run (surefoot.World.join()), and "
                "an object to be saved needs another name"
            )
        if world is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UsageError(
                f"world: this is rank {dist.get_rank()} of {dist.get_world_size()}, and each would train for itself; "
                "give world=surefoot.World.join()"
            )
        return cls.alone() if world is None else world

    @classmethod
    def join(cls, timeout: float = TIMEOUT_S) -> World:
        """Meet the other ranks, by torchrun's environment, or over torch's process group where it was made before.

        A rank that does not answer for `timeout` seconds ends the others. Raises UsageError without torchrun.
        """
        global _joins
        _joins += 1
        wait = timedelta(seconds=timeout)
        mine = not dist.is_initialized()
        if mine:
            make_process_group(wait, f"surefoot-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{_joins}")
        return _Ranks(timeout, leaves_group=mine)

    @property
    def device(self) -> torch.device:
        """The device of this rank: its own GPU where there are GPUs, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.local_rank >= (here := torch.cuda.device_count()):
            raise UsageError(
                f"rank {self.rank}: is number {self.local_rank + 1} on a machine with {counted(here, 'GPU')}; start "
                "fewer, or set LOCAL_RANK=0 where each process sees no GPU but its own"
            )
        return torch.device("cuda", self.local_rank)

    def share(self, n: int) -> slice:
        """Which of `n` rows are this rank's: each row is one rank's, in rank order; empty where there are too few."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather(self, plain: T) -> list[T]:
        """What each rank gave, in rank order: small values that JSON holds."""
        return [plain]

    def agree(self, act: Callable[[], T], on: int | str = "all") -> T:
        """Do `act` on every rank, or only on rank `on`, and go on only where it succeeded: an error is everybody's.

        Returns what this rank's `act` did, or with `on` what that rank's did, which must be plain (`gather`). An error
        names its rank: a UsageError stays one, all others are `RankFailed` on the ranks that did not raise them.
        """
        return act()

    def first(self, act: Callable[[], object]) -> None:
        """Do `act` on rank 0 alone; what it returns stays there, its error is everybody's."""

        def acted() -> None:
            act()

        self.agree(acted, on=0)

    def ask(self, word: Sequence[int]) -> Sequence[int]:
        """The largest that any rank has lately said, number by number; zeros while there is no answer yet.

        For between two steps: it costs next to nothing, since an answer is fetched some steps after its question. Say
        what holds until it has been answered (a stop was requested), not what has just happened.
        """
        return word

    def ask_anew(self) -> None:
        """Forget a question that is not answered yet: it was another run's in these processes."""

    @property
    def shares_memory(self) -> bool:
        """Whether all ranks are on one machine, and add and gather tensors on the CPU in memory that they share.

        For all ranks to ask at once.
        """
        return False

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and dtype, in rank order."""
        return self._begin_gathering(tensor)()

    def _begin_gathering(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        return lambda: [tensor]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks as a new tensor, added in pairs of neighbours: the same bits on every rank."""
        return add_in_pairs(self.gathered(tensor))

    def take_from_first(self, flat: Tensor) -> None:
        """Write rank 0's numbers over those of a flat tensor."""

    def gather_into(self, whole: Tensor, own: Tensor) -> None:
        """Write the flat tensors of all ranks, in rank order, over one, of which `own` may be a part."""
        whole.copy_(own)

    def exchanged(self, tensor: Tensor, sizes: Sequence[int], theirs: Sequence[int]) -> Tensor:
        """What all ranks have for this one, in rank order: `sizes` numbers of a tensor go to each, `theirs` come."""
        return tensor

    def sum_of_parts(self, tensor: Tensor) -> Tensor:
        """Of a flat tensor with as many numbers for each rank: this rank's part of `sum`, which is not made whole."""
        return tensor

    def begin_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to add small tensors of all ranks; what is returned gives the sum, and waits for it."""
        gathered = self._begin_gathering(tensor)
        return lambda: add_in_pairs(gathered())

    def wait(self, works: Iterable[dist.Work]) -> None:
        """Wait for what was begun; where a rank cannot be reached any more, all raise RankFailed."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` for a loop of one's own: in DistributedDataParallel, whose gradients are the mean over ranks.

        They are added as `sum` does. By itself DDP adds them in the order of its buckets, which is another in the first
        step of a process: from three ranks on, a resumed run would not end as one that was never stopped.
        """
        return model

    def post(self, key: str, plain: Any) -> None:
        """Leave a small plain value for rank 0's `posted`, from any thread."""

    def posted(self, key: str, rank: int, given_up: Callable[[], bool]) -> Any:
        """What `rank` has posted under `key`, once it has; from any thread, and once.

        Raises RankFailed where that rank has ended, or where `given_up` says that it is not waited for any longer.
        """

    def leave(self) -> None:
        """Part from the other ranks, once all have come here; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.leave()


class _Ranks(World):
    """The verbs over torch's process groups; plain values go over a gloo group of their own."""

    def __init__(self, timeout: float, leaves_group: bool):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.group: Any = dist.group.WORLD  # each version of torch types it otherwise
        self._leaves_group = leaves_group
        self._side: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._common: BaseException | None = None  # an error that the other ranks know of
        self._broken: RankFailed | None = None
        self._asking = Asking(self._begin_asking, self.rank == 0)
        self._left = False
        # One that was made for GPUs alone has nothing that takes tensors on the CPU.
        self._for_cpu = self.group if "cpu:" in dist.get_backend_config() else self._side
        places = self.gather(process_place())
        here = {rank: pid for rank, (machine, pid) in enumerate(places) if machine == places[self.rank][0]}
        store = c10d.PrefixStore(f"surefoot-{_joins}", store) if (store := default_store()) is not None else None
        self._others = OtherRanks(self.rank, self.size, here, store, timeout)

    # ------------------------------------------------------------------------------------------ verbs

    def gather(self, plain: T) -> list[T]:
        data = json.dumps(plain).encode()
        with self._reaching():
            values: list[T] = list(map(json.loads, gather_bytes(data, self._side)))
        return values

    def agree(self, act: Callable[[], T], on: int | str = "all") -> T:
        result: Any = None
        error: Exception | None = None
        report: dict[str, Any] = {}
        if on in ("all", self.rank):
            try:
                result = act()
                if on != "all":
                    report = {"result": result}
                    json.dumps(report)
            except Exception as raised:
                error, report = raised, {"error": described(raised)}
        reports = self.gather(report)
        errors = {rank: report["error"] for rank, report in enumerate(reports) if "error" in report}
        if not errors:
            agreed: T = result if on == "all" else reports[int(on)]["result"]
            return agreed
        if error is not None and (
            not isinstance(error, SurefootError) or errors == dict.fromkeys(range(self.size), described(error))
        ):
            self._common = error
            if isinstance(error, SurefootError):
                error.everybodys = True
            raise error
        first = min(errors)
        self._common = failure = raised_as(first, errors[first])
        failure.everybodys = True
        raise failure from error

    def ask(self, word: Sequence[int]) -> Sequence[int]:
        return self._asking.ask(word)

    def ask_anew(self) -> None:
        self._asking.anew()

    def _begin_asking(self, numbers: list[int]) -> Callable[[], list[int]]:
        if (memory := self._memory) is not None:
            question = memory.ask(numbers, self._others.watch)
        else:
            tensor = torch.tensor(numbers, device="cpu")
            with self._reaching():
                work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._side, async_op=True)
            assert work is not None

        def answer() -> list[int]:
            with self._reaching():
                if memory is not None:
                    return question()
                work.wait()
            largest: list[int] = tensor.tolist()
            return largest

        return answer

    def wait(self, works: Iterable[dist.Work]) -> None:
        with self._reaching():
            for work in works:
                work.wait()

    @property
    def shares_memory(self) -> bool:
        return self._memory is not None

    @cached_property
    def _memory(self) -> SharedMemory | None:
        """Made when all ranks first ask for it."""
        return SharedMemory.join(self.rank, self.size, self.gather) if self._others.on_one_machine else None

    def _memory_for(self, tensor: Tensor) -> SharedMemory | None:
        return self._memory if tensor.device.type == "cpu" else None

    def _group_for(self, tensor: Tensor) -> Any:
        return self._for_cpu if tensor.device.type == "cpu" else self.group

    def take_from_first(self, flat: Tensor) -> None:
        with self._reaching():
            if (memory := self._memory_for(flat)) is not None:
                memory.take_from_first(flat, self._others.watch)
            else:
                dist.broadcast(as_bytes(flat), src=0, group=self._group_for(flat))

    def _begin_gathering(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        tensor = tensor.detach().contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._reaching():
            group = self._group_for(tensor)
            work = dist.all_gather(list(map(as_bytes, parts)), as_bytes(tensor), group=group, async_op=True)

        def gathered() -> list[Tensor]:
            self.wait([work] if work is not None else [])
            return parts

        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        if (memory := self._memory_for(tensor)) is not None:
            with self._reaching():
                return memory.sum(tensor, self._others.watch)
        if tensor.numel() < _SMALL_SUM:
            return super().sum(tensor)
        # Each rank adds its part of the tensor: what is sent does not grow with the number of ranks.
        each = -(-tensor.numel() // self.size)
        whole = tensor.new_zeros(each * self.size)
        whole[: tensor.numel()] = tensor.detach().reshape(-1)
        self.gather_into(whole, self.sum_of_parts(whole))
        return whole[: tensor.numel()].view(tensor.shape)

    def gather_into(self, whole: Tensor, own: Tensor) -> None:
        with self._reaching():
            if (memory := self._memory_for(own)) is not None:
                memory.gather_into(whole, own, self._others.watch)
            else:
                gather_single()(as_bytes(whole), as_bytes(own), group=self._group_for(own))

    def exchanged(self, tensor: Tensor, sizes: Sequence[int], theirs: Sequence[int]) -> Tensor:
        parts = tensor.new_empty(sum(theirs))
        with self._reaching():
            to, away = ([n * tensor.element_size() for n in numbers] for numbers in (theirs, sizes))
            dist.all_to_all_single(as_bytes(parts), as_bytes(tensor), to, away, group=self._group_for(tensor))
        return parts

    def sum_of_parts(self, tensor: Tensor) -> Tensor:
        if (memory := self._memory_for(tensor)) is not None:
            with self._reaching():
                return memory.sum_of_parts(tensor, self._others.watch)
        each = [tensor.numel() // self.size] * self.size
        return add_in_pairs(list(torch.split(self.exchanged(tensor, each, each), each)))

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = nn.parallel.DistributedDataParallel(model)

        def mean(bucket: Any) -> torch.futures.Future[Tensor]:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(self.sum(bucket.buffer()).div_(self.size))
            return done

        # A lambda: DDP refuses annotations that are text.
        wrapped.register_comm_hook(None, lambda state, bucket: mean(bucket))
        return wrapped

    def post(self, key: str, plain: Any) -> None:
        self._others.post(key, plain)

    def posted(self, key: str, rank: int, given_up: Callable[[], bool]) -> Any:
        return self._others.posted(key, rank, given_up)

    # ------------------------------------------------------------------------------------------ failures

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """What torch raises where a rank cannot be reached becomes RankFailed, then and ever after."""
        if self._broken is not None:
            raise self._broken
        try:
            yield
        except RuntimeError as error:
            self._common = self._broken = self._others.lost(error)
            raise self._broken from error

    def leave(self) -> None:
        self._part(together=True)

    def _part(self, together: bool) -> None:
        if self._left:
            return
        self._left = True
        with contextlib.suppress(RuntimeError, ValueError):  # ValueError: torch's groups have been destroyed
            if together and self._broken is None:
                # The first to end would make torchrun end the others: at what they still have to do.
                dist.monitored_barrier(self._side, timeout=timedelta(seconds=_LEAVING_S))
            if not self._leaves_group:  # its own is all that this world has to give back
                dist.destroy_process_group(self._side)
        if (memory := vars(self).get("_memory")) is not None:
            memory.leave()
            self._memory = None  # a model in pieces may be used still, over a group that is not left
        if self._leaves_group and dist.is_initialized():
            dist.destroy_process_group()
        if not together:  # its connections close with it: the others learn it now, and not when this process ends
            self.group = self._side = self._for_cpu = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or error is self._common:
            self._part(together=True)
            return
        lost = isinstance(error, RuntimeError) and ("gloo" in str(error) or isinstance(error, dist.DistError))
        failure = self._others.lost(error) if lost else None
        if failure is None:
            self._others.last_words(self.rank, first_line(error, kind=not isinstance(error, SurefootError)))
        elif failure.rank is not None:  # for it, since those who lose this rank next would take it for the first
            self._others.last_words(failure.rank, str(failure).removeprefix(f"rank {failure.rank}: "))
        self._part(together=False)
        if failure is not None:
            raise failure from error


def have_met() -> bool:
    """Whether this process has met others, or has tried to."""
    return _joins > 0

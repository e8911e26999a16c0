"""What ranks of one machine leave for each other in memory: sums, rank 0's numbers, and what ends a wait."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from ranks import RanksFailed, by_sockets, linux_on_x86, run_ranks

from surefoot import shared_memory
from surefoot.rank_errors import process_state
from surefoot.shared_memory import SharedMemory

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64)


def patient(waited):
    assert waited < 60, "a rank did not come"


def members(ranks):
    """The memory of all ranks in one process, for a thread each."""
    memory = mmap.mmap(-1, shared_memory._size(ranks))
    return [SharedMemory(memory, rank, ranks) for rank in range(ranks)]


def together(ranks, act):
    """What `act(member, rank)` gives in a thread for each rank."""
    found, threads = [None] * ranks, []
    for rank, member in enumerate(members(ranks)):

        def work(rank=rank, member=member):
            found[rank] = act(member, rank)

        threads.append(threading.Thread(target=work))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def numbers(rank, n, dtype):
    draws = torch.Generator().manual_seed(rank)
    return (torch.randn(n, generator=draws, dtype=torch.float64) * 100).to(dtype)


def tree(parts):
    while len(parts) > 1:
        parts = [parts[i] + parts[i + 1] if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_a_sum_is_the_tree_of_neighbours_for_every_dtype_and_size(ranks):
    """Also in several pieces, and one sum after the other: nobody writes what another still reads."""
    sizes = [0, 1, ranks - 1, 1000, shared_memory._place(ranks) // 4 + 3]

    def act(member, rank):
        return [member.sum(numbers(rank + n, n, dtype), patient) for dtype in DTYPES for n in sizes for _ in range(2)]

    found = together(ranks, act)
    expected = [
        tree([numbers(rank + n, n, dtype) for rank in range(ranks)])
        for dtype in DTYPES
        for n in sizes
        for _ in range(2)
    ]
    for mine in found:
        assert all(map(torch.equal, mine, expected))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_parts_of_a_sum_and_what_is_gathered_are_those_of_the_whole_for_every_dtype_and_size(ranks):
    """Also in several pieces; what is gathered may lie in its place already, as FSDP2 has it."""
    sizes = [0, 1, 1000, shared_memory._place(ranks) // 4 + 3]

    def act(member, rank):
        found = []
        for dtype, n in product(DTYPES, sizes):
            part = member.sum_of_parts(numbers(rank + n, n * ranks, dtype), patient)
            whole = part.new_zeros(n * ranks)
            own = whole[rank * n : (rank + 1) * n].copy_(part)
            member.gather_into(whole, own, patient)
            found.append(whole)
        return found

    keys = product(DTYPES, sizes)
    expected = [tree([numbers(rank + n, n * ranks, dtype) for rank in range(ranks)]) for dtype, n in keys]
    for mine in together(ranks, act):
        assert all(map(torch.equal, mine, expected))


def test_a_job_that_was_suspended_has_not_waited_meanwhile(monkeypatch):
    first, second = members(2)
    clock = iter([0.0, 0.001, 5000.0, *(5000.01 + 0.01 * k for k in range(1000))])
    monkeypatch.setattr(shared_memory, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    waits = []

    def watch(waited):
        waits.append(waited)
        if len(waits) == 3:
            second._came[1] = 1

    first.take_from_first(torch.ones(1), watch)
    assert 0.05 < waits[0] < waits[1] < waits[2] < 1


def test_what_was_summed_stays_as_it_was_and_shapes_are_kept():
    def act(member, rank):
        given = torch.full((3, 4), float(rank + 1)).t()
        first = member.sum(given, patient)
        second = member.sum(given, patient)
        return given, first, second

    for rank, (given, first, second) in enumerate(together(2, act)):
        assert torch.equal(given, torch.full((4, 3), float(rank + 1)))
        assert torch.equal(first, torch.full((4, 3), 3.0)) and torch.equal(second, first)


def test_all_have_rank_0s_numbers():
    def act(member, rank):
        flat = numbers(rank, shared_memory._place(2) // 8 + 5, torch.float64)
        member.take_from_first(flat, patient)
        return flat

    expected = numbers(0, shared_memory._place(2) // 8 + 5, torch.float64)
    assert all(torch.equal(flat, expected) for flat in together(2, act))


def test_a_question_is_answered_by_the_largest_of_all_ranks_and_the_next_does_not_touch_it():
    def act(member, rank):
        answers = []
        for turn in range(50):
            answer = member.ask([rank, 10 * turn + 2 - rank, 0], patient)
            if turn % 3 == rank:
                time.sleep(0)  # others are ahead
            answers.append(answer())
        return answers

    for found in together(3, act):
        assert found == [[2, 10 * turn + 2, 0] for turn in range(50)]


def test_waiting_ends_with_an_error_where_a_rank_has_left_and_is_watched_where_it_is_long():
    first, second = members(2)
    second.leave()
    with pytest.raises(RuntimeError, match="a rank has left"):
        first.sum(torch.ones(1), patient)
    with pytest.raises(RuntimeError, match="a rank has left"):
        first.ask([1], patient)()

    def watch(waited):
        assert waited > 0
        raise TimeoutError

    with pytest.raises(TimeoutError):
        members(2)[0].sum(torch.ones(1), watch)


def test_all_of_the_memory_is_32_mib_at_most():
    for ranks in range(2, 300):
        assert 2 * ranks * shared_memory._place(ranks) <= 32 << 20 and shared_memory._place(ranks) % 4096 == 0


@linux_on_x86
def test_the_memory_of_another_process_is_opened_and_nothing_else():
    size = 8192
    file = shared_memory._made(size, "k" * 16)
    other = shared_memory._made(size, "o" * 16)
    pipe = os.pipe()
    try:
        opened = shared_memory._opened(os.getpid(), file, size, "k" * 16)
        assert os.fstat(opened).st_ino == os.fstat(file).st_ino
        os.close(opened)
        for number, length in ((other, size), (file, size + 1), (pipe[0], size), (10**6, size)):
            assert shared_memory._opened(os.getpid(), number, length, "k" * 16) is None
    finally:
        for number in (file, other, *pipe):
            os.close(number)


@pytest.mark.parametrize("broken", ["memfd_create", "posix_fallocate"])
def test_where_there_is_no_such_memory_all_ranks_do_without(monkeypatch, broken):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, refuse, raising=False)
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert SharedMemory.join(0, 2, lambda plain: [plain, plain]) is None
    assert not open_before or len(os.listdir("/proc/self/fd")) == open_before


def sums(world, sockets):
    world = by_sockets(world) if sockets else world
    shares = world.shares_memory
    big, small = numbers(world.rank, 10_000, torch.float32), numbers(world.rank, 10, torch.float32)
    flat = numbers(world.rank, 7, torch.float32)
    world.take_from_first(flat)
    part = world.sum_of_parts(numbers(world.rank, 30, torch.float32))
    whole = part.new_empty(30)
    world.gather_into(whole, part)
    found = [world.sum(big), world.sum(small), flat, whole]
    world.leave()  # torch's group is there still
    return shares, *[value.tolist() for value in (*found, world.sum(big))]


@linux_on_x86
@pytest.mark.parametrize("ranks", [2, 3])
def test_sums_in_memory_have_the_bits_of_those_that_are_sent(ranks):
    shared, sent = run_ranks(ranks, sums, False), run_ranks(ranks, sums, True)
    assert [rank[0] for rank in shared + sent] == [True] * ranks + [False] * ranks
    assert all(rank[1:] == shared[0][1:] for rank in shared + sent)


def waits_for_the_dead(world, how):
    assert world.shares_memory
    pids = world.gather(os.getpid())
    if world.rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == 1 and how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if world.rank == 1:
        with world:
            raise ValueError("my own mistake")
    with pytest.raises(Exception) as raised:
        world.sum(torch.ones(3))
    end = time.monotonic() + 30 * (how != "raises")
    while process_state(pids[1]) not in ("Z", "X") and time.monotonic() < end:
        time.sleep(0.01)
    return str(raised.value), process_state(pids[1])


@linux_on_x86
def test_a_rank_that_does_not_come_is_named():
    killed, _ = run_ranks(2, waits_for_the_dead, "killed", die=[1])
    assert killed[0] == "rank 1: has ended without a word (killed, or out of memory?)"
    stopped, _ = run_ranks(2, waits_for_the_dead, "stopped", timeout=2, die=[1])
    assert stopped[0] == "rank 1: is stopped, and did not answer within 2 s"
    assert stopped[1] in ("Z", "X")  # it could not have ended by itself
    with pytest.raises(RanksFailed) as raised:
        run_ranks(2, waits_for_the_dead, "raises")
    assert list(raised.value.errors) == [1]  # rank 0 had its error, and went on

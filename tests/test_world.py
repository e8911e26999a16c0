"""The processes of one run agree: shares, plain values, errors, questions, and what becomes of them where one ends."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from ranks import RanksFailed, by_sockets, linux_on_x86, run_ranks

import surefoot.asking
from surefoot.errors import RankFailed, Stopped, UsageError
from surefoot.world import World


def test_alone_every_verb_is_the_identity():
    world = World.alone()
    tensor, error = torch.randn(3), KeyError("mine")

    def fails():
        raise error

    assert (world.rank, world.size, world.local_rank, world.group) == (0, 1, 0, None)
    assert world.share(7) == slice(0, 7) and world.gather((1, 2)) == [(1, 2)] and world.ask((3, 4)) == (3, 4)
    assert world.sum(tensor) is tensor and world.agree(lambda: tensor, on=0) is tensor
    with pytest.raises(KeyError) as caught, world:
        world.agree(fails)
    assert caught.value is error
    assert type(World.here()) is World


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 64])
def test_each_row_is_one_ranks_in_order(n, size):
    class Some(World):
        pass

    Some.size = size
    rows = []
    for Some.rank in range(size):
        rows += range(n)[Some().share(n)]
    assert rows == list(range(n))


def test_an_object_to_save_is_no_world(tmp_path):
    with pytest.raises(UsageError, match="world: a dict was given; .* an object to be saved needs another name"):
        surefoot.Checkpointer(tmp_path / "run", world={"carts": 1}, model=torch.nn.Linear(1, 1))


def test_without_torchrun_join_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="MASTER_ADDR, MASTER_PORT: not in the environment; start with `torchrun"):
        World.here()


def _values(world):
    """Everything that travels, in one go of three processes."""
    texts = world.gather({"rank": world.rank, "text": "é" * 50 * world.rank, "n": 0.1, "nan": float("nan")})
    assert [t["rank"] for t in texts] == [0, 1, 2] and texts[2]["text"] == "é" * 100 and texts[1]["n"] == 0.1
    parts = [torch.tensor([0.1, 1e8]), torch.tensor([0.2, 1.0]), torch.tensor([0.3, -1e8])]
    total = world.sum(parts[world.rank])
    assert total.equal((parts[0] + parts[1]) + parts[2])
    assert world.agree(lambda: world.rank) == world.rank  # everywhere: each has its own
    assert world.agree(lambda: world.rank + 10, on=1) == 11  # on one: all have that one's
    return world.rank, world.size, world.share(10)


def test_values_travel_in_rank_order():
    assert run_ranks(3, _values) == [(0, 3, slice(0, 3)), (1, 3, slice(3, 6)), (2, 3, slice(6, 10))]


def _of_every_dtype(world):
    """By sockets, of which gloo knows few dtypes."""
    world, found = by_sockets(world), []
    for dtype in (torch.int16, torch.uint16, torch.float8_e4m3fn, torch.bool):
        mine = torch.tensor([world.rank, 1 - world.rank]).to(dtype)
        gathered = [part.float().tolist() for part in world.gathered(mine)]
        world.take_from_first(mine)
        found.append((gathered, mine.float().tolist()))
    total = world.sum(torch.full((5000,), 1 + world.rank, dtype=torch.int16))
    return found, total.dtype == torch.int16 and total.unique().tolist()


def test_tensors_of_every_dtype_travel():
    assert run_ranks(2, _of_every_dtype) == [([([[0, 1], [1, 0]], [0, 1])] * 4, [3])] * 2


def _evaluated(world):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    data = torch.randn(32, 3), torch.randint(0, 2, (32,))
    return surefoot.evaluate(model, torch.nn.CrossEntropyLoss(), data, batch_size=8, world=world).metrics


def _in_a_group_for_gpus(world, store):
    """What `init_process_group("nccl")` makes takes no tensor on the CPU. The first world is left after its group."""
    torch.distributed.destroy_process_group()
    store = torch.distributed.FileStore(store, 2)
    torch.distributed.init_process_group("cuda:gloo", store=store, rank=world.rank, world_size=2)
    with World.join() as world:
        return _evaluated(by_sockets(world))


def test_numbers_on_the_cpu_travel_where_the_process_group_is_for_gpus(tmp_path):
    assert run_ranks(2, _in_a_group_for_gpus, str(tmp_path / "store")) == [_evaluated(World.alone())] * 2


def _joins_again_and_again(world):
    def held():
        gc.collect()
        return [len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task")]

    def join():
        with World.join() as again:
            assert again.gather(again.rank) == [0, 1]

    join()
    before = held()
    for _ in range(3):
        join()
    return before, held()


@linux_on_x86
def test_a_world_over_a_group_of_the_users_own_leaves_nothing_open():
    for before, after in run_ranks(2, _joins_again_and_again):
        assert before == after


def _in_two_containers(world):
    """Of one name, as containers on their host's network are: rank 1's number is nobody's where rank 0 is."""
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1:
            patch.setattr(os, "getpid", lambda: 2**30)
            patch.setattr(os, "readlink", lambda path: "pid:[1]")
        world = World.join()
    if world.rank == 1:
        world.posted("asked", 0, lambda: False)
        return world.post("answer", 5)
    return world.posted("answer", 1, lambda: world.post("asked", True))


def test_a_rank_whose_process_cannot_be_seen_is_not_taken_for_one_that_has_ended():
    assert run_ranks(2, _in_two_containers) == [5, None]


def test_a_rank_without_a_gpu_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    world = World.alone()
    assert world.device == torch.device("cuda", 0)
    world.local_rank = 1
    with pytest.raises(UsageError, match="is number 2 on a machine with 1 GPU; start fewer, or set LOCAL_RANK=0 where"):
        _ = world.device


def _errors(world):
    """Each kind of error, raised on one rank; all go on together afterwards."""

    def on(rank, error):
        if world.rank == rank:
            raise error

    told = []
    for act, where in (
        (lambda: on(1, UsageError("no such file")), "all"),
        (lambda: on(0, OSError(28, "No space left", "/run/x")), 0),
        (lambda: on(1, {}["key"]) if world.rank == 1 else None, "all"),
        (lambda: object(), 0),  # nothing that could be told to the others
        (lambda: on(world.rank, UsageError("the same everywhere")), "all"),
        (lambda: on(world.rank, Stopped(signal.SIGTERM, "stopped after step 3")), "all"),
    ):
        try:
            world.agree(act, on=where)
        except Exception as error:
            told.append((type(error).__name__, str(error), getattr(error, "exit_code", None)))
    assert world.gather(1) == [1, 1]
    return told


def test_an_error_of_one_rank_is_everybodys_and_names_it():
    first, second = run_ranks(2, _errors)
    assert first[0] == second[0] == ("UsageError", "rank 1: no such file", 2)
    assert first[1] == ("OSError", "[Errno 28] No space left: '/run/x'", None)
    assert second[1] == ("RankFailed", "rank 0: OSError: [Errno 28] No space left: '/run/x'", 1)
    assert first[2] == ("RankFailed", "rank 1: KeyError: 'key'", 1) and second[2][0] == "KeyError"
    assert second[3][1] == "rank 0: TypeError: Object of type object is not JSON serializable"
    assert first[4] == second[4] == ("UsageError", "the same everywhere", 2)
    assert first[5] == second[5] == ("Stopped", "stopped after step 3", 143)


def _asks(world, seconds):
    """At which call each rank learns of what two ranks say from their third call on, twice; a call takes `seconds`."""
    learnt = []
    clock = surefoot.asking.time = SimpleNamespace(monotonic=lambda: 0.0)
    world = World.join()
    for call in range(400):
        clock.monotonic = functools.partial(float, (1 + world.rank) * seconds * (call + 1))
        answer = world.ask([int(world.rank == 1 and call >= 3), 5 * int(world.rank == 0 and call >= 3)])
        if any(answer):
            learnt.append((call, tuple(answer)))
            if len(learnt) == 2:
                break
    return learnt


def test_a_question_is_answered_alike_at_the_same_call():
    for seconds, calls in ((2**-9, [204, 307]), (1.0, [3, 4])):
        first, second, third = run_ranks(3, _asks, seconds)
        assert first == second == third == [(call, (1, 5)) for call in calls]


def _questions(world, sockets):
    """What is exchanged in 1000 steps of half a millisecond by which ranks agree on stops."""
    count, real = 0, torch.distributed.all_reduce

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return real(*args, **kwargs)

    clock = surefoot.asking.time = SimpleNamespace(monotonic=lambda: 0.0)
    world = by_sockets(World.join()) if sockets else World.join()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", counted)
        for step in range(1000):
            clock.monotonic = functools.partial(float, 2**-11 * (step + 1))
            world.ask([0, 0])
    return count


def test_agreeing_on_stops_exchanges_nothing_in_nearly_all_steps():
    """A question by sockets costs 0.3 ms: one to learn how long steps are, then one in 200 ms of steps."""
    assert run_ranks(2, _questions, True) == [3, 3]


@linux_on_x86
def test_in_shared_memory_agreeing_on_stops_sends_nothing():
    assert run_ranks(2, _questions, False) == [0, 0]


def _dies(world, how):
    if world.rank == 1:
        if how == "raise":
            raise ValueError("my own\nmistake")
        os.kill(os.getpid(), how)
    with pytest.raises(RankFailed) as caught:
        world.gather("are you there?")
    with pytest.raises(RankFailed) as again:  # and no verb waits for it any more
        world.agree(lambda: 1)
    assert again.value is caught.value
    return caught.value.rank, str(caught.value)


def test_a_rank_that_is_killed_ends_the_others_at_once():
    results = run_ranks(3, _dies, signal.SIGKILL, die={1})
    assert results[1] == -signal.SIGKILL
    assert "rank 1: has ended" in str(results)


def test_a_rank_that_raises_leaves_its_last_words():
    with pytest.raises(RanksFailed) as caught:
        run_ranks(2, _dies, "raise")
    assert list(caught.value.errors) == [1] and "ValueError: my own" in caught.value.errors[1]


def _goes_on_after_its_error(world, folder, own_group):
    """Rank 1 catches what it raised and goes on, until rank 0 says what it was told."""
    between = torch.distributed.FileStore(f"{folder}/between", 2)
    world._leaves_group = not own_group
    if world.rank == 1:
        with contextlib.suppress(ValueError), world:
            raise ValueError("my own")
        return between.get("told").decode()
    with pytest.raises(RankFailed) as caught:
        world.gather("are you there?")
    between.set("told", str(caught.value))
    assert "imed out" not in str(caught.value.__cause__)
    return str(caught.value)


@pytest.mark.parametrize("own_group", [True, False])
def test_a_rank_that_raises_and_goes_on_ends_the_others_at_once(own_group, tmp_path):
    assert run_ranks(2, _goes_on_after_its_error, str(tmp_path), own_group) == ["rank 1: ValueError: my own"] * 2


def test_a_stopped_rank_is_named_after_the_timeout():
    results = run_ranks(2, _dies, signal.SIGSTOP, timeout=0.5, die={1})
    assert results[0] == (1, "rank 1: is stopped, and did not answer within 0.5 s")


def _hangs(world):
    if world.rank == 1:
        signal.pause()


def test_a_rank_that_hangs_shows_its_stack():
    with pytest.raises(RanksFailed, match="in _hangs") as caught:
        run_ranks(2, _hangs, deadline=1, timeout=20)
    assert 1 in caught.value.errors

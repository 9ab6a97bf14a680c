"""Pieces of work side by side: in order, on one thread each, and none left behind."""

import multiprocessing
import threading
from itertools import pairwise

import pytest
import torch

from medistill import parallel
from medistill.parallel import (
    SpareCores,
    StepSharing,
    Stopped,
    Workers,
    go_on,
    layer_threads,
    one_thread,
    parts,
    summed,
    waiting_for_others,
)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_results_come_in_the_order_of_the_pieces(number):
    late = threading.Event()

    def square(x):
        if x == 0 and number > 1:
            late.wait(5)  # the first ends last
        if x == 1:
            late.set()
        return x * x

    assert list(Workers(number).map(square, range(20))) == [x * x for x in range(20)]


def test_pieces_are_done_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)
    assert sorted(Workers(2).map(lambda _: meeting.wait(), range(2))) == [0, 1]


def test_no_more_than_twice_the_workers_are_ahead():
    begun, seen = [], []
    for result in Workers(2).map(lambda x: begun.append(x) or x, range(30)):
        seen.append(result)
        assert len(begun) <= len(seen) + 4


def test_each_piece_computes_on_one_thread_and_asks_for_none():
    names = list(Workers(2).map(lambda _: (torch.get_num_threads(), threading.current_thread().name), range(6)))
    assert {threads for threads, _ in names} == {1} and all(name.startswith("medistill") for _, name in names)

    def of_a_piece(_):
        return [threading.current_thread().name == n for n in Workers(3).map(lambda _: _name(), range(3))]

    assert all(all(same) for same in Workers(2).map(of_a_piece, range(4)))


def _name():
    return threading.current_thread().name


def test_what_a_piece_raises_is_raised_and_the_rest_is_not_begun():
    begun = []

    def fails(x):
        begun.append(x)
        if x == 1:
            raise ValueError("piece 1")
        return x

    with pytest.raises(ValueError, match="piece 1"):
        list(Workers(2).map(fails, range(100)))
    assert len(begun) < 20
    assert list(Workers(2).map(abs, [-1, -2])) == [1, 2], "workers are there again"


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError), one_thread(), one_thread():
            assert torch.get_num_threads() == 1
            _ = 1 / 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_one_worker_computes_on_one_thread_too():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(Workers(1).map(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_of_a_user_borrow_each_their_own():
    inside, out = threading.Barrier(2, timeout=20), threading.Event()
    seen = {}

    def first():
        torch.set_num_threads(3)
        with one_thread():
            inside.wait()
        seen["first, after"] = torch.get_num_threads()
        out.set()

    def second():
        torch.set_num_threads(2)
        with one_thread():
            inside.wait()
            out.wait(20)
            seen["second, within"] = torch.get_num_threads()
        seen["second, after"] = torch.get_num_threads()

    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first, after": 3, "second, within": 1, "second, after": 2}


def test_long_pieces_end_where_nobody_waits_for_them():
    ended = threading.Event()

    def piece(x):
        if x == 0:
            raise KeyboardInterrupt
        try:
            while True:
                go_on()
        except Stopped:
            ended.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        list(Workers(2).map(piece, range(2)))
    assert ended.wait(20)
    assert list(Workers(2).map(abs, [-1, -2])) == [1, 2]
    go_on()


def test_a_forked_process_has_workers_of_its_own():
    assert list(Workers(2).map(abs, [-1, -2])) == [1, 2]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_child).get(60) == [1, 2]


def _in_child():
    return list(Workers(2).map(abs, [-1, -2]))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("size", [1, 7, 32, 2000])
def test_parts_are_all_and_as_few_and_even_as_can_be(count, size):
    found = parts(count, size)
    assert [row for part in found for row in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in found]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    fewest = max(1, -(-count // size))
    assert len(found) == fewest + (fewest % 2 if 1 < fewest < count else 0)


def test_sums_are_added_in_order():
    """Of numbers whose sum depends on the order."""
    big = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    (total,) = summed([x] for x in big)
    assert total == (big[0] + big[1]) + big[2] and total != (big[0] + big[2]) + big[1]


class Clock:
    """Steps take 1 on one thread, and what is asked for on several."""

    def __init__(self, monkeypatch, helped):
        self.now, self.helped = 0.0, helped
        monkeypatch.setattr(parallel.time, "perf_counter", lambda: self.now)

    def steps(self, spare, number):
        """On how many threads each was done."""
        used = []
        for _ in range(number):
            with spare.step():
                used.append(layer_threads())
                self.now += self.helped if used[-1] > 1 else 1.0
        return used


def test_cores_that_nobody_uses_are_lent_after_a_few_steps(monkeypatch):
    clock = Clock(monkeypatch, 0.6)
    with one_thread():
        assert clock.steps(SpareCores(3), 20) == [1] * 6 + [3] * 14
        assert layer_threads() == 1
        assert clock.steps(SpareCores(100), 20)[6:] == [SpareCores.MOST] * 14
        assert clock.steps(SpareCores(1), 20) == [1] * 20
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert clock.steps(SpareCores(2), 20) == [3] * 20, "who computes on several threads anyway is let alone"
    finally:
        torch.set_num_threads(before)


def test_where_lending_does_not_pay_it_is_tried_ever_less(monkeypatch):
    clock, spare = Clock(monkeypatch, 0.95), SpareCores(2)
    with one_thread():
        used = clock.steps(spare, 2000)
        tried = [i for i, threads in enumerate(used) if threads > 1]
        gaps = [b - a - 1 for a, b in pairwise(tried)]
        assert gaps[:7] == [5, 10, 20, 40, 80, 160, 256] and set(gaps[7:]) <= {256}
        clock.helped = 0.6
        assert clock.steps(spare, 600)[-300:] == [2] * 300, "the other program ended"


def test_steps_are_shared_in_the_faster_way(monkeypatch):
    with one_thread():
        clock, sharing = Clock(monkeypatch, 0.8), StepSharing(Workers(2))
        assert clock.steps(sharing, 3 + 3 + 30) == [1] * 3 + [2] * 33, "three of either, then the faster"
        assert clock.steps(sharing, 3 + 60) == [1] * 3 + [2] * 60, "the other way is tried again"
        assert clock.steps(sharing, 3) == [1] * 3
        clock.helped = 1.5
        assert clock.steps(sharing, 2 + 3 + 30) == [2] * 2 + [1] * 33, "something else runs, which is soon felt"
        assert clock.steps(StepSharing(Workers(100)), 6)[3:] == [SpareCores.MOST] * 3
        assert clock.steps(StepSharing(Workers(1)), 20) == [1] * 20


def test_a_hopeless_way_is_given_up_after_one_step_and_tried_ever_less(monkeypatch):
    clock, sharing = Clock(monkeypatch, 2.5), StepSharing(Workers(2))
    with one_thread():
        used = clock.steps(sharing, 3000)
    tried = [i for i, threads in enumerate(used) if threads > 1]
    assert [b - a - 1 for a, b in pairwise(tried)] == [60, 120, 240, 480, 480, 480, 480, 480]


def test_pieces_of_a_step_are_done_where_it_is_asked_for_while_layers_are_shared(monkeypatch):
    clock, sharing = Clock(monkeypatch, 0.8), StepSharing(Workers(2))

    def piece(_):
        return threading.current_thread() is threading.main_thread(), torch.get_num_threads(), layer_threads()

    with one_thread():
        clock.steps(sharing, 3)
        with sharing.step():
            assert list(Workers(2).map(piece, range(3))) == [(True, 1, 2)] * 3
        assert layer_threads() == 1
    assert list(Workers(2).map(piece, range(3))) == [(False, 1, 1)] * 3


def test_only_cores_without_a_piece_of_work_are_lent():
    """Of two workers one waits for the other, who has the core until then."""
    both, rests, over = (threading.Barrier(2, timeout=20) for _ in range(3))

    def piece(number):
        spare = SpareCores(2)
        spare.pause = 0
        both.wait()
        if number == 1:
            seen = [spare.threads]
            both.wait()
            with waiting_for_others():
                rests.wait()
                over.wait()
            return seen
        seen = [spare.threads]
        both.wait()
        rests.wait()
        seen.append(spare.threads)
        over.wait()
        return seen

    assert list(Workers(2).map(piece, range(2))) == [[1, 2], [1]]

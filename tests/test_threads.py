"""Work in threads, in order, and torch as it was afterwards."""

import threading

import pytest
import torch

from siglip2_dense.threads import computing_alone, map_in_threads


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_and_buffers_are_a_threads_own(count):
    torch.set_num_threads(count)
    seen, meeting = {}, threading.Barrier(count, timeout=10)

    def work(piece, buffer):
        if piece < count:
            meeting.wait()  # all threads are at work
        seen.setdefault(buffer.data_ptr(), set()).add(threading.get_ident())
        return piece, torch.get_num_threads()

    with computing_alone() as threads:
        found = list(map_in_threads(work, range(20), lambda: torch.empty(5), threads))
    assert threads == count and found == [(i, 1) for i in range(20)]
    assert len(seen) == count and all(len(users) == 1 for users in seen.values())
    assert torch.get_num_threads() == count


def test_an_error_is_passed_on():
    torch.set_num_threads(2)

    def work(piece, buffer):
        raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 0"), computing_alone() as threads:
        list(map_in_threads(work, range(5), lambda: torch.empty(1), threads))
    assert torch.get_num_threads() == 2


def test_other_devices_are_worked_on_by_the_caller():
    users = list(map_in_threads(lambda *_: threading.get_ident(), range(3), lambda: torch.empty(1, device="meta"), 2))
    assert users == [threading.get_ident()] * 3

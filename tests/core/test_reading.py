"""Items read ahead in order, and put together in batches."""

import threading

import pytest

from capwright.core.reading import in_batches, in_order


def test_items_come_in_order_and_are_made_in_threads() -> None:
    names: set[str] = set()

    def twice(number: int) -> int:
        names.add(threading.current_thread().name)
        return 2 * number

    assert list(in_order(twice, iter(range(50)), ahead=4)) == list(range(0, 100, 2))
    assert threading.current_thread().name not in names


def test_no_more_items_are_taken_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(20):
            taken.append(number)
            yield number

    read = in_order(lambda number: number, items(), ahead=3)  # type: ignore[arg-type]
    assert next(read) == 0
    assert taken == [0, 1, 2, 3]


def test_an_error_comes_where_its_item_is() -> None:
    read = in_order(lambda number: 1 // number, [1, 0, 1], ahead=5)
    assert next(read) == 1
    with pytest.raises(ZeroDivisionError):
        next(read)


def test_batches_hold_neighbours_that_are_alike() -> None:
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([], 2)) == []
    words = ["a", "b", "cc", "dd", "ee", "f"]
    assert list(in_batches(words, 2, len)) == [["a", "b"], ["cc", "dd"], ["ee"], ["f"]]

"""Items read ahead in threads, in order, so that a model never waits for a picture; and batches."""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Got = TypeVar("Got")


def in_order(
    function: Callable[[Given], Got], items: Iterable[Given], *, ahead: int
) -> Iterator[Got]:
    """What `function` gives for each item, made in threads up to `ahead` items early."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Future[Got]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_batches(
    items: Iterable[Got], size: int, alike: Callable[[Got], Hashable] | None = None
) -> Iterator[list[Got]]:
    """Neighbours together, at most `size`; with `alike` those for which it gives the same."""
    batch: list[Got] = []
    for item in items:
        full = len(batch) == size
        if full or (batch and alike is not None and alike(item) != alike(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch

"""Items read ahead in threads, in order, so that a model never waits for a picture."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Got = TypeVar("Got")


def in_order(
    function: Callable[[Given], Got], items: Sequence[Given], *, ahead: int
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

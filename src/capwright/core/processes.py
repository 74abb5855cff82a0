"""Worker processes that end with the process that started them, also when that one is killed."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

Item = TypeVar("Item")


def fresh_processes(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: forked ones would share threads (torch's), which none survives."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=end_with_parent
    )


def each(
    do: Callable[[Item], object], items: Sequence[Item], workers: int, *, threads: int = 1
) -> None:
    """`do(item)` for every item: one after the other here, or `workers` at a time elsewhere.

    Elsewhere are fresh processes with so many `threads` of torch, lest they fight over the cores.
    """
    if workers <= 1 or not items:
        for item in items:
            do(item)
        return
    with fresh_processes(workers) as pool:
        list(pool.map(partial(_with_threads, do, threads), items))


def _with_threads(do: Callable[[Item], object], threads: int, item: Item) -> None:
    import torch

    torch.set_num_threads(threads)
    do(item)


def end_with_parent() -> None:
    """End this process as soon as its parent has ended.

    A pool's workers would go on with what they do and then wait for ever.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

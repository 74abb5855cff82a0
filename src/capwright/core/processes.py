"""Worker processes that end with the process that started them, also when that one is killed."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process


def fresh_processes(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: forked ones would share threads (torch's), which none survives."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=end_with_parent
    )


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

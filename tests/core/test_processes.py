"""Worker processes do not outlive the process that started them; work is shared among them."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from capwright.core.processes import each
from counting_stage import alive, until
from noted_process import note

SCRIPT = """
import os, sys, time
from capwright.core.processes import fresh_processes

def work(file):
    open(file, "w").write(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    with fresh_processes(1) as pool:
        pool.submit(work, sys.argv[1]).result()
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    noted = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py", noted])
    until(lambda: noted.exists() and bool(noted.read_text()))
    worker = int(noted.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(worker), seconds=30)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_item_is_done_here_or_in_processes_of_their_own(tmp_path: Path, workers: int) -> None:
    threads = torch.get_num_threads()
    each(partial(note, tmp_path), ["a", "b", "c"], workers, threads=3)
    found = [(tmp_path / name).read_text().split() for name in "abc"]
    here = str(os.getpid())
    if workers == 1:
        assert found == [[here, str(threads)]] * 3
    else:
        assert all(process != here and count == "3" for process, count in found)

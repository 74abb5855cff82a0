"""Worker processes do not outlive the process that started them."""

import signal
import subprocess
import sys
from pathlib import Path

from counting_stage import alive, until

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

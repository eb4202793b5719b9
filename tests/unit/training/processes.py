"""Several processes of one distributed run, without a launcher.

`torchrun` looks up the host's own name, which fails on some machines without a network, and then waits for minutes.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environments(processes: int) -> list[dict[str, str]]:
    """What a launcher tells each rank, over the loopback."""
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def together(command: list[str], *, processes: int, timeout: float = 240) -> tuple[int, str, str]:
    """Run a Python command in several ranks over the loopback.

    Returns: first bad exit code or 0; stdout and stderr of all ranks.

    Raises:
        TimeoutError: some rank still ran after `timeout` seconds. Says where each of its threads was.
    """
    outputs = [(tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")) for _ in range(processes)]  # noqa: SIM115
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=out,
            stderr=err,
            text=True,
        )
        for environment, (out, err) in zip(environments(processes), outputs, strict=True)
    ]
    end = time.monotonic() + timeout
    late = False
    try:
        while any(p.poll() is None for p in running):
            if any(p.poll() for p in running):
                time.sleep(5.0)  # the others may have something to say about it
                break
            if time.monotonic() > end:
                late = True
                for p in running:
                    p.send_signal(signal.SIGABRT)
                time.sleep(2.0)
                break
            time.sleep(0.05)
    finally:
        for p in running:
            p.kill()
            p.wait()
    texts = []
    for files in zip(*outputs, strict=True):
        parts = []
        for file in files:
            file.seek(0)
            parts.append(file.read())
            file.close()
        texts.append("\n".join(parts))
    codes = [p.returncode for p in running]
    if late:
        raise TimeoutError(f"no end after {timeout:g} s (exit codes {codes})\n{texts[1][-8000:]}")
    positive = [c for c in codes if c > 0]
    return (positive[0] if positive else next((c for c in codes if c), 0)), texts[0], texts[1]

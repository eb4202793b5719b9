"""Tasks for workers of other processes, which must find them by name."""

import os
import time
from pathlib import Path


def square(number: int) -> int:
    return number * number


def size_of(path: str) -> int:
    return Path(path).stat().st_size


def name_of_process(number: int) -> int:
    return os.getpid()


def fail_on_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is too many\nand more")
    return number


def die_once(task: tuple[str, int]) -> int:
    """Kills its process the first time that it sees number 2, as a full memory or a crashing decoder does."""
    folder, number = task
    marker = Path(folder, f"begun-{number}")
    first = not marker.exists()
    marker.touch()
    if number == 2 and first:
        os._exit(9)
    return number * 10


def die_always(task: tuple[str, int]) -> int:
    folder, number = task
    with Path(folder, f"tries-{number}").open("a") as file:
        file.write("x")
    if number == 1:
        os._exit(9)
    return number


def sleep_and_mark(task: tuple[str, float]) -> str:
    folder, seconds = task
    Path(folder, f"pid-{os.getpid()}").touch()
    time.sleep(seconds)
    Path(folder, f"done-{seconds}").touch()
    return folder

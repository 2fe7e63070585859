"""Runs side by side, each on its own cores."""

import os
from concurrent.futures import ThreadPoolExecutor
from queue import Queue


def pool_of(jobs: int) -> ThreadPoolExecutor:
    """Threads for as many jobs, each bound to its share of the cores, as what it starts is."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares: Queue[list[int]] = Queue()
    for job in range(jobs):
        shares.put(cores[job::jobs] or cores)
    return ThreadPoolExecutor(jobs, initializer=_take, initargs=(shares,))


def _take(shares: Queue[list[int]]) -> None:
    if cores := shares.get():
        os.sched_setaffinity(0, cores)

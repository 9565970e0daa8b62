"""Work in threads, some batches ahead of the one that is wanted; and an end to waiting for a disk that hangs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

from imgclf.core.errors import ImgclfError
from imgclf.core.text import printable
from imgclf.runtime.device import cores

T = TypeVar("T")
Job = Callable[[], None]

AHEAD = 2
PATIENCE = 120.0  # seconds that the reading of one image may take
SHORT = 0.0045  # seconds for a job of 8 images or more, of which much is Python's
SHORT_NATIVE = 0.0005  # the same where hardly any of it is
TRIED = 8  # jobs that a pace is the mean of
LEAVE = 5.0  # seconds that the end of an epoch waits for images that nobody wants any more


def share_cores(device: torch.device) -> tuple[int, int]:
    """How many threads fetch beside the model, and how many batches ahead.

    Where the model computes on all cores of the processor, they take turns: all cores fetch a batch, then it is handed
    over. Where it leaves some, those fetch ahead; on an accelerator all do.
    """
    free = cores() if device.type != "cpu" else cores() - torch.get_num_threads()
    return (free, AHEAD) if free > 0 else (cores(), 0)


class Watch:
    """Which images are being read, and since when."""

    def __init__(self) -> None:
        self._reading: dict[int, tuple[str, float]] = {}

    @contextmanager
    def reading(self, ref: str) -> Iterator[None]:
        """Note that this thread reads `ref`."""
        thread = threading.get_ident()
        self._reading[thread] = (ref, time.monotonic())
        try:
            yield
        finally:
            del self._reading[thread]

    def check(self) -> None:
        """Raise `ImgclfError` where an image has been read for longer than `PATIENCE`."""
        since = time.monotonic() - PATIENCE
        stuck = sorted(printable(ref) for ref, began in list(self._reading.values()) if began <= since)
        if stuck:
            raise ImgclfError(
                f"expected every image within {PATIENCE:g} s, still reading: {', '.join(stuck)}; "
                "the disk or the network it lies on hangs: make it answer, or copy the images to a local disk"
            )


class Pace:
    """Whether jobs take long, by the last few of them, beside what is `short` (seconds)."""

    def __init__(self, short: float = SHORT) -> None:
        self._short = short
        self._jobs, self._mean = 0, 0.0

    def note(self, seconds: float) -> None:
        """Count one more job; a single one among short ones makes no pace: it may have loaded a decoder, or waited."""
        self._jobs = min(self._jobs + 1, TRIED)
        most = self._short * (self._jobs + 1) / 2  # beside others of up to half the limit it keeps the mean below it
        self._mean += (min(seconds, most) - self._mean) / self._jobs

    def forget(self) -> None:
        """Start anew: the next jobs are of another kind."""
        self._jobs, self._mean = 0, 0.0

    @property
    def slow(self) -> bool:
        """Whether jobs gain from more than one thread: short ones lose more time to the interpreter's lock."""
        return self._mean > self._short


class _Pool:
    """Threads that do jobs in their order. They are daemons: one that hangs does not keep the process from ending.

    There is one until the pace is slow.
    """

    def __init__(self, most: int, pace: Pace) -> None:
        self._jobs: SimpleQueue[tuple[Future[None], Job] | None] = SimpleQueue()
        self._most, self._pace = most, pace
        self._threads: list[threading.Thread] = []
        self._lock, self._closed = threading.Lock(), False
        self._grow(most if pace.slow else 1)

    def _grow(self, threads: int) -> None:
        with self._lock:
            for i in range(len(self._threads), 0 if self._closed else threads):
                thread = threading.Thread(target=self._work, name=f"imgclf-loader-{i}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system gives no more: those that are there do the work
                    if not self._threads:
                        raise
                    return
                self._threads.append(thread)

    def submit(self, job: Job) -> Future[None]:
        future: Future[None] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """End the threads; one that hangs is left to itself."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + min(LEAVE, PATIENCE)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if future.set_running_or_notify_cancel():
                begun = time.perf_counter()
                try:
                    job()
                except BaseException as error:  # it is raised where the batch is waited for
                    future.set_exception(error)
                else:
                    future.set_result(None)
                self._pace.note(time.perf_counter() - begun)
                if self._pace.slow:
                    self._grow(self._most)


def fetched(
    plans: Iterable[tuple[T, Sequence[Job]]], threads: int, ahead: int, watch: Watch, pace: Pace
) -> Iterator[T]:
    """Each plan once its jobs are done, while threads do those of the next `ahead` ones; 0 threads: no threads.

    The threads begin with the first job and end with the iterator; there is one until the `pace`, which takes note of
    each job, is slow. What a job raises is raised here.
    """
    pool: _Pool | None = None
    pending: deque[tuple[T, list[Future[None]]]] = deque()
    try:
        for plan, jobs in plans:
            if not threads:
                for job in jobs:
                    job()
                yield plan
                continue
            pool = pool or (_Pool(threads, pace) if jobs else None)
            pending.append((plan, [pool.submit(job) for job in jobs] if pool is not None else []))
            if len(pending) > ahead:
                yield _done(pending, watch)
        while pending:
            yield _done(pending, watch)
    finally:
        if pool is not None:
            for _, futures in pending:
                for future in futures:
                    future.cancel()
            pool.close()


def _done(pending: deque[tuple[T, list[Future[None]]]], watch: Watch) -> T:
    plan, futures = pending[0]
    while futures:
        finished, left = wait(futures, timeout=PATIENCE / 4, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        if not left:
            break
        watch.check()
    pending.popleft()
    return plan

"""Work in threads, some batches ahead of the one that is wanted; and an end to waiting for a disk that hangs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from itertools import chain
from queue import SimpleQueue
from typing import TypeVar

import torch

from imgclf.core.errors import ImgclfError
from imgclf.core.text import printable
from imgclf.runtime.device import cores

T = TypeVar("T")
Job = Callable[[], None]

BATCHES_AHEAD = 2
PATIENCE_SECONDS = 120.0  # that the reading of one image may take
CLOSE_SECONDS = 5.0  # that the end of an epoch waits for images that nobody wants any more


def share_cores(device: torch.device) -> tuple[int, int]:
    """How many threads fetch beside the model, and how many batches ahead.

    Where the model computes on all cores of the processor, they take turns: all cores fetch a batch, then it is handed
    over. Where it leaves some, those fetch ahead; on an accelerator all do.
    """
    free = cores() if device.type != "cpu" else cores() - torch.get_num_threads()
    return (free, BATCHES_AHEAD) if free > 0 else (cores(), 0)


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
        """Raise `ImgclfError` where an image has been read for longer than `PATIENCE_SECONDS`."""
        since = time.monotonic() - PATIENCE_SECONDS
        stuck = sorted(printable(ref) for ref, began in list(self._reading.values()) if began <= since)
        if stuck:
            raise ImgclfError(
                f"still reading after {PATIENCE_SECONDS:g} s: {', '.join(stuck)}. The disk or network drive does not "
                "respond: check it, or copy the images to a local disk"
            )


class _Workers:
    """Threads that do jobs in their order. They are daemons, so that one that hangs does not keep the process alive."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[None], Job] | None] = SimpleQueue()
        names = [f"imgclf-loader-{i}" for i in range(count)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Future[None]:
        future: Future[None] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """End the threads; one that hangs is left to itself."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + min(CLOSE_SECONDS, PATIENCE_SECONDS)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if future.set_running_or_notify_cancel():
                try:
                    job()
                except BaseException as error:  # it is raised where the batch is waited for
                    future.set_exception(error)
                else:
                    future.set_result(None)


def fetched(plans: Iterable[tuple[T, Sequence[Job]]], threads: int, ahead: int, watch: Watch) -> Iterator[T]:
    """Each plan once its jobs are done, while threads do those of the next `ahead` ones; 0 threads: no threads.

    The threads begin with the first job and end with the iterator. What a job raises is raised here, and `ImgclfError`
    where `watch` finds an image that hangs.
    """
    workers: _Workers | None = None
    pending: deque[tuple[T, list[Future[None]]]] = deque()
    try:
        for plan, jobs in plans:
            if not threads:
                for job in jobs:
                    job()
                yield plan
                continue
            workers = workers or (_Workers(threads) if jobs else None)
            pending.append((plan, [workers.submit(job) for job in jobs] if workers else []))
            if len(pending) > ahead:
                yield _done(pending, watch)
        while pending:
            yield _done(pending, watch)
    finally:
        if workers:
            for future in chain.from_iterable(futures for _, futures in pending):
                future.cancel()
            workers.close()


def _done(pending: deque[tuple[T, list[Future[None]]]], watch: Watch) -> T:
    plan, futures = pending[0]
    while futures:
        finished, left = wait(futures, timeout=PATIENCE_SECONDS / 4, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        if not left:
            break
        watch.check()
    pending.popleft()
    return plan

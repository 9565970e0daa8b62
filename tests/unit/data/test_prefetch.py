"""Work in threads, ahead of the batch that is wanted."""

import threading
import time

import pytest

from imgclf.data.loading.prefetch import Watch, fetched


def run(jobs, threads):
    """The threads that did so many plans of six jobs each."""
    seen = set()

    def job():
        seen.add(threading.get_ident())
        jobs()

    plans = [(number, [job] * 6) for number in range(8)]
    assert list(fetched(plans, threads, 2, Watch())) == list(range(8))
    return seen


def test_jobs_are_done_in_all_threads():
    assert len(run(lambda: time.sleep(0.01), 4)) == 4


def test_without_threads_the_caller_does_them():
    assert run(lambda: None, 0) == {threading.get_ident()}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_a_job_raises_is_raised_here(threads):
    def fail():
        raise ValueError("no such pixel")

    with pytest.raises(ValueError, match="no such pixel"):
        run(fail, threads)


def test_the_threads_end_with_the_iterator():
    before = threading.active_count()
    for _ in fetched([(0, [lambda: time.sleep(0.01)] * 20)] * 3, 3, 2, Watch()):
        break
    assert threading.active_count() == before

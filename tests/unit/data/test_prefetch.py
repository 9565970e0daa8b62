"""Work in threads, ahead of the batch that is wanted."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.data.loading.prefetch import SHORT, SHORT_NATIVE, Pace, Watch, fetched


def run(jobs, threads, pace=None):
    """The threads that did so many plans of six jobs each."""
    seen = set()

    def job():
        seen.add(threading.get_ident())
        jobs()

    plans = [(number, [job] * 6) for number in range(8)]
    assert list(fetched(plans, threads, 2, Watch(), pace or Pace())) == list(range(8))
    return seen


def test_short_jobs_are_done_in_one_thread():
    assert len(run(lambda: None, 4)) == 1


def test_slow_jobs_are_done_in_all_threads():
    assert len(run(lambda: time.sleep(0.01), 4)) == 4


def test_a_pace_that_was_slow_begins_with_all_threads_and_one_that_was_not_with_one():
    pace = Pace()
    both = threading.Barrier(2, timeout=10)
    run(lambda: time.sleep(0.01), 2, pace)
    run(both.wait, 2, pace)  # from the first job on, or the barrier breaks
    run(lambda: None, 2, pace)
    assert len(run(lambda: None, 2, pace)) == 1


@pytest.mark.parametrize("short", [SHORT, SHORT_NATIVE])
def test_one_slow_job_is_no_pace_and_two_are(short):
    pace = Pace(short)
    pace.note(60.0)
    assert not pace.slow
    for _ in range(40):
        pace.note(short / 10)
        assert not pace.slow
    pace.note(60.0)
    pace.note(60.0)
    assert pace.slow


@given(
    before=st.lists(st.floats(0, 0.5), max_size=20),
    slow=st.floats(0, 1e6),
    after=st.lists(st.floats(0, 0.5), max_size=20),
)
def test_among_jobs_of_half_the_limit_no_single_one_makes_a_pace(before, slow, after):
    pace = Pace(1.0)
    for seconds in (*before, slow, *after):
        pace.note(seconds)
        assert not pace.slow


@pytest.mark.parametrize("seconds", [1.1, 2.0, 1e6])
def test_two_slow_jobs_at_the_beginning_are_a_pace(seconds):
    pace = Pace(1.0)
    pace.note(seconds)
    assert not pace.slow
    pace.note(seconds)
    assert pace.slow


def test_where_the_system_gives_no_more_threads_one_does_the_work(monkeypatch):
    start, started = threading.Thread.start, []

    def refused(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert len(run(lambda: time.sleep(0.01), 4)) == 1
    with pytest.raises(RuntimeError, match="new thread"):
        run(lambda: None, 4)


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
    for _ in fetched([(0, [lambda: time.sleep(0.01)] * 20)] * 3, 3, 2, Watch(), Pace()):
        break
    assert threading.active_count() == before

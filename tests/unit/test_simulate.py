"""The simulator against closed forms, against what is known, and against a clock."""

import heapq
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import tidewater
from utils.serving.simulate import (
    Policy,
    Work,
    erlang_c,
    exponential,
    fixed,
    measured,
    simulate,
    stragglers,
    train,
)

pytestmark = pytest.mark.timeout(120)


# --- deterministic -------------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "places"), [(1, 4), (10, 4), (100, 7), (12, 12)])
def test_a_pool_without_start_takes_rounds(jobs, places):
    done = simulate(Policy("pool", places), Work(fixed(3.0)), jobs)
    assert done.seconds == pytest.approx(3.0 * math.ceil(jobs / places))
    assert done.created == done.peak == min(jobs, places)
    assert done.busy_seconds == pytest.approx(3.0 * jobs)


def test_creation_limits_short_jobs_and_containers_limit_long_ones():
    work = Work(fixed(1.0), start=fixed(2.0))
    naive = Policy("fresh", 100, fresh=True, creates_per_second=5, usd_per_second=0.5)
    done = simulate(naive, work, 1_000)
    # The last of n is created (n - 1) / rate after the first.
    assert done.seconds == pytest.approx(999 / 5 + 3)
    assert done.created == 1_000
    assert done.peak == pytest.approx(5 * 3, abs=1)  # Little: rate x time
    assert done.dollars == pytest.approx(1_000 * 3 * 0.5)
    assert done.utilisation == pytest.approx(1 / 3)
    long = simulate(naive, Work(fixed(58.0), start=fixed(2.0)), 1_000)
    assert long.peak == 100  # never 101, for one is created as another ends
    # Ten rounds of a minute; each place is refilled as it falls free.
    assert long.seconds == pytest.approx(10 * 60 + 99 / 5)


def test_a_burst_is_free_and_then_the_rate_bites():
    policy = Policy("fresh", 1_000, True, creates_per_second=5, burst=150)
    done = simulate(policy, Work(fixed(0.5)), 400)
    assert done.seconds == pytest.approx((400 - 150) / 5 + 0.5)
    assert np.sum(done.finished <= 0.5 + 1e-9) == 150


def test_a_pool_is_paid_until_the_last_job_is_done():
    policy = Policy("pool", 2, creates_per_second=0.1, usd_per_second=1.0)
    done = simulate(policy, Work(fixed(4.0), start=fixed(1.0)), 4)
    # One: created at 0, jobs end at 5, 9, 13. The other: created at 10, ends at 15.
    assert sorted(done.finished) == [5, 9, 13, 15]
    assert done.sandbox_seconds == done.dollars == 15 + 5
    assert done.busy_seconds == 16 and done.utilisation == 0.8
    assert sorted(done.creation) == [1, 11]


def test_a_batch_ends_together_and_its_last_one_may_be_short():
    policy = Policy("pool", 1, batch=4)
    done = simulate(policy, Work(fixed(1.0), call=fixed(10.0)), 10)
    assert done.finished.tolist() == [14.0] * 4 + [28.0] * 4 + [40.0] * 2
    assert done.finish(50, 100) == [28.0, 40.0]
    two = simulate(Policy("pool", 1, batch=4, workers=2), Work(fixed(1.0)), 10)
    assert two.seconds == 2 + 2 + 1


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    places=st.integers(1, 9),
)
def test_a_pool_is_list_scheduling(times, places):
    draw = iter([np.array(times, float)])
    done = simulate(Policy("pool", places), Work(lambda *_: next(draw)), len(times))
    free = [0] * places
    ends = []
    for one in times:
        ends.append(heapq.heappop(free) + one)
        heapq.heappush(free, ends[-1])
    assert done.finished.tolist() == ends
    assert done.seconds >= max(sum(times) / places, max(times))


# --- queues --------------------------------------------------------------------------


def poisson(rate, n, seed=0):  # the simulator's own seed: they must not go together
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (3, 2.1), (10, 8.0)])
def test_waiting_is_as_erlang_says(servers, load):
    n = 200_000
    found = simulate(
        Policy("M/M/c", servers), Work(exponential(1.0)), n, arrivals=poisson(load, n)
    )
    waits, mean = erlang_c(load, 1.0, servers)
    assert (found.waited > 1e-9).mean() == pytest.approx(waits, rel=0.03)
    assert found.waited.mean() == pytest.approx(mean, rel=0.08)


def test_erlang_c_against_hand_computed_cases():
    share, wait = erlang_c(0.5, 1.0, 1)  # M/M/1: rho waits, rho / (mu - lambda)
    assert share == pytest.approx(0.5) and wait == pytest.approx(0.5 / 0.5)
    # M/M/2: C = 2 rho^2 / (1 + rho)
    assert erlang_c(1.0, 1.0, 2)[0] == pytest.approx(2 * 0.25 / 1.5)
    assert erlang_c(900.0, 1.0, 1_000)[0] < 0.01  # no factorial overflows
    with pytest.raises(ValueError, match="busy servers are needed"):
        erlang_c(2.0, 1.0, 2)


def test_waiting_of_fixed_times_is_half_that_of_m_m_1():
    n = 200_000
    arrivals = poisson(0.8, n)
    found = simulate(Policy("M/D/1", 1), Work(fixed(1.0)), n, arrivals=arrivals)
    _, mean = erlang_c(0.8, 1.0, 1)
    assert found.waited.mean() == pytest.approx(mean / 2, rel=0.05)


# --- steps of a training -------------------------------------------------------------


def test_a_synchronous_step_waits_for_its_slowest():
    done = train(10, 8, fixed(30.0), learn=10.0)
    assert (done.seconds, done.idle_seconds, done.dropped) == (400.0, 300.0, 0)
    assert done.idle == 0.75 and set(done.staleness) == {0}
    late = stragglers((40, 40), (120, 120), 0.01)
    steps, rollouts = 2_000, 64
    done = train(steps, rollouts, late, learn=20.0)
    waits = 1 - 0.99**rollouts
    assert done.seconds / steps == pytest.approx(60 + 80 * waits, rel=0.02)


def test_spare_rollouts_are_given_up():
    done = train(50, 8, fixed(30.0), learn=10.0, spare=2)
    assert done.seconds == 50 * 40 and done.dropped == 50 * 2
    late = stragglers((40, 40), (120, 120), 0.01)
    slow, quick = (train(300, 64, late, 20.0, spare=n) for n in (0, 6))
    assert quick.seconds < 0.7 * slow.seconds
    assert quick.dropped == 300 * 6 and len(quick.staleness) == 300 * 64


def test_an_asynchronous_trainer_is_held_up_by_no_straggler():
    late = stragglers((40, 40), (120, 120), 0.01)
    done = train(400, 64, late, learn=20.0, ahead=1.0)
    # 64 lanes bring 64 rollouts in a mean rollout, which is longer than the learning.
    assert done.seconds / 400 == pytest.approx(0.99 * 40 + 0.01 * 120, rel=0.03)
    assert 0.9 < done.staleness.mean() < 3 and done.dropped == 0
    busy = train(400, 64, late, learn=90.0, ahead=1.0)  # learning is the bottleneck
    assert busy.idle < 0.02 and busy.staleness.max() <= 4
    # What runs ahead is bounded, a straggler's age is not: the slower, the older.
    for slow in (400, 800):
        rare = stragglers((40, 40), (slow, slow), 0.01)
        oldest = train(100, 64, rare, learn=20.0, ahead=1.0).staleness.max()
        assert slow / 80 < oldest < slow / 20
    with pytest.raises(ValueError, match="only one"):
        train(1, 1, late, 1.0, spare=1, ahead=1)


# --- what is measured ----------------------------------------------------------------


def test_it_predicts_a_pool_that_sleeps():
    """Against a clock: threads that sleep, so that no load on the machine matters."""
    from concurrent.futures import ThreadPoolExecutor

    times = stragglers((0.01, 0.03), (0.1, 0.2), 0.05)(np.random.default_rng(3), 120)
    begun = time.perf_counter()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(time.sleep, times))
    seconds = time.perf_counter() - begun
    draw = iter([times])
    found = simulate(Policy("threads", 6), Work(lambda *_: next(draw)), 120)
    assert seconds == pytest.approx(found.seconds, rel=0.25)


def test_it_predicts_the_sandbox_pool_from_half_of_the_queries():
    jobs = [("warehouse", case["sql"]) for case in tidewater.load_cases()]
    with tidewater.open_pool(workers=1) as pool:
        pool.map(jobs[:20])
        begun = time.perf_counter()
        pool.map(jobs[::2])
        each = (time.perf_counter() - begun) / len(jobs[::2])
        begun = time.perf_counter()
        pool.map(jobs[1::2])
        seconds = time.perf_counter() - begun
    found = simulate(Policy("pool", 1), Work(fixed(each)), len(jobs[1::2]))
    # The machine may be busy with other things in one of the two halves.
    assert 0.4 < seconds / found.seconds < 2.5


# --- use -----------------------------------------------------------------------------


def test_a_hundred_thousand_jobs_take_seconds():
    naive = Policy("fresh", 100, fresh=True, creates_per_second=5)
    begun = time.perf_counter()
    done = simulate(naive, Work(fixed(0.001), start=fixed(2.0)), 100_000)
    assert time.perf_counter() - begun < 20
    assert done.seconds == pytest.approx(99_999 / 5 + 2.001)


def test_the_same_seed_gives_the_same_run():
    policy, work = Policy("pool", 3, batch=2), Work(exponential(1.0), exponential(2.0))
    one, same, other = (simulate(policy, work, 50, seed=s) for s in (4, 4, 5))
    assert one.finished.tolist() == same.finished.tolist() != other.finished.tolist()


def test_times_are_drawn_as_told():
    rng = np.random.default_rng(0)
    assert set(measured([1, 2, 5])(rng, 200)) == {1, 2, 5}
    drawn = stragglers((10, 40), (40, 120))(rng, 100_000)
    assert np.mean(drawn > 40) == pytest.approx(0.01, rel=0.1)
    assert drawn.min() >= 10 and drawn.max() <= 120


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Policy("p", 0), "sandboxes must be above 0"),
        (lambda: Policy("p", 1, creates_per_second=0), "creates_per_second"),
        (lambda: Policy("p", 1, usd_per_second=-1), "not negative"),
        (lambda: simulate(Policy("p", 1), Work(fixed(1)), 0), "jobs must be above 0"),
        (lambda: measured([]), "at least one"),
        (lambda: measured([math.nan]), "finite"),
        (lambda: stragglers((10, 40), (30, 120)), "usual <= late"),
        (lambda: exponential(0), "mean must be above 0"),
        (
            lambda: simulate(Policy("p", 1), Work(fixed(1)), 2, arrivals=[2, 1]),
            "in order",
        ),
        (lambda: train(0, 1, fixed(1), 1.0), "steps must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        wrong()

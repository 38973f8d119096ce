"""The simulator against closed forms, and against simpy."""

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.serving.simulate import Policy, Work, asynchronous, fixed, simulate


def test_creation_limits_short_jobs_and_containers_limit_long_ones():
    work = Work(fixed(1.0), start=fixed(2.0))
    naive = Policy("naive", 100, True, creates_per_second=5, usd_per_second=0.5)
    done = simulate(naive, work, 1_000)
    # The last of n is created (n - 1) / rate after the first.
    assert done.seconds == pytest.approx(999 / 5 + 3)
    assert done.created == 1_000
    assert done.peak == pytest.approx(5 * 3, abs=1)  # Little: rate x time
    assert done.dollars == pytest.approx(1_000 * 3 * 0.5)
    long = simulate(naive, Work(fixed(58.0), start=fixed(2.0)), 1_000)
    assert long.peak == 100  # never 101, for one is created as another ends
    # Ten rounds of a minute; each place is refilled as it falls free.
    assert long.seconds == pytest.approx(10 * 60 + 99 / 5)


def test_those_that_are_starting_can_be_the_limit():
    work = Work(fixed(4.0), start=fixed(10.0))
    policy = Policy("slow start", 1_000, True, creates_per_second=5, starting=2)
    done = simulate(policy, work, 100)
    # Two start every ten seconds, the second of each pair 0.2 s after the first.
    assert done.seconds == pytest.approx(49 * 10 + 0.2 + 10 + 4)
    assert done.peak == 4  # two start, two from the pair before work
    free = Policy("fast start", 1_000, True, creates_per_second=5, starting=51)
    # 5 a second x 10 s = 50 are starting: a limit above that binds nothing.
    assert simulate(free, work, 100).seconds == pytest.approx(99 / 5 + 14)


def test_a_pool_is_paid_until_the_last_job_is_done():
    policy = Policy("pool", 2, creates_per_second=0.1, usd_per_second=1.0)
    done = simulate(policy, Work(fixed(4.0), start=fixed(1.0)), 4)
    # One: created at 0, jobs end at 5, 9, 13. The other: created at 10, ends at 15.
    assert sorted(done.finished) == [5, 9, 13, 15]
    assert done.sandbox_seconds == done.dollars == 15 + 5


def test_a_batch_ends_together_and_its_last_one_may_be_short():
    policy = Policy("pool", 1, batch=4)
    done = simulate(policy, Work(fixed(1.0), call=fixed(10.0)), 10)
    assert done.finished.tolist() == [14.0] * 4 + [28.0] * 4 + [40.0] * 2
    two = simulate(Policy("pool", 1, batch=4, workers=2), Work(fixed(1.0)), 10)
    assert two.seconds == 2 + 2 + 1


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    gaps=st.lists(st.integers(0, 4), min_size=60, max_size=60),
    places=st.integers(1, 9),
)
def test_a_pool_is_a_resource_of_simpy(times, gaps, places):
    arrivals = np.cumsum(gaps[: len(times)]).astype(float)
    env, ends = simpy.Environment(), {}
    pool = simpy.Resource(env, places)

    def job(number):
        yield env.timeout(arrivals[number])
        with pool.request() as place:
            yield place
            yield env.timeout(times[number])
        ends[number] = env.now

    for number in range(len(times)):
        env.process(job(number))
    env.run()
    work = Work(lambda rng, n: np.array(times, float))
    done = simulate(Policy("pool", places), work, len(times), arrivals=arrivals)
    assert done.finished.tolist() == [ends[number] for number in range(len(times))]


def test_an_asynchronous_trainer_waits_less_and_learns_from_older_models():
    # All end at 10, 20, 30: the first step waits 10 s, learns 4 s, waits 6 s, ...
    idle, stale = asynchronous(fixed(10.0), size=3, learn=4.0, steps=3)
    assert idle == 10 + 6 + 6
    # Those that began at 10 began before the first update, at 14.
    assert stale == [0] * 3 + [1] * 6
    # Where learning takes longer than rollouts, the trainer never waits again.
    idle, stale = asynchronous(fixed(10.0), size=3, learn=25.0, steps=4)
    assert idle == 10 and stale[::3] == [0, 1, 2, 3]

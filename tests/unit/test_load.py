"""The load that a promise allows: by hand, against closed forms and a simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.costs.load import (
    Promise,
    at_promise,
    erlang_c,
    highest_load,
    keeps,
    machines_for,
    quantile,
    share_later,
    times_like,
)
from utils.costs.prices import MONTH
from utils.serving import simulate

near = pytest.approx
N = 4_000
# A second on average, without memory: the quantiles of the exponential distribution.
EXPONENTIAL = -np.log1p(-(np.arange(N) + 0.5) / N)
RUN = Path(__file__).parents[2] / "data" / "runs" / "09_load" / "result.json"


@pytest.fixture(scope="module")
def measured():
    loads = json.loads(RUN.read_text(encoding="utf-8"))["loads"]
    alone = next(load for load in loads if load["clients"] == 1)  # nobody waits
    return [seconds for _, _, seconds, *_ in alone["rows"]]


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_one_server_without_memory_is_m_m_1(load):
    # The response time of M/M/1 is exponential, with mean 1 / (1 - load).
    assert erlang_c(load, 1) == near(load)
    assert quantile(EXPONENTIAL, 1, load, 0.5) == near(
        math.log(2) / (1 - load), rel=0.01
    )
    assert quantile(EXPONENTIAL, 1, load, 0.95) == near(
        math.log(20) / (1 - load), rel=0.01
    )
    # Half within 2 s: load up to 1 - ln(2) / 2. 95 of 100 within 20 s: 1 - ln(20) / 20.
    assert highest_load(EXPONENTIAL, 1, Promise(2, 99)) == near(0.653, abs=0.005)
    assert highest_load(EXPONENTIAL, 1, Promise(99, 20)) == near(0.850, abs=0.005)


def test_erlangs_formula_by_hand():
    # Two servers, one call's work at a time: 1/3 of the calls wait.
    assert erlang_c(0.5, 2) == near(1 / 3)
    assert erlang_c(0.8, 400) < 0.001  # and no factorial overflows


def test_fixed_times_wait_half_as_long_as_those_without_memory():
    # One server, half busy: half of the calls wait, one second's half / 0.5 on average.
    late = share_later([1.0], 1, 0.5, 2.0)
    assert late == near(0.5 * math.exp(-1 / (0.5 / 0.5)))
    assert share_later([1.0], 1, 0.5, 0.9) == 1  # an answer itself takes longer


def test_a_machine_at_the_promise_by_hand():
    # Fixed times of 2 s, promised 2.5 s: 0.05 wait longer than half a second.
    found = at_promise([2.0], 3, Promise(2.5, 2.5), usd_per_hour=3.6, peak=2)
    assert found.p95 == near(2.5, rel=1e-3)
    assert found.answers_per_second == near(found.load * 3 / 2)
    assert found.utilisation == near(found.load / 2)
    assert found.answers_a_month == near(found.answers_per_second / 2 * MONTH)
    # Three machines, each a thousandth of a dollar a second.
    assert found.usd_per_answer == near(0.003 / (found.answers_per_second / 2))
    assert found.usd_a_month == near(0.003 * MONTH)


def test_a_promise_that_no_load_keeps():
    slow = at_promise([3.0], 8, Promise(2, 4), 1.0)
    assert slow.load == 0 and slow.usd_per_answer == math.inf
    with pytest.raises(ValueError, match=r"no number of machines.* 3\.00 s"):
        machines_for([3.0], 1_000, Promise(2, 4))


@pytest.mark.parametrize("times", [[], [0.0], [-1.0], [float("nan")]])
def test_times_that_cannot_be(times):
    with pytest.raises(ValueError, match="seconds above 0"):
        share_later(times, 1, 0.5, 1.0)
    with pytest.raises(ValueError, match="load of 0 to below 1"):
        share_later([1.0], 1, 1.0, 1.0)


def test_a_volume_takes_the_fewest_machines(measured):
    promise = Promise(1, 2)
    machines = machines_for(measured, 10e6, promise, peak=2)
    load = 10e6 * 2 / MONTH * float(np.mean(measured)) / machines
    assert load <= highest_load(measured, machines, promise)
    fewer = load * machines / (machines - 1)
    assert fewer >= 1 or not keeps(measured, machines - 1, fewer, promise)
    # Four answers at a time on a machine, each as long: a quarter of the machines.
    shared = machines_for(measured, 10e6, promise, peak=2, slots=4)
    assert shared == math.ceil(machines / 4)


@settings(max_examples=25, deadline=None)
@given(
    volume=st.floats(1e3, 1e8),
    more=st.floats(1, 10),
    spread=st.floats(0.1, 1),
    p95=st.floats(1.5, 9),
)
def test_more_calls_never_need_fewer_machines(volume, more, spread, p95):
    times, promise = times_like(0.5, spread / 2), Promise(1, p95)
    if not keeps(times, 1, 0, promise):
        return
    few = machines_for(times, volume, promise)
    many = machines_for(times, volume * more, promise)
    assert few <= many <= math.ceil(more * few)


@pytest.mark.parametrize("machines", [1, 2, 4, 8])
def test_the_measured_times_against_a_simulation(measured, machines):
    promise = Promise(1.0, 2.0)
    load = highest_load(measured, machines, promise)
    calls, rng = 60_000, np.random.default_rng(0)
    gaps = rng.exponential(np.mean(measured) / (load * machines), calls)
    arrivals = np.cumsum(gaps)
    done = simulate.simulate(
        simulate.Policy("queue", machines),
        simulate.Work(simulate.measured(measured)),
        calls,
        arrivals=arrivals,
    )
    median, p95 = np.quantile(done.finished - arrivals, [0.5, 0.95])
    # The slower of the two stands at the promise: never more than a twelfth over it.
    assert median < 1.0 * 1.08 and p95 < 2.0 * 1.08
    assert max(median / 1.0, p95 / 2.0) > 0.85


def test_times_like_have_that_mean_and_spread():
    times = times_like(0.9, 0.36)
    assert times.mean() == near(0.9) and times.std() == near(0.36, rel=0.05)
    assert times_like(0.9, 0).tolist() == near([0.9] * 200)

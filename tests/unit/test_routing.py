"""Routing: the ends of the curve are its parts, and the rest by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.costs import routing

SURE = [0.9, 0.1, 0.5, 0.5]
SMALL = [True, False, True, False]
LARGE = [True, True, False, True]

some_cases = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


def test_a_point_by_hand():
    # Only the second is below 0.5: small 1 + large 8 a quarter of the time.
    point = routing.at(0.5, SURE, SMALL, LARGE, 1.0, 8.0)
    assert point.share == 0.25 and point.usd == pytest.approx(3.0)
    assert point.right == [True, True, True, False]
    assert point.passed == [False, True, False, False]
    assert point.spent == [1, 9, 1, 1]
    # Each case has its own price at the large model.
    point = routing.at(0.6, SURE, SMALL, LARGE, 1.0, [100, 2, 4, 6])
    assert point.share == 0.75 and point.usd == pytest.approx(4.0)
    assert point.spent == [1, 3, 5, 7]
    assert point.right == [True, True, False, True]


def test_equal_signals_are_passed_on_together():
    shares = [p.share for p in routing.curve(SURE, SMALL, LARGE, 1.0, 8.0)]
    assert shares == [0, 0.25, 0.75, 1]


@given(some_cases)
def test_the_ends_of_the_curve_are_the_parts(cases):
    signal, small, large = cases
    first, *_, last = routing.curve(signal, small, large, 1.0, 8.0)
    assert first.right == small and first.share == 0 and first.usd == 1.0
    assert last.right == large and last.share == 1 and last.usd == 9.0


@given(some_cases)
def test_no_point_is_worse_than_both_parts_have_in_common(cases):
    signal, small, large = cases
    points = routing.curve(signal, small, large, 1.0, 8.0)
    for point in points:
        triples = zip(point.right, small, large, strict=True)
        assert all(min(a, b) <= r <= max(a, b) for r, a, b in triples)
        assert np.mean(point.spent) == pytest.approx(point.usd)
        assert np.mean(point.passed) == pytest.approx(point.share)
    costs = [point.usd for point in points]
    assert costs == sorted(costs)


@given(some_cases)
def test_with_a_large_model_that_is_always_right_more_is_never_worse(cases):
    signal, small, _ = cases
    points = routing.curve(signal, small, [True] * len(small), 1.0, 8.0)
    rights = [sum(point.right) for point in points]
    assert rights == sorted(rights) and rights[-1] == len(small)


@given(some_cases, st.floats(0, 1))
def test_the_threshold_keeps_no_more_wrong_answers_than_allowed(cases, most):
    signal, small, _ = cases
    step = routing.threshold(signal, small, most)
    kept = np.asarray(signal) >= step
    assert (kept & ~np.array(small)).mean() <= most
    lower = [s for s in signal if s < step]
    if lower:  # the next lower threshold would have kept too many
        more = np.asarray(signal) >= max(lower)
        assert (more & ~np.array(small)).mean() > most


def test_a_threshold_by_hand():
    assert routing.threshold(SURE, SMALL, 0.5) == -math.inf
    assert routing.threshold(SURE, SMALL, 0.25) == 0.5
    assert routing.threshold(SURE, SMALL, 0.0) == 0.9
    assert routing.threshold([1.0, 1.0], [True, False], 0.0) == math.inf
    with pytest.raises(ValueError, match="share"):
        routing.threshold(SURE, SMALL, 5)


def test_auroc_by_hand():
    # pairs: 0.9 beats 0.1 and 0.5; 0.5 beats 0.1 and ties with 0.5
    assert routing.auroc(SURE, SMALL).value == pytest.approx(3.5 / 4)
    assert routing.auroc([3, 2, 1], [True, False, False]).value == 1
    assert routing.auroc([1, 1, 1], [True, False, False]).value == 0.5


def test_auroc_of_noise_has_the_half_in_its_interval():
    rng = np.random.default_rng(1)
    area = routing.auroc(rng.random(300), rng.random(300) < 0.8)
    assert area.low < 0.5 < area.high and area.high - area.low < 0.3
    assert area == routing.auroc(
        np.random.default_rng(1).random(300), _flags_after(1, 300)
    )


def _flags_after(seed, n):
    rng = np.random.default_rng(seed)
    rng.random(n)
    return rng.random(n) < 0.8


def test_bad_columns_are_refused():
    with pytest.raises(ValueError, match="one signal a case"):
        routing.curve([1.0], SMALL, LARGE, 1, 8)
    with pytest.raises(ValueError, match="not a number"):
        routing.auroc([1, math.nan, 1, 1], SMALL)
    with pytest.raises(ValueError, match="True and False"):
        routing.auroc(SURE, [0.5, 1, 0, 1])
    with pytest.raises(ValueError, match="both right and wrong"):
        routing.auroc(SURE, [True] * 4)
    with pytest.raises(ValueError, match="less than nothing"):
        routing.at(0, SURE, SMALL, LARGE, -1, 8)

"""Routing: the ends of the curve are its parts, and the rest by hand."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from utils.costs.routing import Cascade, auroc, choose_threshold

SURE = [0.9, 0.1, 0.5, 0.5]
SMALL = [True, False, True, False]
LARGE = [True, True, False, True]


def test_a_point_by_hand():
    # Only the second is below 0.5: small 1 + large 8 a quarter of the time.
    point = Cascade(SURE, SMALL, LARGE, 1.0, 8.0).at(0.5)
    assert point.deferral_rate == 0.25 and point.usd == pytest.approx(3.0)
    assert point.correct == [True, True, True, False]
    assert point.deferred == [False, True, False, False]
    # Each case has its own price at the large model.
    point = Cascade(SURE, SMALL, LARGE, 1.0, [100, 2, 4, 6]).at(0.6)
    assert point.deferral_rate == 0.75 and point.usd == pytest.approx(4.0)
    assert point.correct == [True, True, False, True]
    # Equal confidences are deferred together.
    points = Cascade(SURE, SMALL, LARGE, 1.0, 8.0).curve()
    assert [point.deferral_rate for point in points] == [0, 0.25, 0.75, 1]


def test_a_threshold_by_hand():
    assert choose_threshold(SURE, SMALL, 0.5) == -math.inf
    assert choose_threshold(SURE, SMALL, 0.25) == 0.5
    assert choose_threshold(SURE, SMALL, 0.0) == 0.9
    assert choose_threshold([1.0, 1.0], [True, False], 0.0) == math.inf


def test_auroc_by_hand_and_as_scipy_has_it():
    # pairs: 0.9 beats 0.1 and 0.5; 0.5 beats 0.1 and ties with 0.5
    assert auroc(SURE, SMALL).value == pytest.approx(3.5 / 4)
    assert auroc([1, 1, 1], [True, False, False]).value == 0.5
    rng = np.random.default_rng(1)
    noise, right = rng.random(300).round(2), rng.random(300) < 0.8
    area = auroc(noise, right)
    u = mannwhitneyu(noise[right], noise[~right]).statistic
    assert area.value == pytest.approx(u / right.sum() / (~right).sum())
    assert area.low < 0.5 < area.high and area.high - area.low < 0.3

"""Which answers of a small model to defer to a large one, and what comes of it.

A confidence is a number for each answer that knows nothing of the right one. Answers
below a threshold are deferred: the large model is asked too, and its answer counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from utils.evals.stats import Interval


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold: the share deferred, and what an answer then costs in USD."""

    deferral_rate: float
    usd: float
    correct: list[bool]  # for each case, of the answer that counts
    deferred: list[bool]  # which cases the large model is asked


@dataclass(frozen=True)
class Cascade:
    """A small model and a large one behind it, on the same cases.

    `small_usd` is what an answer with its confidence costs, `large_usd` what one of the
    large model costs: one number, or one for each case.
    """

    confidence: ArrayLike
    small_correct: Sequence[bool]
    large_correct: Sequence[bool]
    small_usd: float
    large_usd: ArrayLike

    def at(self, threshold: float) -> OperatingPoint:
        """Defer what is below the threshold: -inf defers nothing, inf everything."""
        deferred = _checked(self.confidence) < threshold
        correct = np.where(deferred, self.large_correct, self.small_correct)
        paid = np.asarray(self.large_usd, float) * deferred
        return OperatingPoint(
            deferral_rate=float(deferred.mean()),
            usd=self.small_usd + float(paid.mean()),
            correct=correct.tolist(),
            deferred=deferred.tolist(),
        )

    def curve(self) -> list[OperatingPoint]:
        """Every threshold that makes a difference, from deferring nothing to all."""
        return [self.at(step) for step in _thresholds(_checked(self.confidence))]


def choose_threshold(
    confidence: ArrayLike, correct: Sequence[bool], most_wrong: float
) -> float:
    """Find the lowest threshold that keeps few enough wrong answers.

    Chosen on cases where only the small model's correctness is known: of all cases, at
    most the share `most_wrong` may be wrong and not deferred.
    """
    values, wrong = _checked(confidence), ~np.asarray(correct, bool)
    steps = _thresholds(values)
    return next(t for t in steps if ((values >= t) & wrong).mean() <= most_wrong)


def auroc(confidence: ArrayLike, correct: Sequence[bool]) -> Interval:
    """How often a right answer has a higher confidence than a wrong one; equal: a half.

    That is Mann and Whitney's U over the number of pairs (1947), the area under the ROC
    curve: 0.5 is chance. Percentile interval over resampled cases; a replicate in which
    all are right, or all wrong, says nothing and is left out.
    """
    values, labels = _checked(confidence), np.asarray(correct, bool)
    n = len(labels)
    chosen = np.random.default_rng(0).integers(n, size=(2_000, n))
    low, high = np.nanquantile(_area(values[chosen], labels[chosen]), [0.025, 0.975])
    return Interval(float(_area(values, labels)), float(low), float(high), n)


def _area(values: NDArray, labels: NDArray) -> NDArray:
    """Give the AUROC along the last axis, NaN where all are right or all wrong."""
    right = labels.sum(axis=-1)
    pairs = right * (labels.shape[-1] - right)
    u = (rankdata(values, axis=-1) * labels).sum(axis=-1) - right * (right + 1) / 2
    return np.divide(u, pairs, out=np.full(np.shape(u), np.nan), where=pairs > 0)


def _thresholds(values: NDArray) -> list[float]:
    """Equal confidences are deferred together."""
    return [-np.inf, *np.unique(values)[1:].tolist(), np.inf]


def _checked(confidence: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(confidence, float)
    if np.isnan(values).any():  # it would never be deferred
        raise ValueError("a confidence is not a number: give such an answer -inf")
    return values

"""Which answers of a small model to pass on to a large one, and what comes of it.

A signal is a number for each answer, the higher the surer, that knows nothing of the
right answer. Answers whose signal is below a threshold are asked again of the large
model; its answer then counts, and both are paid. Answers of one signal go together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from utils.evals.stats import Interval


@dataclass(frozen=True)
class Point:
    """One threshold: the share passed on, and what an answer then costs in USD."""

    threshold: float
    share: float
    usd: float
    right: list[bool]  # for each case, of the answer that counts
    passed: list[bool]  # which cases are passed on
    spent: list[float]  # USD of each case: `usd` is their mean


def auroc(
    signal: ArrayLike,
    right: Sequence[bool],
    replicates: int = 2_000,
    seed: int = 0,
) -> Interval:
    """How often a right answer has a higher signal than a wrong one; equal: a half.

    That is Mann and Whitney's U over the number of pairs (1947), the area under the ROC
    curve: 0.5 is chance. Percentile interval over resampled cases; a replicate in which
    all are right, or all wrong, says nothing and is left out. Raises ValueError where
    the cases themselves are so.
    """
    values, flags = _columns(signal, right)
    if flags.all() or not flags.any():
        raise ValueError("rating a signal takes both right and wrong answers")
    chosen = np.random.default_rng(seed).integers(
        len(flags), size=(replicates, len(flags))
    )
    drawn = _areas(values[chosen], flags[chosen])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    (value,) = _areas(values[None], flags[None])
    return Interval(float(value), float(low), float(high), len(flags))


def at(
    threshold: float,
    signal: ArrayLike,
    small: Sequence[bool],
    large: Sequence[bool],
    small_usd: float,
    large_usd: ArrayLike,
) -> Point:
    """Pass on what is below the threshold.

    Args:
        threshold: -inf passes nothing on, inf everything.
        signal: of each answer of the small model.
        small: whether it is right.
        large: whether the large model's is.
        small_usd: an answer of the small model, with what its signal costs.
        large_usd: an answer of the large model; one number, or one for each case.

    """
    values, first = _columns(signal, small)
    _, second = _columns(signal, large)
    price = np.broadcast_to(np.asarray(large_usd, float), values.shape)
    if not (small_usd >= 0 and (price >= 0).all()):
        raise ValueError("an answer cannot cost less than nothing")
    passed = values < threshold
    spent = small_usd + price * passed
    right = np.where(passed, second, first)
    share, usd = float(passed.mean()), small_usd + float((price * passed).mean())
    flags = right.tolist(), passed.tolist()
    return Point(float(threshold), share, usd, *flags, spent.tolist())


def curve(
    signal: ArrayLike,
    small: Sequence[bool],
    large: Sequence[bool],
    small_usd: float,
    large_usd: ArrayLike,
) -> list[Point]:
    """Every threshold that makes a difference, from nothing passed on to everything."""
    steps = [-np.inf, *np.unique(np.asarray(signal, float))[1:], np.inf]
    return [at(t, signal, small, large, small_usd, large_usd) for t in steps]


def threshold(signal: ArrayLike, small: Sequence[bool], most_wrong: float) -> float:
    """Find the lowest threshold that keeps few enough wrong answers.

    Chosen on cases where only the small model's rightness is known: of all cases, at
    most the share `most_wrong` may be wrong and not passed on.
    """
    values, right = _columns(signal, small)
    if not 0 <= most_wrong <= 1:
        raise ValueError(f"most_wrong is a share, 0 to 1, not {most_wrong}")
    for step in (-np.inf, *np.unique(values)[1:], np.inf):
        if ((values >= step) & ~right).mean() <= most_wrong:
            return float(step)
    raise AssertionError("nothing is kept at an infinite threshold")


def _areas(values: NDArray, flags: NDArray) -> NDArray:
    """Give the area of each row, NaN where all are right or all wrong."""
    ones = flags.sum(axis=1)
    pairs = ones * (flags.shape[1] - ones)
    won = (rankdata(values, axis=1) * flags).sum(axis=1) - ones * (ones + 1) / 2
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def _columns(signal: ArrayLike, right: Sequence[bool]) -> tuple[NDArray, NDArray]:
    values, flags = np.asarray(signal, float), np.asarray(right)
    if values.ndim != 1 or not len(values) or len(values) != len(flags):
        raise ValueError(
            f"need one signal a case, not {values.shape} for {len(flags)} cases"
        )
    if np.isnan(values).any():
        raise ValueError("a signal is not a number: give it the lowest value instead")
    if not set(flags.tolist()) <= {0, 1}:
        raise ValueError("right must hold True and False only")
    return values, flags.astype(bool)

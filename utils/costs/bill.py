"""A bill at any volume: own machines, calls passed on, people, an API at its best.

Prices are USD, shares fractions of 1. How many machines a volume takes follows from
measured times and a promise (`utils.costs.load`); no utilisation is assumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from utils.costs.load import Capacity, Promise, keeps, machines_for
from utils.costs.prices import MONTH, Prices, TokenPrice, cached_call_cost, call_cost
from utils.evals.stats import Interval

FEWEST, MOST = 1e3, 1e10  # questions a month: where a break-even is looked for

WORDS = {
    "as right": "as right",
    "less right": "less right",
    "open": "perhaps as right, which so few cases leave open",
}


def judge_quality(gap: Interval, margin: float) -> str:
    """Say what a paired difference to the best system shows.

    'as right': the whole interval lies above -margin. 'less right': all of it lies
    below. Else 'open'.
    """
    if gap.low >= -margin:
        return "as right"
    return "less right" if gap.high < -margin else "open"


def judge_claim(quality: str, ratio: float, wanted: float = 0.2) -> str:
    """Judge the claim 'as right, for `wanted` of the price' by `ratio` of the prices.

    What is less right never stands, however cheap it is.
    """
    if quality == "less right" or ratio > wanted:
        return "falls"
    return "stands" if quality == "as right" else "open"


def cases_to_settle(gap: Interval, margin: float) -> float:
    """Count the cases that take -margin out of the interval, if the gap stays.

    An interval shrinks with the square root of the cases. Infinite at -margin itself.
    """
    away = abs(gap.value + margin)
    half = gap.value - gap.low if gap.value > -margin else gap.high - gap.value
    return gap.n * (half / away) ** 2 if away > 1e-12 else math.inf


def quality_row(right: Interval, gap: Interval, margin: float) -> dict[str, str]:
    """Write what is known of a system's quality, for a table."""
    word = judge_quality(gap, margin)
    needed = f"{cases_to_settle(gap, margin):,.0f}" if word == "open" else ""
    row = {"right": right.percent(), "beside the best prompt": gap.points()}
    return row | {"so it is": word, "cases that would settle it": needed}


def capacity_row(found: Capacity) -> dict[str, str]:
    """Write what machines carry while they keep the promise, for a table."""
    return {
        "busy at the peak": f"{found.load:.0%}",
        "busy over the month": f"{found.utilisation:.0%}",
        "questions a month": f"{found.answers_a_month:,.0f}",
        "USD per 1,000 answers": f"{1000 * found.usd_per_answer:.4f}",
    }


def price_table(prices: Prices, names: Sequence[str]) -> pd.DataFrame:
    """List prices with source, address and date, and say which are over 90 days old."""
    kept = {"input", "cached_input", "output", "price", "source", "url", "date"}
    entries = prices.models | prices.compute
    rows = {name: entries[name].model_dump(include=kept) for name in names}
    old = {line.split(":")[0] for line in prices.stale()}
    for name, row in rows.items():
        row["look it up"] = "yes" if name in old else "no"
    return pd.DataFrame(rows).T.fillna("").astype(str).rename_axis("USD")


def peak_over_mean(times: Sequence[datetime]) -> float:
    """Questions in the day's busiest hour over the mean of its 24 hours."""
    hours = np.bincount([time.hour for time in times], minlength=24)
    return float(hours.max() / hours.mean())


def gaps_in_minutes(times: Sequence[datetime]) -> NDArray[np.float64]:
    """Minutes between questions, which may come in any order."""
    return np.diff([time.timestamp() for time in sorted(times)]) / 60


def misses(gaps: ArrayLike, minutes: float, growth: float = 1.0) -> float:
    """Share of the gaps, in minutes, that outlast `minutes` at `growth` x the traffic.

    So many calls find the prompt gone from a cache, or a machine asleep.
    """
    return float(np.mean(np.asarray(gaps) / growth > minutes))


def service_times(
    loads: Sequence[dict[str, Any]], quantization: str
) -> tuple[list[float], dict[str, Any]]:
    """Return seconds of answers that waited for nobody, and the load that they are of.

    Of the loads with one client an engine it is the one with the most engines: all
    cores are at work then. Raises LookupError where there is none.
    """
    alone = [one for one in loads if one["clients"] == one["engines"]]
    alone = [one for one in alone if one["quantization"] == quantization]
    if not alone:
        raise LookupError(f"no load of {quantization} has one client an engine")
    load = max(alone, key=lambda one: one["engines"])
    rows = load["rows"]
    return [seconds for _, _, seconds, status, _ in rows if status == 200], load


@dataclass(frozen=True)
class Comparison:
    """An own system beside an API that is asked at its best, at any volume a month."""

    seconds: ArrayLike  # service times of one server
    slots: int  # servers of a machine
    promise: Promise
    usd_per_hour: float  # of a machine
    peak: float  # busiest hour over mean: machines for the peak are on all month
    price: TokenPrice
    tokens_in: ArrayLike  # of each call to the API
    tokens_out: ArrayLike
    gaps: ArrayLike  # minutes between the log's questions
    logged: float  # the log's questions a month
    own_right: float
    api_right: float
    passed: float = 0.0  # share of the questions that ours passes on to the API
    people: float = 0.0  # USD a month: reviews, retraining, being on call
    once: float = 0.0  # USD: engineers, reviews, training
    months: float = 12.0  # in which `once` is earned back
    thinking: float = 0.0  # tokens that the API thinks before it answers
    tokens_cost: float = 1.0  # times the list price of tokens
    faster: float = 1.0  # times the measured speed

    def call(self, volume: float) -> tuple[float, str]:
        """USD of a call by the cheapest way, and that way's name."""
        into, out = np.mean(self.tokens_in), np.mean(self.tokens_out) + self.thinking
        prefix = int(np.min(self.tokens_in))  # calls share no more than this
        ways = {"no cache": call_cost(self.price, into, out)}
        for write in self.price.cache.writes if self.price.cache else ():
            missed = misses(self.gaps, write.minutes, volume / self.logged)
            terms = (prefix, write.minutes, missed)
            usd = cached_call_cost(self.price, into, out, *terms)
            ways[f"{write.minutes:g}-minute cache"] = usd
        way = min(ways, key=ways.get)
        return self.tokens_cost * ways[way], way

    def api(self, volume: float) -> float:
        """USD of a right answer of the API."""
        return self.call(volume)[0] / self.api_right

    def machines(self, volume: float) -> float:
        """Fewest machines that keep the promise at the peak; infinite: none do."""
        seconds = np.asarray(self.seconds) / self.faster
        if not keeps(seconds, 1, 0.0, self.promise):
            return math.inf
        return machines_for(seconds, volume, self.promise, self.peak, self.slots)

    def running(self, volume: float) -> float:
        """USD of a right answer of ours: machines, and the calls passed on.

        These come more rarely than calls of all questions, and miss the cache more.
        """
        month = self.machines(volume) * self.usd_per_hour * MONTH / 3600
        passed = self.passed and self.passed * self.call(self.passed * volume)[0]
        return (month / volume + passed) / self.own_right

    def wrong_answer(self, volume: float) -> float:
        """USD that a wrong answer may cost before the more accurate system is cheaper.

        Running costs alone: 0 where ours costs more an answer, infinite where it costs
        less and is as right.
        """
        cheaper = self.call(volume)[0] - self.running(volume) * self.own_right
        fewer = self.api_right - self.own_right
        return max(0.0, cheaper) / fewer if fewer > 0 else math.inf

    def all_in(self, volume: float) -> float:
        """USD of a right answer of ours, with people and what is paid once."""
        fixed = self.people + self.once / self.months
        return self.running(volume) + fixed / volume / self.own_right

    def break_even(self) -> float:
        """Questions a month from which ours is cheaper, all in; infinite: never.

        Machines come in whole ones, so close to it the two may cross more than once.
        """
        low, high = FEWEST, MOST
        if self.all_in(high) > self.api(high):
            return math.inf
        for _ in range(14):  # to a thousandth
            middle = math.sqrt(low * high)
            dearer = self.all_in(middle) > self.api(middle)
            low, high = (middle, high) if dearer else (low, middle)
        return high


def swings(
    centre: Comparison, knobs: dict[str, tuple[str, Any, Any]]
) -> dict[str, tuple[float, float]]:
    """Break-even volume at both ends of each knob, the widest swing first.

    A knob is a setting of the Comparison with two values; the others stay the centre's.
    """
    found = {}
    for name, (setting, *ends) in knobs.items():
        low, high = (replace(centre, **{setting: end}).break_even() for end in ends)
        found[name] = low, high

    def width(name: str) -> float:
        finite = [min(volume, 1e15) for volume in found[name]]  # never is the widest
        return max(finite) / min(finite)

    return {name: found[name] for name in sorted(found, key=width, reverse=True)}


def explain(before: dict[str, bool | None], after: dict[str, bool | None]) -> str:
    """Say which signals differ: why the same rule gives another verdict, or not."""
    words = {True: "on", False: "off", None: "not measured"}
    changes = [
        f"{name} was {words[before[name]]} and is {words[after[name]]}"
        for name in after
        if before[name] is not after[name]
    ]
    return "; ".join(changes) or "no signal changed"


def count(volume: float) -> str:
    """Write a volume to two digits, such as '4.2 million', or 'no volume'."""
    if not math.isfinite(volume):
        return "no volume"
    rounded = float(f"{volume:.2g}")
    return f"{rounded / 1e6:g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def plain(value: Any) -> Any:
    """Put None for infinite numbers, at any depth: JSON has none."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    infinite = isinstance(value, float) and not math.isfinite(value)
    return None if infinite else value

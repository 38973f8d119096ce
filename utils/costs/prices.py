"""What a call and a correct answer cost, from a price file that says how old it is.

Prices rot, so `data/prices.json` gives each one a source and a day. Nothing here has
a default price: a model or a GPU that the file lacks is an error.
"""

import datetime as dt
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PRICE_FILE = Path(__file__).parents[2] / "data" / "prices.json"
MONTH = 365.25 / 12 * 24 * 3600  # seconds


class UnknownPrice(LookupError):  # noqa: N818 - reads better than UnknownPriceError
    """The price file has no such entry."""


@dataclass(frozen=True)
class TokenPrice:
    """USD per million tokens; `batch_discount` is the fraction that a batch saves."""

    model: str
    input: float
    cached_input: float | None  # None: no cached price is known
    output: float
    batch_discount: float
    source: str
    date: dt.date


@dataclass(frozen=True)
class ComputePrice:
    """Price of one kind of compute, in `unit` (for a GPU: usd_per_hour)."""

    name: str
    price: float
    unit: str
    source: str
    date: dt.date


@dataclass(frozen=True)
class Prices:
    """All prices of one file: `models` by model name, `compute` by kind."""

    models: dict[str, TokenPrice]
    compute: dict[str, ComputePrice]

    def model(self, name: str) -> TokenPrice:
        """Price of a model; raises UnknownPrice."""
        return _find(self.models, name, "model")

    def gpu(self, name: str) -> ComputePrice:
        """USD per hour of a GPU, by Modal's name for it; raises UnknownPrice."""
        gpus = {k: p for k, p in self.compute.items() if p.unit == "usd_per_hour"}
        return _find(gpus, name, "GPU")

    def stale(self, today: dt.date | None = None, days: int = 90) -> list[str]:
        """One line for each price more than `days` old on `today`."""
        today = today or dt.date.today()
        ages = {
            f"{name}: {price.date}": (today - price.date).days
            for name, price in [*self.models.items(), *self.compute.items()]
        }
        return [f"{text}, {age} days old" for text, age in ages.items() if age > days]


def load_prices(path: Path = PRICE_FILE) -> Prices:
    """Read a price file; ValueError names an entry with a missing or wrong field."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    return Prices(
        {name: _entry(TokenPrice, name, it) for name, it in raw["models"].items()},
        {name: _entry(ComputePrice, name, it) for name, it in raw["compute"].items()},
    )


def call_cost(
    price: TokenPrice,
    input_tokens: ArrayLike,
    output_tokens: ArrayLike,
    cached_tokens: ArrayLike = 0,
    batch: bool = False,
) -> float | np.ndarray:
    """USD of one call, or of each call where the counts are arrays.

    `cached_tokens` is the part of `input_tokens` read from the cache. Without a cached
    price it is charged as plain input, which can only overstate the cost. Raises
    ValueError for negative counts and for more cached tokens than input tokens.
    """
    total, out, cached = map(np.asarray, (input_tokens, output_tokens, cached_tokens))
    if not (np.all(out >= 0) and np.all(cached >= 0) and np.all(cached <= total)):
        raise ValueError(
            "token counts must be 0 or more and cached_tokens at most input_tokens: "
            "count the cached tokens in input_tokens too"
        )
    cached_price = price.input if price.cached_input is None else price.cached_input
    usd = (total - cached) * price.input + cached * cached_price + out * price.output
    usd = usd * (1 - price.batch_discount if batch else 1) / 1e6
    return float(usd) if np.ndim(usd) == 0 else usd


def per_correct(cost_per_call: float, right: Any) -> tuple[float, float, float]:
    """USD per correct answer: (value, low, high), infinite where none is right.

    `right` is the share of right answers, 0 to 1, with its interval: any object with
    `value`, `low` and `high`. The cost of a call is taken as known, so the interval is
    that of the share carried through 1/x. Raises ValueError for a share in per cent.
    """
    shares = (right.value, right.high, right.low)
    if not (cost_per_call >= 0 and all(-1e-9 <= s <= 1 + 1e-9 for s in shares)):
        raise ValueError(f"want a cost >= 0 and shares 0 to 1: {cost_per_call, shares}")
    # Below 1e-9 a share is 0 that rounding has touched.
    value, low, high = (cost_per_call / s if s > 1e-9 else math.inf for s in shares)
    return value, low, high


def cpu_hour(prices: Prices, cores: float, memory_gib: float) -> float:
    """USD of an hour of a machine without a GPU, from the prices of core and memory."""
    cpu = _find(prices.compute, "cpu_core_second", "compute").price
    memory = _find(prices.compute, "memory_gib_second", "compute").price
    if not (cores > 0 and memory_gib >= 0):
        raise ValueError(f"want cores > 0 and memory >= 0, not {cores}, {memory_gib}")
    return 3600 * (cores * cpu + memory_gib * memory)


def answer_cost(
    usd_per_hour: float, answers_per_second: float, utilisation: float = 1.0
) -> float:
    """USD of an answer from a machine paid by the hour.

    `answers_per_second` is what it can do, `utilisation` the share of the paid time in
    which it does so, above 0 and at most 1.
    """
    if not (usd_per_hour >= 0 and answers_per_second > 0 and 0 < utilisation <= 1):
        raise ValueError(
            "want a price >= 0, answers a second > 0 and a utilisation above 0 and at "
            f"most 1: {usd_per_hour, answers_per_second, utilisation}"
        )
    return usd_per_hour / (3600 * answers_per_second * utilisation)


def utilisation_for(
    usd: float, usd_per_hour: float, answers_per_second: float
) -> float:
    """Utilisation at which an answer costs `usd`; above 1 none does, inf for usd <= 0.

    What an answer costs besides, such as the calls of a routed one, take off first.
    """
    full = answer_cost(usd_per_hour, answers_per_second)
    return full / usd if usd > 0 else math.inf


def paid_seconds(
    answers_per_second: float,
    per_month: float,
    idle_seconds: float = math.inf,
    cold_seconds: float = 0.0,
) -> float:
    """Seconds paid for an answer when machines sleep after `idle_seconds` of quiet.

    Questions come by chance (a Poisson process) to a machine that answers one after the
    other. Of its busy times, each followed by a quiet one, there are 1 - load for each
    answer; a quiet time is paid up to `idle_seconds`, and if it lasts longer the next
    answer pays a cold start. An infinite `idle_seconds` keeps the machine on. What
    queues behind a cold start is left out. Where the questions take more than one
    machine, as few as can carry them share them evenly.
    """
    if not (answers_per_second > 0 and per_month > 0):
        raise ValueError("want more than 0 answers a second, and a month")
    if not (idle_seconds >= 0 and cold_seconds >= 0):
        raise ValueError("idle_seconds and cold_seconds must be 0 or more")
    load = per_month / MONTH / answers_per_second
    machines = math.ceil(load)
    load, rate = load / machines, per_month / MONTH / machines
    asleep = math.exp(-rate * idle_seconds)
    quiet = (1 - asleep) / rate + asleep * cold_seconds
    return 1 / answers_per_second + (1 - load) * quiet


def break_even(fixed: float, own: float, rival: float) -> float:
    """Answers after which a saving of `rival - own` USD each has paid back `fixed`.

    Infinite where there is nothing to save. The prices may be per answer or per right
    answer; the result is in the same.
    """
    if not (fixed >= 0 and own >= 0 and rival >= 0):
        raise ValueError(f"want costs of 0 or more: {fixed, own, rival}")
    return fixed / (rival - own) if rival > own else math.inf


def wrong_answer_worth(
    own: float, own_right: float, rival: float, rival_right: float
) -> float:
    """USD that a wrong answer may cost before the cheaper, less right system loses.

    `own` and `rival` are USD an answer, the others shares of right answers. Infinite
    where ours is no dearer and no less right, 0 where it is dearer and no more right;
    ValueError where it is the dearer and more right one: then swap them.
    """
    if not (0 <= own_right <= 1 and 0 <= rival_right <= 1):
        raise ValueError(f"want shares from 0 to 1: {own_right, rival_right}")
    if own > rival and own_right > rival_right:
        raise ValueError("ours is the dearer and more right one: swap the two")
    if own_right >= rival_right:
        return math.inf if own <= rival else 0.0
    return max(0.0, (rival - own) / (rival_right - own_right))


def _find(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise UnknownPrice(
            f"no price for {what} {name!r}; known: {', '.join(sorted(table))}. "
            "Add it to data/prices.json with its source and date."
        )
    return table[name]


def _entry(kind: type, name: str, raw: dict[str, Any]) -> Any:
    values = []
    for field in [f.name for f in fields(kind)][1:]:
        value = raw.get(field)
        try:
            if field in ("unit", "source", "date"):
                ok = bool(value.strip())
                value = dt.date.fromisoformat(value) if field == "date" else value
            else:  # null is for the cached price alone, and must be written out
                unknown = field == "cached_input" and field in raw and value is None
                most = 1 if field == "batch_discount" else 1e9
                ok = unknown or (not isinstance(value, bool) and 0 <= value <= most)
        except (AttributeError, TypeError, ValueError):
            ok = False
        if not ok:
            raise ValueError(f"price of {name!r}: {field} missing or wrong: {value!r}")
        values.append(value)
    return kind(name, *values)

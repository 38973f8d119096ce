"""What a call and a correct answer cost, from a price file that says how old it is.

Prices rot, so `data/prices.json` gives each one a source, an address and a day. Nothing
here has a default price: a model or a GPU that the file lacks is an error.
"""

import datetime as dt
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, Field

PRICE_FILE = Path(__file__).parents[2] / "data" / "prices.json"
MONTH = 365.25 / 12 * 24 * 3600  # seconds
OLD_DAYS = 90  # prices older than that are told

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class UnknownPrice(LookupError):  # noqa: N818 - reads better than UnknownPriceError
    """The price file has no such entry."""


class Price(BaseModel, frozen=True, strict=True):
    """What every price has: where it was read, at which address, and on which day."""

    source: str = Field(pattern=r"\S")
    url: str = Field(pattern=r"^https?://\S+$")
    date: dt.date


class CacheWrite(BaseModel, frozen=True, strict=True):
    """USD per million tokens to cache a prefix that lives `minutes` after each use."""

    minutes: float = Field(gt=0)
    usd: Usd


class Cache(Price):
    """A vendor's prompt cache: it keeps no prefix shorter than `minimum` tokens."""

    minimum: int = Field(ge=0)
    writes: list[CacheWrite]


class TokenPrice(Price):
    """USD per million tokens; `batch_discount` is the fraction that a batch saves."""

    input: Usd
    cached_input: Usd | None  # None, written out: no cached price is known
    output: Usd
    batch_discount: float = Field(ge=0, le=1)
    cache: Cache | None = None  # None: not known


class HostedPrice(TokenPrice):
    """An open model of `billions` of parameters that somebody serves, tuned or not."""

    billions: float = Field(gt=0)


class ComputePrice(Price):
    """Price of one kind of compute, in `unit` (for a GPU: usd_per_hour)."""

    price: Usd
    unit: str


class Prices(BaseModel, frozen=True, strict=True):
    """All prices of one file: vendors' models, open ones that are hosted, machines."""

    models: dict[str, TokenPrice]
    hosted: dict[str, HostedPrice] = {}
    compute: dict[str, ComputePrice]

    def model(self, name: str) -> TokenPrice:
        """Price of a model; raises UnknownPrice."""
        return _find(self.models, name, "model")

    def gpu(self, name: str) -> ComputePrice:
        """USD per hour of a GPU, by Modal's name for it; raises UnknownPrice."""
        gpus = {k: p for k, p in self.compute.items() if p.unit == "usd_per_hour"}
        return _find(gpus, name, "GPU")

    def stale(self, today: dt.date | None = None, days: int = OLD_DAYS) -> list[str]:
        """One line for each price more than `days` old on `today`."""
        today = today or dt.date.today()
        lines = []
        for name, price in (self.models | self.hosted | self.compute).items():
            age = (today - price.date).days
            if age > days:
                lines.append(f"{name}: {price.date}, {age} days old")
        return lines


def load_prices(path: Path = PRICE_FILE) -> Prices:
    """Read a price file; ValueError names an entry with a missing or wrong field."""
    return Prices.model_validate_json(Path(path).read_text(encoding="utf-8"))


def call_cost(
    price: TokenPrice,
    input_tokens: ArrayLike,
    output_tokens: ArrayLike,
    cached_tokens: ArrayLike = 0,
    batch: bool = False,
) -> float | np.ndarray:
    """USD of one call, or of each call where the counts are arrays.

    `cached_tokens` is the part of `input_tokens` read from the cache; without a price
    of their own they are charged as plain input. Reasoning tokens are output. Raises
    ValueError for impossible counts.
    """
    total, out, cached = map(np.asarray, (input_tokens, output_tokens, cached_tokens))
    if np.any(out < 0) or np.any(cached < 0) or np.any(cached > total):
        raise ValueError(
            "token counts must be 0 or more and cached_tokens at most input_tokens: "
            "count the cached tokens in input_tokens too"
        )
    cached_price = price.input if price.cached_input is None else price.cached_input
    usd = (total - cached) * price.input + out * price.output + cached * cached_price
    usd = usd * (1 - price.batch_discount if batch else 1) / 1e6
    return float(usd) if np.ndim(usd) == 0 else usd


def cached_call_cost(
    price: TokenPrice,
    input_tokens: ArrayLike,
    output_tokens: ArrayLike,
    prefix: int,
    minutes: float,
    misses: float,
) -> float | np.ndarray:
    """USD of a call, or of each, whose first `prefix` tokens may be in the cache.

    The cache keeps them for `minutes`. A share `misses` of the calls comes too late and
    writes them again; the others read them. A prefix below the vendor's minimum is not
    cached. Raises UnknownPrice where the file has no such cache.
    """
    writes = {one.minutes: one.usd for one in price.cache.writes} if price.cache else {}
    if minutes not in writes or price.cached_input is None:
        known = ", ".join(f"{each:g}" for each in writes) or "none"
        raise UnknownPrice(
            f"no price for a cache of {minutes:g} minutes; known: {known}. Add it to "
            "data/prices.json with its source, address and date."
        )
    if prefix < price.cache.minimum:
        return call_cost(price, input_tokens, output_tokens)
    read = call_cost(price, input_tokens, output_tokens, prefix)
    return read + misses * prefix * (writes[minutes] - price.cached_input) / 1e6


def per_correct(cost_per_call: float, right: Any) -> tuple[float, float, float]:
    """USD per correct answer: (value, low, high), infinite where none is right.

    `right` is the share of right answers, 0 to 1, with its interval: any object with
    `value`, `low` and `high`, which is carried through 1/x.
    """
    shares = (right.value, right.high, right.low)
    # Below 1e-9 a share is 0 that rounding has touched.
    value, low, high = (cost_per_call / s if s > 1e-9 else math.inf for s in shares)
    return value, low, high


def cpu_hour(prices: Prices, cores: float, memory_gib: float) -> float:
    """USD of an hour of a machine without a GPU, from the prices of core and memory."""
    cpu = _find(prices.compute, "cpu_core_second", "compute").price
    memory = _find(prices.compute, "memory_gib_second", "compute").price
    return 3600 * (cores * cpu + memory_gib * memory)


def paid_seconds(
    answers_per_second: float,
    per_month: float,
    idle_seconds: float = math.inf,
    cold_seconds: float = 0.0,
) -> float:
    """Seconds paid for an answer when machines sleep after `idle_seconds` of quiet.

    Questions come by chance (a Poisson process) to a machine that answers one after the
    other; as few machines as can carry them share them evenly. What queues behind a
    cold start is left out.
    """
    load = per_month / MONTH / answers_per_second
    machines = math.ceil(load)
    load, rate = load / machines, per_month / MONTH / machines
    # Of busy times, each followed by a quiet one, there are 1 - load for each answer.
    # A quiet time is paid up to idle_seconds; after a longer one comes a cold start.
    asleep = math.exp(-rate * idle_seconds)
    quiet = (1 - asleep) / rate + asleep * cold_seconds
    return 1 / answers_per_second + (1 - load) * quiet


def _find(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise UnknownPrice(
            f"no price for {what} {name!r}; known: {', '.join(sorted(table))}. "
            "Add it to data/prices.json with its source, address and date."
        )
    return table[name]

"""Go, no-go or not yet: from the numbers that a manager has to a short memo.

    python -m utils.costs.decide --volume 3000000 --tokens-in 1800 --tokens-out 250 \
        --model claude-haiku-5.5 --accuracy 0.93 --promise 2 --peak 3 --wage 60

`decide` is pure: `Inputs` in, `Decision` out; `utils.costs.memo` writes it. What a
manager does not know has a default that is marked as a guess, with a range. All guesses
stand here: in `Inputs`, and in the table of GPUs below it; all words in words.toml.
decide.html does the same in a browser: `utils.costs.form` puts numbers and words there.
"""

import argparse
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from utils.costs import load, memo
from utils.costs.prices import (
    MONTH,
    PRICE_FILE,
    TokenPrice,
    cached_call_cost,
    call_cost,
    load_prices,
)

HOURS = {"weeks": 40, "days": 8}  # of work


class Guess(float):
    """A number of ours with a range; a reader's own is a plain one, without."""

    corners: tuple[float, float, float]  # low end, centre, high end


def ask(words: str, value: Any = MISSING) -> Any:
    """Declare a number that the reader knows, or may know."""
    return field(default=value, metadata={"help": words})


def guess(value: float, low: float, high: float, words: str) -> Any:
    """Declare a guess with its range, which a reader's own number replaces."""
    one = Guess(value)
    one.corners = (low, value, high)
    return ask(words, one)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the decision rests on; shares are 0 to 1, prices USD per million tokens."""

    volume: float = ask("answers a month")
    tokens_in: float = ask("input tokens of a call")
    tokens_out: float = ask("output tokens of a call, thinking included")
    model: str = ask("its name in data/prices.json: gives the prices", "today's API")
    price_in: float = ask("USD per million input tokens")
    price_out: float = ask("USD per million output tokens")
    accuracy: float = guess(0.9, 0.8, 0.99, "share of its answers that are right today")
    promise: float = guess(2, 1, 5, "seconds in which half of the answers come")
    peak: float = guess(3, 1, 10, "rate of the busiest hour over the mean rate")
    wage: float = guess(60, 40, 120, "USD an hour of an engineer, all in")

    margin: float = guess(0.02, 0.01, 0.05, "share less right that is still equal")
    build_weeks: float = guess(12, 4, 26, "engineer weeks until it answers users")
    review_days: float = guess(1, 0.5, 3, "days a month to review answers")  # as in 00
    retrain_days: float = guess(1, 0.5, 2, "days a month to retrain and test")  # 00
    oncall_days: float = guess(2, 1, 4, "days a month to operate, on call")  # 00
    months: float = guess(12, 6, 24, "months in which the building is earned back")
    same_prefix: float = guess(0.8, 0, 0.95, "share of the input that is in each call")
    misses: float = ask("share of calls too late for the cache; else computed", None)
    batch_share: float = guess(0, 0, 1, "share of the calls that may wait a day")
    case_minutes: float = guess(2, 1, 5, "minutes to settle an eval case")  # as in 10
    thinking: float = guess(0, 0, 300, "thinking tokens an answer, not yet counted")
    billions: float = guess(4, 1, 8, "parameters of your model, in billions, at 8 bits")
    spread: float = guess(0.4, 0.2, 1, "deviation of seconds over their mean")  # 09
    p95: float = ask("seconds within which 95 of 100 come; else twice promise", None)
    differ: float = ask("share of cases where only one is right; else guessed", None)

    gpu: str = ask("the GPU on which you measured", None)
    answers_per_second: float = ask("measured on one such GPU, kept busy", None)
    at_once: int = ask("answers that ran on it at a time", 16)
    gap_low: float = ask("your model's accuracy less today's, paired: low end", None)
    gap_high: float = ask("the same: high end", None)
    api_seconds: float = ask("median seconds of today's answers", None)
    need: float = ask("accuracy that you need and prompts do not reach", None)
    cheaper_fails: bool = ask("cheaper models were tried: too often wrong", False)
    reviewed: int = ask("reviewed answers that you have", None)
    cases: int = ask("eval cases that you have", None)
    data_stays: bool = ask("the data may not leave your machines", False)
    retires: bool = ask("the vendor ends the model within the year", False)
    tasks: int = ask("tasks that need a model each", 1)

    def __post_init__(self) -> None:
        for words in _nonsense(self):
            raise ValueError(words)


# Memory in GB/s, 16-bit arithmetic in TFLOP/s without sparsity, memory in GB: NVIDIA's
# data sheets. How much of them a server gets out is our guess, not measured: it is
# 11 to 13 % below one public benchmark (vLLM, a 7B model, mushfiqrahman.dev/?p=1668).
GPUS = {"L4": (300, 121, 24), "L40S": (864, 362, 48), "H100": (3350, 989, 80)}
BANDWIDTH, ARITHMETIC, FASTER = 0.75, 0.5, 2  # in truth half to twice as fast
CACHE_GB = 0.036e-3  # of attention's cache, a token and billion of parameters
SLOTS = (1, 2, 4, 8, 16, 32, 64)  # answers at a time


@dataclass(frozen=True)
class Way:
    """A way to answer, and what it costs."""

    name: str
    usd_a_month: float
    words: str


@dataclass(frozen=True)
class Turn:
    """One change of the numbers that turns the verdict, tried out."""

    words: str
    flags: str
    verdict: str


@dataclass(frozen=True)
class Machine:
    """A GPU with your model, at the load that the promise allows."""

    name: str
    answers_per_second: float  # kept busy
    allowed: float  # load at the peak, 0 to 1; 0: an answer alone is too slow
    alone: float  # seconds of an answer on an otherwise idle machine
    needed: float  # answers a second, kept busy, at which it pays; infinite: never
    count: int  # machines at your volume, all tasks together
    usd_a_month: float  # infinite where the promise is not kept


@dataclass(frozen=True)
class Decision:
    """The verdict and all that the memo says."""

    inputs: Inputs
    verdict: str  # 'go: …', 'no-go: …', 'not yet: …' or 'switch tiers, …'
    signals: dict[str, bool | None]
    plain_year: float  # the bill as it is
    rival_year: float  # the same model at its best
    rivals: list[Way]
    cheaper: Way | None  # a model that costs less, accuracy unknown
    machines: list[Machine]
    own_way: str
    own_year: tuple[float, float, float]  # all in: low, centre, high
    people_year: tuple[float, float, float]
    most_per_answer: float  # USD left for serving one; below 0: people cost too much
    from_volume: float  # answers a month from which the centre saves; infinite: none
    cases_needed: int
    stale: list[str]
    turns: list[Turn]
    min_reviewed: int = 500  # enough to train on
    min_cases: int = 200  # enough to measure with

    @property
    def weeks(self) -> float:
        """Engineer weeks that the year's bill buys."""
        return self.plain_year / HOURS["weeks"] / self.inputs.wage


def rule(
    signals: dict[str, bool | None], enough_data: bool, cheaper_tier: bool = False
) -> str:
    """Return the verdict; a signal is True, False, or None for not measured.

    One True is enough to go. `cheaper_tier`: a cheaper model of a vendor would turn the
    cost signal off; if that is the only signal, try the cheaper one first.
    """
    on = [name for name, value in signals.items() if value]
    unknown = [name for name, value in signals.items() if value is None]
    if on == ["cost"] and cheaper_tier:
        return "switch tiers, measure, then decide"
    if not enough_data:
        return "not yet: collect and review first"
    if on:
        return "go: " + ", ".join(on)
    if unknown:
        return "not yet: measure " + ", ".join(unknown)
    return "no-go: stay on the API"


def decide(x: Inputs) -> Decision:
    """Apply the rule to one product's numbers, and see what would turn the verdict."""
    found = _judge(x)
    people = tuple(_people_year(x, corner) for corner in (0, 1, 2))
    most = (found["rival_year"] - people[1]) / 12 / x.volume
    most = math.inf if x.data_stays else most  # no API is there to be cheaper
    return Decision(
        **found,
        inputs=x,
        machines=[_machine(x, name, most) for name in _gpu_names(x)],
        own_way=_own_year(x, x.volume, 1)[1],
        people_year=people,
        most_per_answer=most,
        from_volume=_from_volume(x),
        stale=_prices().stale(),
        turns=list(_turns(x, found["verdict"])),
    )


def _judge(x: Inputs) -> dict[str, Any]:
    """Return the verdict and what it follows from."""
    plain, best, _ = _call(x, _price(x), x.volume)
    plain, rival = 12 * x.volume * plain, 12 * x.volume * best
    own = tuple(_own_year(x, x.volume, corner)[0] for corner in (0, 1, 2))
    rivals = _rivals(x, plain)
    differ = 1 - x.accuracy if x.differ is None else x.differ
    # Paired: the interval of the difference (95 %) stays above -margin 4 times in 5.
    cases = math.ceil((1.96 + 0.84) ** 2 * max(differ, x.margin) / x.margin**2)
    # Worth a try is what pays in a year for the hours of its eval.
    listed = {} if x.cheaper_fails else _prices().models
    most = (rival - cases * x.case_minutes / 60 * x.wage) / 12
    others = [way for way in rivals if way.name in listed and way.usd_a_month < most]
    cheaper = min(others, key=lambda way: way.usd_a_month, default=None)

    equal = _above(-x.margin, x.gap_low, x.gap_high)
    lack = max((x.need or 0) - x.accuracy, 0)
    better = _above(lack, x.gap_low, x.gap_high)
    money = _above(0, rival - own[2], rival - own[0])
    switch = cheaper is not None and money is not False
    switch = switch and not own[2] < 12 * cheaper.usd_a_month
    in_time = any(_serving(x, name) for name in _gpu_names(x))
    short = x.need is not None and x.accuracy < x.need
    signals = {
        "cost": every(money, equal),
        "latency": every(_late(x), in_time, equal),
        "quality": every(short, better, math.isfinite(own[1])),
    }
    # Where a cheaper model may do, the question of equal quality comes after it.
    if switch and equal is not False and True not in signals.values():
        signals["cost"] = True
    few = x.reviewed is not None and x.reviewed < Decision.min_reviewed
    few = few or (x.cases is not None and x.cases < Decision.min_cases)
    # Who has no reason to leave need not collect data first.
    enough = not few or not any(signal is not False for signal in signals.values())
    verdict = rule(signals, enough, switch)
    if x.data_stays:
        verdict = rule({}, False) if few else WITHOUT_API[equal]
        verdict = verdict if in_time else "not yet: measure speed"
    elif x.retires and not verdict.startswith("go"):
        verdict = "not yet: measure the model's successor"
    return {
        "verdict": verdict,
        "signals": signals,
        "plain_year": plain,
        "rival_year": rival,
        "rivals": rivals,
        "cheaper": cheaper,
        "own_year": own,
        "cases_needed": cases,
    }


# Where the data may not leave: by whether your model is as right as today's.
WITHOUT_API = {
    True: "go: your data may not leave",
    False: "not yet: not accurate enough",
    None: "not yet: measure accuracy",
}


# --- what would turn the verdict ------------------------------------------------------

# Tried from a tenth to ten times, to within 4 %.
SCALED = {"price": ("price_in", "price_out")}
SCALED |= {"volume": ("volume",), "build_weeks": ("build_weeks",)}


def _turns(x: Inputs, verdict: str) -> Iterator[Turn]:
    """Try one change at a time; yield those that turn the verdict, at their least."""

    def turn(name: str, changed: dict[str, Any], times: float = 1) -> Turn | None:
        try:
            then = _judge(replace(x, **changed))["verdict"]
        except ValueError:  # such numbers cannot be
            return None
        if memo.kind(then) == memo.kind(verdict):
            return None
        facts = changed | {"times": times, "worse": 2 * x.margin}
        flags = " ".join(map(_typed, changed, changed.values()))
        return Turn(memo.fill(memo.WORDS["turns"][name], facts), flags, then)

    def scaled(name: str, times: float) -> Turn | None:
        values = {one: times * getattr(x, one) for one in SCALED[name]}
        return turn(name, {k: float(f"{v:.3g}") for k, v in values.items()}, times)

    for name in SCALED:
        for far in (0.1, 10.0):
            near, found = 1.0, scaled(name, far)
            for _ in range(6 if found else 0):
                middle = math.sqrt(near * far)
                closer = scaled(name, middle)
                near, far = (near, middle) if closer else (middle, far)
                found = closer or found
            if found:
                yield found
    short = x.need is not None and x.accuracy < x.need
    in_time = any(_serving(x, name) for name in _gpu_names(x))
    singles = {
        "cheaper_fails": {"cheaper_fails": True},
        "equal": {"gap_low": -x.margin / 2, "gap_high": x.margin / 2},
        "worse": {"gap_low": -3 * x.margin, "gap_high": -2 * x.margin},
        "api_seconds": {"api_seconds": x.promise * (0.9 if _late(x) else 1.1)},
        "need": {"need": 0.99 * x.accuracy if short else (1 + x.accuracy) / 2},
        "data_leaves": {"data_stays": False},
        "billions": {} if in_time else {"billions": x.billions / 4},
    }
    yield from filter(None, map(turn, singles, singles.values()))


def _typed(name: str, value: float | bool) -> str:
    """Write a change as the command takes it."""
    if isinstance(value, bool):
        return _flag(name) if value else f"without {_flag(name)}"
    return f"{_flag(name)} {memo.digits(value).replace(',', '')}"


# --- what the API costs ---------------------------------------------------------------

HOW = memo.WORDS["how"]
LIKE = "claude-haiku-5.5"  # its terms: a guess for other vendors
_prices = functools.cache(load_prices)


@functools.cache
def _price(x: Inputs) -> TokenPrice:
    """Return the prices of today's model; a vendor's cache is guessed if unknown."""
    found, like = _prices().models.get(x.model), _prices().models[LIKE]
    if found and (found.input, found.output) == (x.price_in, x.price_out):
        return found
    times = x.price_in / like.input
    writes = [w.model_copy(update={"usd": w.usd * times}) for w in like.cache.writes]
    prices = {
        "input": x.price_in,
        "cached_input": 0.1 * x.price_in,
        "output": x.price_out,
        "cache": like.cache.model_copy(update={"writes": writes}),
    }
    return like.model_copy(update=prices)


def _call(x: Inputs, price: TokenPrice, volume: float) -> tuple[float, float, str]:
    """USD of a call: plain, with the best cache, and how that is reached."""
    out = x.tokens_out + x.thinking
    batch = 1 - x.batch_share * price.batch_discount
    plain = batch * call_cost(price, x.tokens_in, out)
    best, how = plain, HOW["none"]
    prefix = math.floor(x.same_prefix * x.tokens_in)
    for write in price.cache.writes if price.cache else []:
        # Calls by chance at the mean rate: the share that comes later than the cache.
        misses = math.exp(-volume / MONTH * 60 * write.minutes)
        misses = misses if x.misses is None else x.misses
        args = (x.tokens_in, out, prefix, write.minutes, misses)
        usd = batch * cached_call_cost(price, *args)
        if usd < best:
            facts = {"minutes": write.minutes, "hits": 1 - misses}
            best, how = usd, memo.fill(HOW["cache"], facts)
    if best == plain and price.cache and prefix < price.cache.minimum:
        facts = {"prefix": prefix, "minimum": price.cache.minimum}
        how = memo.fill(HOW["short"], facts)
    return plain, best, how


def _rivals(x: Inputs, plain_year: float) -> list[Way]:
    if x.data_stays:  # none of them may be used
        return []
    prices = _prices()
    price, bill = _price(x), plain_year / 12
    _, best, how = _call(x, price, x.volume)
    discount = price.batch_discount
    all_wait = bill * (1 - discount) / (1 - x.batch_share * discount)
    thinks = bill + 100 * x.volume * price.output / 1e6
    ways = [
        Way("as it is", bill, HOW["plain"]),
        Way("cached", best * x.volume, how),
        Way("all in a batch", all_wait, HOW["batch"]),
        Way("100 thinking tokens more", thinks, HOW["thinking"]),
    ]
    for name, other in prices.models.items():
        _, usd, how = _call(x, other, x.volume)
        if name != x.model and usd < 0.99 * best:
            ways.append(Way(name, usd * x.volume, how + HOW["other"]))
    if hosted := _hosted(x, x.volume):
        ways.append(Way(f"{hosted[1]}, hosted", hosted[0], HOW["hosted"]))
    return ways


def _hosted(x: Inputs, volume: float) -> tuple[float, str] | None:
    """USD a month of an open model that somebody serves, and its name."""
    large = [n for n, p in _prices().hosted.items() if p.billions >= x.billions]
    ways = [(volume * _call(x, _prices().hosted[n], volume)[1], n) for n in large]
    return min(ways, default=None)


# --- what a model of your own costs ---------------------------------------------------


def _people_year(x: Inputs, corner: int) -> float:
    """USD a year: building, spread over the months that earn it back, and keeping."""

    def end(name: str) -> float:
        value = getattr(x, name)  # a reader's own number has no ends
        return value.corners[corner] if isinstance(value, Guess) else value

    days = end("review_days") + end("retrain_days") + end("oncall_days")
    hours = HOURS["weeks"] * end("build_weeks") / x.months + HOURS["days"] * days
    return 12 * x.tasks * hours * x.wage


def _own_year(x: Inputs, volume: float, corner: int) -> tuple[float, str]:
    """USD a year all in, and how it is served: by GPUs of your own or by the token."""
    ways = []
    for name in _gpu_names(x):
        serving = _serving(x, name, FASTER ** (1 - corner))
        # At best machines come and go with the load; else the peak's are kept on.
        peak = 1.0 if corner == 0 else x.peak
        if serving:
            ways.append((_fleet(x, name, serving, volume, peak)[1], name))
    # A host's seconds are not known: it is no way out where lateness is the reason.
    hosted = None if x.data_stays or _late(x) else _hosted(x, volume)
    ways += [(hosted[0], f"{hosted[1]}, hosted")] if hosted else []
    usd, how = min(ways, default=(math.inf, "no GPU keeps the promise"))
    return 12 * usd + _people_year(x, corner), how


def _gpu_names(x: Inputs) -> list[str]:
    return list(GPUS) if x.answers_per_second is None else [x.gpu]


def _gigabytes(x: Inputs, at_once: int) -> float:
    """Memory of the model, and of attention's cache of `at_once` answers."""
    return x.billions * (1 + at_once * (x.tokens_in + x.tokens_out) * CACHE_GB)


def _seconds(x: Inputs, name: str, at_once: int, faster: float = 1) -> float:
    """Mean seconds of an answer on a GPU that gives `at_once` at a time: a guess.

    A roofline: reading the prompt is bound by arithmetic, writing by memory, and what
    is equal in each prompt is read once (prefix caching).
    """
    if x.answers_per_second is not None:
        return x.at_once / x.answers_per_second
    memory, arithmetic, _ = GPUS[name]
    token = 2e9 * x.billions / (arithmetic * 1e12 * ARITHMETIC)  # seconds a token
    new = x.tokens_in * (1 - x.same_prefix)
    step = max(_gigabytes(x, at_once) / (memory * BANDWIDTH), at_once * token)
    return (at_once * new * token + x.tokens_out * step) / faster


# What turns verdicts but no GPU's speed, which takes long to compute.
APART = {"volume": 1.0, "price_in": 1.0, "price_out": 1.0, "build_weeks": 1.0}
APART |= dict.fromkeys(("gap_low", "gap_high", "api_seconds", "need"))
APART |= {"cheaper_fails": False, "data_stays": False}


def _serving(x: Inputs, name: str, faster: float = 1) -> tuple[int, Any] | None:
    return _fastest(replace(x, **APART), name, faster)


@functools.cache
def _fastest(x: Inputs, name: str, faster: float) -> tuple[int, Any] | None:
    """Choose how many answers at a time give most in time: their number, seconds."""
    measured = x.answers_per_second is not None
    fits = [n for n in SLOTS if _gigabytes(x, n) <= 0.9 * GPUS[name][2]]
    best, most = None, 0.0
    for slots in (x.at_once,) if measured else fits:
        mean = _seconds(x, name, slots, faster)
        times = load.times_like(mean, x.spread * mean)
        rate = load.highest_load(times, slots, _promise(x)) * slots / mean
        if rate > most:
            best, most = (slots, times), rate
    return best


def _fleet(
    x: Inputs, name: str, serving: tuple[int, Any], volume: float, peak: float
) -> tuple[int, float]:
    """Machines for all tasks, each with its own, and USD of their month."""
    slots, times = serving
    each = load.machines_for(times, volume / x.tasks, _promise(x), peak, slots)
    return x.tasks * each, x.tasks * each * _prices().gpu(name).price * MONTH / 3600


def _machine(x: Inputs, name: str, most: float) -> Machine:
    serving = _serving(x, name)
    slots, times = serving or (1, None)
    speed, alone = slots / _seconds(x, name, slots), _seconds(x, name, 1)
    if not serving:
        return Machine(name, speed, 0, alone, math.inf, 0, math.inf)
    count, usd = _fleet(x, name, serving, x.volume, x.peak)
    allowed = load.highest_load(times, count // x.tasks * slots, _promise(x))
    usd_a_second = _prices().gpu(name).price / 3600
    needed = usd_a_second / most * x.peak / allowed if most > 0 else math.inf
    return Machine(name, speed, allowed, alone, needed, count, usd)


def _promise(x: Inputs) -> load.Promise:
    return load.Promise(x.promise, 2 * x.promise if x.p95 is None else x.p95)


def _late(x: Inputs) -> bool:
    return x.api_seconds is not None and x.api_seconds > x.promise


def _from_volume(x: Inputs) -> float:
    """Answers a month from which the centre of the estimate saves money."""

    def saves(volume: float) -> bool:
        best = _call(x, _price(x), volume)[1]
        return _own_year(x, volume, 1)[0] < 12 * volume * best

    low, high = 1e3, 1e3
    while not saves(high):
        low, high = high, 2 * high
        if high > 1e10:
            return math.inf
    for _ in range(7):  # to a hundredth
        middle = math.sqrt(low * high)
        low, high = (low, middle) if saves(middle) else (middle, high)
    return high


# --- logic and nonsense ---------------------------------------------------------------


def _above(level: float, low: float | None, high: float | None) -> bool | None:
    """Say whether a range lies above a level; None if it holds it, or is not known."""
    return None if low is None or low <= level <= high else low > level


def every(*parts: bool | None) -> bool | None:
    """Join by and: False if one is, else None if one is unknown."""
    return False if False in parts else None if None in parts else True


LEAST, MOST = 1e-12, 1e12  # above 0, and more than anybody has
NOT_0 = (LEAST, MOST, "give a number above 0")
SHARE = (LEAST, 1, "give a share from 0 to 1: for 93 per cent 0.93")
GAP = (-1, 1, "give a difference of two shares: for 2 points 0.02")
LIMITS = {
    SHARE: "accuracy need",
    (0.001, 1, "give a share of 0.001 or more: for 2 points 0.02"): "margin",
    (0, *SHARE[1:]): "same_prefix misses batch_share differ",
    GAP: "gap_low gap_high",
    (LEAST, 1e7, "give the tokens of one call, above 0"): "tokens_in tokens_out",
    (0, 1e7, "give the tokens of one answer, 0 or more"): "thinking",
    (0, 1_000, "give USD per million tokens"): "price_in price_out",
    (LEAST, 120, "give seconds: for 2,000 ms 2"): "promise",
    (LEAST, 1_000, "give USD an hour: a year's over 1,800"): "wage",
    (1, 1_000, "give the busiest hour over the mean one: 1 or more"): "peak",
    (0, MOST, "give 0 or more"): "build_weeks review_days retrain_days oncall_days "
    "case_minutes spread reviewed cases",
}


def limits(name: str) -> tuple[float, float, str]:
    """Lowest, highest, and what to do about a number outside."""
    return next((k for k, names in LIMITS.items() if name in names.split()), NOT_0)


def _nonsense(x: Inputs) -> Iterator[str]:
    """Say in one line what to do about numbers that cannot be."""
    wrong = memo.WORDS["wrong"]
    for one in fields(x):
        value = getattr(x, one.name)
        if value is None or isinstance(value, bool | str):
            continue
        low, high, words = limits(one.name)
        if not low <= value <= high:
            says = {"flag": _flag(one.name), "value": value, "words": words}
            yield memo.fill(wrong["limits"], says | one.metadata)
    price = max(x.price_in, x.price_out)
    if price < 0.02:
        yield memo.fill(wrong["cheap"], {"price": price})
    if (x.p95 or math.inf) < x.promise:
        yield wrong["p95"]
    one_end = (x.gap_low is None) != (x.gap_high is None)
    if one_end or (x.gap_low or 0) > (x.gap_high or 0):
        yield wrong["gap"]
    if x.gpu not in GPUS and not x.gpu == x.answers_per_second is None:
        yield memo.fill(wrong["gpu"], {"gpus": ", ".join(GPUS)})


# --- the command ----------------------------------------------------------------------

EXAMPLE = "--volume 3000000 --tokens-in 1800 --tokens-out 250 "
EXAMPLE += "--model claude-sonnet-5.5"


def read(words: list[str]) -> Inputs:
    """Read the command's words; ends the program or raises where they do not do."""
    parser = argparse.ArgumentParser("utils.costs.decide", allow_abbrev=False)
    more = "  (--help tells all numbers)"
    parser.error = lambda message: sys.exit(f"decide: {message}{more}")
    for one in fields(Inputs):
        flag, words_of = _flag(one.name), one.metadata["help"]
        if isinstance(one.default, Guess):
            low, _, high = one.default.corners
            words_of += f" (our guess: {one.default:g}, {low:g} to {high:g})"
        kind = {"action": "store_true"} if one.type is bool else {}
        parser.add_argument(flag, help=words_of, **kind)
    if any(word.startswith("--util") for word in words):
        parser.error("utilisation follows from volume, speed and promise: leave it out")
    given = {k: v for k, v in vars(parser.parse_args(words)).items() if v is not None}
    for one in fields(Inputs):
        try:
            given |= {one.name: one.type(given[one.name])} if one.name in given else {}
        except ValueError:
            says = {"flag": _flag(one.name), "text": given[one.name]}
            says["example"] = "12" if one.type is int else "0.93 or 1800"
            parser.error(memo.fill(memo.WORDS["wrong"]["unread"], says))
    if "model" in given and not {"price_in", "price_out"} & given.keys():
        price = load_prices().model(given["model"])
        given |= {"price_in": price.input, "price_out": price.output}
    needs = [one.name for one in fields(Inputs) if one.default is MISSING]
    missing = ", ".join(_flag(name) for name in needs if name not in given)
    if missing:
        parser.error(memo.fill(memo.WORDS["wrong"]["missing"], {"names": missing}))
    return Inputs(**given)


def main(words: list[str]) -> None:
    """Read the numbers, print the memo and write it to runs/decision.md."""
    try:
        decision = decide(read(words or EXAMPLE.split()))
    except (ValueError, LookupError) as error:
        sys.exit(f"decide: {error.args[0]}")
    names = [one.name for one in fields(Inputs) if one.default is MISSING]
    text = memo.write(decision, example="" if words else ", ".join(names))
    path = PRICE_FILE.parents[1] / "runs" / "decision.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text, "Written to runs/decision.md.", sep="\n")
    if not words:
        print(f'With your numbers: make decide ARGS="{EXAMPLE}"')


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    main(sys.argv[1:])

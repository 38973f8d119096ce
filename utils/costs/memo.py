"""Write a decision as a short memo, in Markdown, with words.toml's sentences."""

import datetime as dt
import math
import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.costs.prices import OLD_DAYS, load_prices

if TYPE_CHECKING:
    from utils.costs.decide import Decision

WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text("utf-8"))


def digits(number: float, most: int = 6) -> str:
    """Write the leading digits of a number, never with an exponent."""
    if not math.isfinite(number):
        return str(number)
    return f"{Decimal(f'{number:.{most}g}'):,f}"


def whole(number: float) -> str:
    """Write a number without decimals."""
    return f"{number:,.0f}" if math.isfinite(number) else "no limit"


def usd(amount: float) -> str:
    """Write dollars: whole ones, or three digits of a small amount."""
    return f"{whole(amount) if abs(amount) >= 10 else digits(amount, 3)} USD"


def two(number: float) -> str:
    """Write two digits, of a large number as '1.4 million'."""
    if math.isinf(number) or not number:
        return "never" if number else "any"
    number = float(f"{number:.2g}")
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return digits(number / size) + name
    return digits(number)


FORMATS = {
    "": str,
    "plain": digits,
    "whole": whole,
    "usd": usd,
    "two": two,
    "share": lambda share: f"{100 * share:.0f}%",
    "percent": lambda share: f"{100 * share:.1f}%",
    "floor": lambda share: f"{math.floor(100 * share)}%",  # never 100
    "points": lambda share: digits(100 * share),
    "point": lambda share: f"{100 * share:.1f}",
    "sign": lambda share: f"{100 * share:+.1f}",
}


def fill(text: str, facts: dict[str, Any]) -> str:
    """Put facts into a text, each in its format."""
    return re.sub(r"\{(\w+):?(\w*)\}", lambda m: FORMATS[m[2]](facts[m[1]]), text)


def kind(verdict: str) -> str:
    """Name the verdict's kind: verdicts of one kind advise the same."""
    return next(k for k, v in WORDS["kinds"].items() if verdict.startswith(v))


def write(d: "Decision", example: str = "") -> str:
    """Write the memo; `example` names the numbers that are not the reader's."""
    facts = _facts(d) | {"example": example}
    text = ""
    for line in WORDS["memo"]["text"].splitlines():
        mark, name, words = re.fullmatch(r"(?:([?!])(\w+) )?(.*)", line).groups()
        value = not facts[name] if mark == "!" else not name or facts[name]
        for item in value if isinstance(value, list) else [{}] if value else []:
            starts = not words or text[-1:] == "\n" or re.match(r"[#|-]|\d\. ", words)
            text += ("\n" if starts else " ") + fill(words, facts | item)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _facts(d: "Decision") -> dict[str, Any]:
    """Name all that the memo's lines ask for."""
    x, own, rival = d.inputs, d.own_year[1], d.rival_year
    this, served = kind(d.verdict), math.isfinite(own)
    is_open, measured = this == "open", x.gap_low is not None
    worse = this == "no_go" and measured and x.gap_high < -x.margin
    to_ask = None in (d.signals["latency"], d.signals["quality"])
    facts = vars(x) | vars(d)
    facts |= {name: name == this for name in WORDS["kinds"]} | {
        "worse": worse,
        "stay": this == "no_go" and not worse,
        "priced": served and this in ("successor", "open", "no_go") and not worse,
        "open_cost": is_open and d.own_year[2] >= rival > d.own_year[0],
        "open_pilot": is_open and not measured and (to_ask or own < rival),
        "open_gap": measured
        and (this == "unmeasured" or (is_open and (x.gap_low <= -x.margin or to_ask))),
        "served": served,
        "compared": served and not x.data_stays,
        "measured": measured,
        "cached": rival <= 0.99 * d.plain_year and not x.data_stays,
        "left": not x.data_stays and d.most_per_answer > 0,
        "fewer": not x.data_stays and d.most_per_answer <= 0,
        "pays": not x.data_stays and math.isfinite(d.from_volume),
        "never": not x.data_stays and math.isinf(d.from_volume),
        "many": x.tasks > 1,
    }
    for i, end in enumerate(("_low", "", "_high")):
        facts["own" + end], facts["people" + end] = d.own_year[i], d.people_year[i]
        facts["serving" + end] = d.own_year[i] - d.people_year[i]
    facts |= {
        "month": d.plain_year / 12,
        "rival_month": rival / 12,
        "each": own / 12 / x.volume,
        "difference": abs(own - rival),
        "weeks": d.weeks,
        "rival_weeks": d.weeks * rival / d.plain_year,
        "least": x.accuracy - x.margin,
        "worse_by": -(x.gap_high or 0),
        "most_per_1000": 1000 * d.most_per_answer,
        "days": x.review_days + x.retrain_days + x.oncall_days,
    }
    guess = fill("our guess for {billions:plain}B parameters", facts)
    asked = True if this == "go" else None
    fit = [vars(m) for m in d.machines if m.allowed]
    unfit = [vars(m) for m in d.machines if not m.allowed]
    why = [words for key, words in WORDS["says"].items() if d.signals[key] is asked]
    facts |= {
        "today": dt.date.today(),
        "why": " and ".join(why),
        "more": f", {usd(own - rival)} more" if own > rival else "",
        "less": "less" if own < rival else "more",
        "late": "late" if (x.api_seconds or 0) > x.promise else "in time",
        "source": "your measurement" if x.answers_per_second else guess,
        "kept": ", ".join(fill("{name} {allowed:floor}", m) for m in fit),
        "slow": ", ".join(fill("{name} ({alone:two} s)", m) for m in unfit),
        "fit": fit,
        "unfit": unfit,
        "rivals": [vars(way) for way in d.rivals],
        "turns": [vars(turn) for turn in d.turns],
        "turning": bool(d.turns),
        "cheaper_name": d.cheaper and d.cheaper.name,
        "cheaper_usd": d.cheaper and d.cheaper.usd_a_month,
    }
    return facts | _next(d) | _basis(d)


def _next(d: "Decision") -> dict[str, Any]:
    """Say what to measure next."""
    x = d.inputs
    pays = d.own_year[0] < d.rival_year or x.data_stays
    idle = not pays and all(signal is False for signal in d.signals.values())
    low, high = x.gap_low, x.gap_high
    undecided = not idle and low is not None and low <= -x.margin <= high
    above = (low + high) / 2 + x.margin if undecided else 0
    asks = {
        "try_cheaper": d.cheaper is not None and kind(d.verdict) != "no_go",
        "next_nothing": idle,
        "next_pilot": not idle and low is None,
        "next_cases": above > 0,
        "next_train": (undecided and above <= 0) or kind(d.verdict) == "inaccurate",
        "next_speed": x.answers_per_second is None and pays,
        "next_misses": x.misses is None and not x.data_stays,
        "next_seconds": x.api_seconds is None and not x.data_stays,
    }
    times = ((high - low) / 2 / above) ** 2 if above > 0 else 0
    times = math.ceil(10 * times) / 10
    return asks | {"next_none": not any(asks.values()), "case_times": times}


def _basis(d: "Decision") -> dict[str, Any]:
    """List the guesses, and the prices with their days."""
    x, prices, guesses = d.inputs, load_prices(), []
    for name, value in vars(x).items():
        if hasattr(value, "corners"):
            low, _, high = map(digits, value.corners)
            guesses.append(f"{name} {digits(value)} ({low} to {high})")
    used = [x.model, *(m.name for m in d.machines), d.own_way.removesuffix(", hosted")]
    used += [d.cheaper.name] if d.cheaper else []
    listed = prices.models | prices.hosted | prices.compute
    used = [name for name in dict.fromkeys(used) if name in listed]
    old = {line.split(":")[0] for line in d.stale}
    return {
        "guesses": "; ".join(guesses),
        "guessed_speed": not x.answers_per_second,
        "dated": "; ".join(f"{name} {listed[name].date}" for name in used),
        "old_days": OLD_DAYS,
        "old": ", ".join(name for name in used if name in old),
        "unlisted": x.model not in prices.models,
    }

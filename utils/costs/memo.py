"""Write a decision as a memo of one page, in Markdown."""

import datetime as dt
import math
from dataclasses import fields
from typing import TYPE_CHECKING

from utils.costs.prices import load_prices

if TYPE_CHECKING:
    from utils.costs.decide import Decision, Inputs


def write(d: "Decision", example: bool = False) -> str:
    """Write the memo; `example`: the numbers are not the reader's."""
    x = d.inputs
    parts = [
        f"# Decision on {dt.date.today()}: leave {x.model} for a model of your own?",
        "*A worked example, not your numbers.*" if example else "",
        f"**{_sentence(d)}**",
        _numbered([_money(d), _speed(d), _quality(d)]),
        "## The most that you can save",
        f"You pay {usd(d.plain_year / 12)} a month, {usd(d.plain_year)} a year. "
        f"A model of your own cannot save more. That buys {_round(d.weeks)} engineer "
        f"weeks at {x.wage:g} USD an hour. {_cached(d)}",
        "## What must be true for a go",
        _backwards(d),
        "## Other ways to pay less" if d.rivals else "",
        _rivals(d),
        "## What a model of your own costs a year",
        _own(d),
        "## What no price outweighs",
        _vetoes(x),
        "## What would turn the verdict",
        _bullets(_turns(d)),
        "## What to measure next",
        _numbered(_next(d)),
        "## What this rests on",
        _basis(d),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def usd(amount: float) -> str:
    """Write dollars: whole ones, or three digits of a small amount."""
    return f"{amount:,.0f} USD" if abs(amount) >= 10 else f"{amount:.3g} USD"


def _sentence(d: "Decision") -> str:
    x, (low, centre, high) = d.inputs, d.own_year
    range_ = f"{usd(centre)} ({low:,.0f} to {high:,.0f}) a year"
    best = f"{x.model} at its best costs {usd(d.rival_year)}"
    if d.verdict == "go: your data may not leave":
        each = usd(centre / 12 / x.volume)
        return (
            f"GO: your data may not leave, so no API is a choice. It costs {range_}, "
            f"{each} an answer. Whether an answer is worth that is yours to say."
        )
    if d.verdict == "not yet: measure speed":
        return (
            "NOT YET: your data may not leave, and by our guess no GPU is fast enough."
        )
    if d.verdict.endswith("successor"):
        return (
            f"NOT YET: {x.model} ends, so staying is no choice. Run your eval on its "
            f"successor first. A model of your own costs {range_}."
        )
    if d.verdict.startswith("switch"):
        way = d.cheaper
        return (
            f"NOT YET: try {way.name} first. It costs {usd(way.usd_a_month)} a month "
            f"instead of {usd(d.plain_year / 12)}. Whether it is right often enough "
            f"takes an eval of {d.cases_needed:,} cases, and no training."
        )
    if "collect" in d.verdict:
        return (
            "NOT YET: collect and review first. You need 500 reviewed answers to train "
            "on and 200 cases to measure with."
        )
    if d.verdict.startswith("go"):
        says = {"cost": "costs less", "latency": "is in time", "quality": "is better"}
        why = " and ".join(words for key, words in says.items() if d.signals[key])
        more = usd(d.own_year[1] - d.rival_year)
        price = f", {more} more" if d.own_year[1] > d.rival_year else ""
        return f"GO: a model of your own {why}. It costs {range_}{price}; {best}."
    if d.verdict.startswith("not yet"):
        return f"NOT YET: {_open(d)}. A model of your own costs {range_}, and {best}."
    if x.gap_high is not None and x.gap_high < -x.margin:
        return (
            f"NO-GO: your model is right at least {-100 * x.gap_high:.1f} points less "
            f"often than {x.model}, and you allow {100 * x.margin:g}."
        )
    return (
        f"NO-GO: stay on {x.model}. You pay {usd(d.plain_year)} a year for it: "
        f"{_round(d.weeks)} engineer weeks. A model of your own costs {range_}."
    )


def _open(d: "Decision") -> str:
    """Say what is not known yet, and would decide."""
    x, parts = d.inputs, []
    if d.own_year[2] >= d.rival_year > d.own_year[0]:
        parts.append(
            "put your numbers in place of our guesses: by them it may cost less"
        )
    late_or_short = d.signals["latency"] is None or d.signals["quality"] is None
    if x.gap_low is None and (late_or_short or d.own_year[1] < d.rival_year):
        parts.append("worth a pilot, for nobody knows whether yours is right as often")
    elif x.gap_low is not None and (x.gap_low <= -x.margin or late_or_short):
        low, high = 100 * x.gap_low, 100 * x.gap_high
        parts.append(f"your eval leaves {low:+.1f} to {high:+.1f} points open")
    return "; ".join(parts)


def _money(d: "Decision") -> str:
    people = usd(d.people_year[1])
    less = d.rival_year - d.own_year[1]
    if math.isinf(less):
        return (
            f"Money: people alone cost {people} a year, and no GPU keeps the promise."
        )
    says = "less" if less > 0 else "more"
    return (
        f"Money: a model of your own costs {usd(abs(less))} a year {says} than "
        f"{d.inputs.model} at its best. People are {people} of it; "
        f"the cheapest way to serve is {d.own_way}."
    )


def _speed(d: "Decision") -> str:
    x = d.inputs
    kept = [f"{m.name} {_floor(m.allowed)}" for m in d.machines if m.allowed]
    slow = [f"{m.name} {m.alone:.1f} s" for m in d.machines if not m.allowed]
    how = (
        "measured" if x.answers_per_second else f"our guess, {x.billions:g}B parameters"
    )
    text = f"Promise: half of the answers come within {x.promise:g} s. "
    if kept:
        text += f"GPUs keep it up to this load at the peak ({how}): {', '.join(kept)}. "
    if slow:
        text += f"Too slow, for one answer alone takes ({how}): {', '.join(slow)}. "
    if x.api_seconds is not None:
        late = "late" if x.api_seconds > x.promise else "in time"
        text += f"Today's answers take {x.api_seconds:g} s: {late}."
    return text.strip()


def _quality(d: "Decision") -> str:
    x = d.inputs
    least = f"{x.accuracy - x.margin:.1%}"
    text = f"Accuracy: today {x.accuracy:.1%}; {least} or more counts as equal. "
    if x.gap_low is None:
        return text + "No model of yours is measured yet."
    return text + (
        f"Yours differs by {100 * x.gap_low:+.1f} to {100 * x.gap_high:+.1f} points."
    )


def _cached(d: "Decision") -> str:
    if d.rival_year > 0.99 * d.plain_year:
        return ""
    weeks = d.weeks * d.rival_year / d.plain_year
    return (
        f"With prompt caching you pay {usd(d.rival_year)} a year, and the most "
        f"to save is {_round(weeks)} weeks."
    )


def _backwards(d: "Decision") -> str:
    x = d.inputs
    if d.most_per_answer > 0:
        lines = [
            f"Serving costs at most {usd(1000 * d.most_per_answer)} per 1,000 answers."
        ]
    else:
        lines = [
            f"Fewer people: they cost {usd(d.people_year[1])} a year, and "
            f"{x.model} at its best {usd(d.rival_year)}. Nothing is left for serving."
        ]
    lines.append(f"Accuracy is at least {x.accuracy - x.margin:.1%}.")
    if math.isinf(d.from_volume):
        lines.append("No volume makes it pay: serving alone costs more.")
    else:
        lines.append(f"Volume is at least {_round(d.from_volume)} answers a month.")
    rows = []
    for m in d.machines:
        must = "never pays" if math.isinf(m.needed) else _round(m.needed)
        row = [m.name, must, _round(m.answers_per_second)]
        late = ["too slow", "-", "-"]
        good = [_floor(m.allowed), f"{m.count:,}", f"{m.usd_a_month:,.0f}"]
        rows.append(row + (good if m.allowed else late))
    measured = "measured" if x.answers_per_second else "gives, by our guess"
    head = ["GPU", "pays from, answers/s", measured]
    head += ["load that the promise allows", "GPUs for you", "USD a month"]
    return _bullets(lines) + "\n\n" + _table(head, rows)


def _rivals(d: "Decision") -> str:
    rows = [[way.name, f"{way.usd_a_month:,.0f}", way.words] for way in d.rivals]
    return _table(["way", "USD a month", "note"], rows) if rows else ""


def _own(d: "Decision") -> str:
    x = d.inputs
    serving = [own - who for own, who in zip(d.own_year, d.people_year, strict=True)]
    days = x.review_days + x.retrain_days + x.oncall_days
    build = (
        f"people: {x.build_weeks:g} weeks to build, paid back in {x.months:g} months; "
    )
    build += f"{days:g} days a month for reviews ({x.review_days:g}), retraining "
    build += f"({x.retrain_days:g}) and on-call ({x.oncall_days:g})"
    rows = []
    for name, three in ((build, d.people_year), (f"serving: {d.own_way}", serving)):
        low, centre, high = three
        if math.isfinite(high):
            rows.append([name, f"{centre:,.0f}", f"{low:,.0f} to {high:,.0f}"])
    return _table(["what", "USD a year", "range"], rows)


def _vetoes(x: "Inputs") -> str:
    stays = "Yes: only machines of your own count" if x.data_stays else "No"
    ends = "Yes: staying is no choice" if x.retires else "No"
    tasks = (
        "one" if x.tasks == 1 else f"{x.tasks:g}, each with people and idle machines"
    )
    return (
        f"Must the data stay on your machines? {stays}. Does the vendor end the model? "
        f"{ends}. How many tasks need a model each? {tasks[0].upper()}{tasks[1:]}."
    )


def _turns(d: "Decision") -> list[str]:
    x, own, rival = d.inputs, d.own_year[1], d.rival_year
    if x.data_stays:
        return ["A contract lets the data leave: ask again without --data-stays."]
    lines = []
    if own >= rival and math.isfinite(d.from_volume):
        times, volume = _round(d.from_volume / x.volume), _round(d.from_volume)
        lines.append(f"Cost: {times} times the volume, {volume} answers a month.")
    if own >= rival and math.isfinite(own):
        lines.append(f"Cost: token prices are {_round(own / rival)} times as high.")
    if own < rival:
        lines.append(f"Cost: token prices fall by {1 - own / rival:.0%}.")
    weekly = 40 * x.wage * x.tasks * 12 / x.months
    weeks = x.build_weeks + (rival - own) / weekly
    if math.isfinite(weeks) and weeks > 0:
        side = "more" if own < rival else "fewer"
        lines.append(f"Cost: {_round(weeks)} or {side} engineer weeks to build it.")
    if x.api_seconds is None:
        lines.append(
            f"Latency: today's median is above {x.promise:g} s (--api-seconds)."
        )
    if x.need is None:
        lines.append("Quality: you need more than prompts can reach (--need).")
    return lines


def _next(d: "Decision") -> list[str]:
    x, lines = d.inputs, []
    cases = f"{d.cases_needed:,} cases, each asked of both"
    margin = f"{100 * x.margin:g} points"
    if d.cheaper:
        lines.append(f"Is {d.cheaper.name} within {margin} of {x.model}? {cases}.")
    pays = d.own_year[0] < d.rival_year or x.data_stays
    if not pays and not any(one is not False for one in d.signals.values()):
        lines.append("Nothing on cost: no number in our ranges makes it pay.")
    elif x.gap_low is None:
        lines.append(f"Is a pilot of yours within {margin} of {x.model}? {cases}.")
    elif x.gap_low <= -x.margin <= x.gap_high:
        middle, half = (x.gap_low + x.gap_high) / 2, (x.gap_high - x.gap_low) / 2
        if middle > -x.margin:
            times = math.ceil(10 * (half / (middle + x.margin)) ** 2) / 10
            lines.append(f"Accuracy: {_round(times)} times the cases of your eval.")
        else:
            lines.append("Accuracy: train it better first; more cases do not help.")
    if x.answers_per_second is None and pays:
        lines.append(
            "Answers a second of your model on one GPU: an hour (notebook 09)."
        )
    if x.misses is None and not x.data_stays:
        lines.append(
            "The share of your calls that miss the cache, from your logs' times."
        )
    if x.api_seconds is None and not x.data_stays:
        lines.append("Today's median seconds, from your logs.")
    return lines[:4]


def _basis(d: "Decision") -> str:
    x, guesses = d.inputs, []
    for one in fields(x):
        value = getattr(x, one.name)
        if hasattr(value, "ends"):
            low, high = value.ends
            guesses.append(f"{one.name} {value:g} ({low:g} to {high:g})")
    prices = load_prices()
    used = {x.model: prices.models.get(x.model)}
    used |= {m.name: prices.gpu(m.name) for m in d.machines}
    hosted = d.own_way.removesuffix(", hosted")
    used |= {hosted: prices.hosted.get(hosted)}
    if d.cheaper:
        used |= {d.cheaper.name: prices.models[d.cheaper.name]}
    dated = [f"{name} {price.date}" for name, price in used.items() if price]
    old = [line.split(":")[0] for line in d.stale if line.split(":")[0] in used]
    text = (
        f"Guesses of ours, with their range; give yours by name: {'; '.join(guesses)}. "
    )
    if not x.answers_per_second:
        text += "The speed of GPUs is a guess, too: half to twice of it. "
    text += f"Prices (data/prices.json has sources and addresses): {'; '.join(dated)}. "
    if old:
        text += f"**Older than 90 days, look them up: {', '.join(old)}.** "
    if x.model not in prices.models:
        text += "Your prices are as you gave them; cache terms are guessed."
    return text.strip()


def _round(number: float) -> str:
    """Write two digits of a large number, such as '1.4 million'."""
    number = float(f"{number:.2g}")
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:g}{name}"
    return f"{number:,g}"


def _floor(share: float) -> str:
    return f"{math.floor(100 * share)}%"  # never 100


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _numbered(lines: list[str]) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""Put the numbers and words of a decision into decide.html, the form for a browser.

    python -m utils.costs.form

The page is one file that fetches nothing. Run this again after each change of
decide.py, words.toml or data/prices.json; a test says so.
"""

import json
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from utils.costs import decide, load, memo
from utils.costs.prices import MONTH, OLD_DAYS, load_prices

PAGE = Path(__file__).with_name("decide.html")
BLOCK = re.compile(r'(?s)(<script type="application/json" id="given">\n).*?(</script>)')


def given() -> dict[str, Any]:
    """Collect what the page must not type a second time."""
    prices = load_prices().model_dump(mode="json")
    prices["compute"] = {name: prices["compute"][name] for name in decide.GPUS}
    example = vars(decide.read(decide.EXAMPLE.split()))
    default = {one.name: one.default for one in fields(decide.Inputs)}
    return {
        "fields": [_field(one) for one in fields(decide.Inputs)],
        "example": {k: v for k, v in example.items() if v is not default[k]},
        "gpus": decide.GPUS,
        "bandwidth": decide.BANDWIDTH,
        "arithmetic": decide.ARITHMETIC,
        "faster": decide.FASTER,
        "cache_gb": decide.CACHE_GB,
        "slots": decide.SLOTS,
        "hours": decide.HOURS,
        "scaled": decide.SCALED,
        "without_api": {json.dumps(k): v for k, v in decide.WITHOUT_API.items()},
        "like": decide.LIKE,
        "month": MONTH,
        "servers": load.MANY,
        "rounding": load.ROUNDING,
        "quantiles": load.normal_quantiles(),
        "min_reviewed": decide.Decision.min_reviewed,
        "min_cases": decide.Decision.min_cases,
        "prices": prices,
        "old_days": OLD_DAYS,
        "words": memo.WORDS,
    }


# What the page shows at once, what it folds as guesses, and the rest: the last of each.
GROUPS = {"wage": "known", "differ": "guess", "tasks": "measured"}


def _field(one: Field) -> dict[str, Any]:
    names = [each.name for each in fields(decide.Inputs)]
    ends = [last for last in GROUPS if names.index(one.name) <= names.index(last)]
    value = None if one.default is MISSING else one.default
    low, _, high = getattr(value, "corners", (None, None, None))
    least, most, words = decide.limits(one.name)
    return {
        "name": one.name,
        "group": GROUPS[ends[0]],
        "kind": one.type.__name__,
        "help": one.metadata["help"],
        "needed": one.default is MISSING,
        "value": value,
        "low": low,
        "high": high,
        "least": least,
        "most": most,
        "words": words,
    }


def filled(page: str) -> str:
    """Return the page with today's numbers and words."""
    lines = [f'"{name}": {json.dumps(value)}' for name, value in given().items()]
    block = "{\n" + ",\n".join(lines) + "\n}\n"
    return BLOCK.sub(lambda found: found[1] + block + found[2], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")

"""The form in the browser: the numbers and sentences of the Python, on any input."""

import functools
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import asdict, fields

import pytest

from utils.costs import decide, form, memo

NODE = shutil.which("node")
PAGE = form.PAGE.read_text("utf-8")
# A line in: a reader's numbers; a line out: a decision or an error.
RUN = """
for (const line of require("fs").readFileSync(0, "utf-8").trim().split("\\n")) {
  const { own, today } = JSON.parse(line);
  let answer;
  try {
    const found = decide(inputs(own));
    const text = write(found, false, today);
    answer = { ...found, inputs: null, text };
  } catch (error) { answer = { wrong: error.message }; }
  const all = (_, value) => typeof value === "number" && !Number.isFinite(value)
    ? String(value) : value;
  console.log(JSON.stringify(answer, all));
}
"""


def run_page(readers):
    block = re.search(r'(?s)id="given">\n(.*?)</script>', PAGE)[1]
    compute = re.search(r'(?s)<script id="compute">\n(.*?)</script>', PAGE)[1]
    script = f"const given = {block};\n{compute}\n{RUN}"
    today = str(memo.dt.date.today())
    lines = "\n".join(json.dumps({"own": own, "today": today}) for own in readers)
    done = subprocess.run(
        [NODE, "-e", script], input=lines, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_python(own):
    try:
        x = decide.Inputs(**own)
    except ValueError as error:
        return {"wrong": str(error)}
    found = decide.decide(x)
    return asdict(found) | {"text": memo.write(found), "weeks": found.weeks}


def any_reader(chance):
    """Numbers of a reader: each field from its limits' whole range, or left out."""
    models = list(form.given()["prices"]["models"])
    common = {"volume": (1e3, 1e9), "tokens_in": (10, 5e4), "tokens_out": (1, 5e3)}
    common |= {"answers_per_second": (0.05, 300), "billions": (0.3, 80)}
    common |= {"months": (1, 48), "api_seconds": (0.1, 60), "thinking": (1, 2e3)}
    common |= {"promise": (0.1, 60), "wage": (10, 300), "peak": (1, 20)}
    common |= {"accuracy": (0.4, 1), "need": (0.4, 1), "margin": (0.002, 0.2)}
    common |= {"price_in": (0.02, 60), "price_out": (0.02, 90), "p95": (0.3, 200)}
    own = {}
    for one in fields(decide.Inputs):
        if one.default is not decide.MISSING and chance.random() < 0.7:
            continue
        least, most, _ = decide.limits(one.name)
        low, high = common.get(one.name, (least, min(most, 100)))
        if chance.random() < 0.02:
            low, high = least, most  # as far as it goes
        if one.type is bool:
            own[one.name] = True
        elif one.name in ("model", "gpu"):
            own[one.name] = chance.choice(models if one.name == "model" else ["L40S"])
        elif one.type is int:
            own[one.name] = chance.choice([1, 2, 4, 8, 150, 900])
        elif one.name.startswith("gap"):
            middle, half = chance.gauss(0, 0.03), chance.uniform(0.001, 0.06)
            own |= {"gap_low": middle - half, "gap_high": middle + half}
        elif low > 0 and high / low > 10:
            own[one.name] = low * (high / low) ** chance.random()
        else:
            own[one.name] = chance.uniform(low, high)
    if "answers_per_second" in own:
        own["gpu"] = chance.choice(list(decide.GPUS))
    if chance.random() < 0.7 and "model" in own:
        price = form.load_prices().model(own["model"])
        own |= {"price_in": price.input, "price_out": price.output}
    return own


def differences(ours, theirs, path=""):
    """Where a value of the page is not Python's."""
    if isinstance(ours, dict):
        for key in ours.keys() - {"inputs", "stale"}:
            yield from differences(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list | tuple):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(ours, float) and not isinstance(ours, bool):
        if not math.isclose(ours, float(theirs), rel_tol=1e-6):
            yield path, ours, theirs
    elif ours != theirs:
        yield path, ours, theirs


CHANCE = random.Random(16)
READERS = [any_reader(CHANCE) for _ in range(220)]


@functools.cache
def found(i):
    return in_python(READERS[i])


def test_what_is_said_to_turn_the_verdict_turns_it():
    turned = 0
    for i, own in enumerate(READERS[:100]):
        ours = found(i)
        words = [f"{decide._flag(k)}={v}" for k, v in own.items() if v is not True]
        ticks = [decide._flag(name) for name, value in own.items() if value is True]
        for turn in ours.get("turns", []):
            flags = turn["flags"].removeprefix("without --data-stays").split()
            kept = [t for t in ticks if "without " + t != turn["flags"]]
            then = decide._judge(decide.read([*words, *kept, *flags]))["verdict"]
            assert then == turn["verdict"] != ours["verdict"], (own, turn)
            assert memo.kind(then) != memo.kind(ours["verdict"])
            turned += 1
    assert turned > 100


@pytest.mark.skipif(not NODE, reason="node is not installed: it runs the page's script")
def test_the_page_decides_as_python_does():
    verdicts = set()
    for i, (own, theirs) in enumerate(zip(READERS, run_page(READERS), strict=True)):
        ours = found(i)
        assert list(differences(ours, theirs)) == [], own
        verdicts.add(ours.get("verdict", ours.get("wrong", ""))[:11])
    assert len(verdicts) > 8  # of all kinds


NONSENSE = [
    {"volume": 0},
    {"tokens_in": -5},
    {"accuracy": 93},
    {"peak": 0.5},
    {"promise": 2_000},
    {"p95": 1.0},
    {"wage": 90_000},
    {"price_in": 0.0001, "price_out": 0.0005},
    {"gap_low": 0.01},
    {"gap_low": 0.02, "gap_high": 0.01},
    {"answers_per_second": 4.0},
    {"gpu": "H1OO"},
    {"volume": 1e300},
]


@pytest.mark.skipif(not NODE, reason="node is not installed: it runs the page's script")
def test_nonsense_gets_the_same_words():
    good = {"volume": 3e6, "tokens_in": 1800, "tokens_out": 250}
    good |= {"price_in": 2.0, "price_out": 10.0}
    readers = [good | bad for bad in NONSENSE]
    for own, theirs in zip(readers, run_page(readers), strict=True):
        assert theirs == in_python(own) and theirs["wrong"]
    (nothing,) = run_page([{}])
    assert nothing["wrong"].startswith("give --volume, --tokens-in, --tokens-out,")


def test_the_page_has_todays_numbers_and_fetches_nothing():
    assert form.filled(PAGE) == PAGE, "run: python -m utils.costs.form"
    outside = re.sub(r'(?s)id="given">\n.*?</script>', "", PAGE)
    assert not re.search(r"https?:|fetch\(|XMLHttp|@import|<link[^>]*css|src=", outside)

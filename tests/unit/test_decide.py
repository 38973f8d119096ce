"""The decision: by hand, the manager's cases, nonsense, and what never may happen."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from utils.costs import decide as module
from utils.costs import memo
from utils.costs.decide import Inputs, decide, rule

near = pytest.approx
ROOT = Path(__file__).parents[2]
HAIKU = {"model": "claude-haiku-5.5", "price_in": 0.10, "price_out": 0.50}
SONNET = {"model": "claude-sonnet-5.5", "price_in": 2.0, "price_out": 10.0}
MANAGER = {"volume": 3e6, "tokens_in": 1800, "tokens_out": 250, "accuracy": 0.93}
MANAGER |= {"promise": 2.0, "peak": 3.0, "wage": 60.0}
EQUAL = {"gap_low": -0.01, "gap_high": 0.01}


def inputs(**changed):
    return Inputs(**(MANAGER | HAIKU | changed))


# --- the manager of the review --------------------------------------------------------


def test_haiku_is_a_no_go_with_a_ceiling_of_four_engineer_weeks():
    found = decide(inputs())
    assert found.verdict == "no-go: stay on the API"
    # 1,800 x 0.10 + 250 x 0.50 = 305 USD a million calls; three million a month.
    assert found.plain_year == near(12 * 915)
    # 10,980 USD buy 183 hours.
    assert found.weeks == near(10_980 / 40 / 60) and 4 < found.weeks < 5
    text = memo.write(found)
    assert "**NO-GO: stay on claude-haiku-5.5. You pay 10,980 USD a year" in text
    assert "4.6 engineer weeks" in text and "Nothing is left for serving" in text


def test_sonnet_is_open_and_says_what_to_try_first():
    found = decide(inputs(**SONNET))
    assert found.verdict == "switch tiers, measure, then decide"
    assert found.plain_year == near(12 * 18_300)
    assert found.cheaper.name == "claude-haiku-5.5"
    assert "**NOT YET: try claude-haiku-5.5 first." in memo.write(found)


def test_a_cheaper_model_is_tried_where_that_pays():
    # Both as cheap as they come: 10,092 a month, not the 18,300 without a cache.
    assert "claude-sonnet-5.5 at its best costs 10,092 USD" in memo.write(
        decide(inputs(**SONNET))
    )
    # 20,000 calls: 70 USD a month saved, and 1,372 cases of two minutes at 60 an hour.
    tiny = decide(inputs(**SONNET | {"volume": 2e4}))
    assert tiny.verdict.startswith("no-go") and tiny.cheaper is None
    assert decide(inputs(**SONNET | {"volume": 2e4}, case_minutes=0.1)).cheaper


def test_sonnet_with_an_eval_of_half_a_point_too_much():
    gap = {"gap_low": -0.025, "gap_high": 0.005}
    found = decide(inputs(**SONNET, **gap, cheaper_fails=True))
    assert found.verdict.startswith("not yet: measure cost")
    # The interval is 1.5 points to each side of -1 and may be one: (1.5 / 1) ** 2.
    assert "2.3 times the cases of your eval" in memo.write(found)


def test_late_answers_are_a_go_whose_price_is_told():
    found = decide(inputs(api_seconds=2.2, gap_low=-0.019, gap_high=-0.001))
    assert found.verdict == "go: latency"
    assert " more; claude-haiku-5.5 at its best" in memo.write(found)
    assert "hosted" not in found.own_way  # nobody knows a host's seconds


def test_equal_systems_reach_a_no_go():
    found = decide(inputs(gap_low=-0.0001, gap_high=0.0001))
    assert found.verdict == "no-go: stay on the API"


@pytest.mark.parametrize("volume", [3e6, 3e8])
def test_less_right_than_the_margin_never_stands(volume):
    bad = {"gap_low": -0.05, "gap_high": -0.03, "api_seconds": 9.0}
    found = decide(inputs(**SONNET, **bad) if volume == 3e6 else inputs(**bad))
    assert found.verdict == "no-go: stay on the API"
    assert "at least 3.0 points less often" in memo.write(found)


# --- by hand --------------------------------------------------------------------------


def test_the_rivals_by_hand():
    found = decide(inputs(misses=0.25, batch_share=0.5, thinking=100, **SONNET))
    ways = {way.name: way.usd_a_month for way in found.rivals}
    # 1,800 x 2 + 350 x 10 = 7,100 USD a million; half of the calls at half the price.
    assert ways["as it is"] == near(3 * 7_100 * 0.75)
    # 1,440 equal tokens: read at 0.10, a quarter of the calls writes at 2.50 instead.
    cached = 1_440 * (0.75 * 0.10 + 0.25 * 2.5) + 360 * 2 + 3_500
    assert ways["cached"] == near(3 * cached * 0.75)
    assert ways["all in a batch"] == near(3 * 7_100 * 0.5)
    assert ways["100 thinking tokens more"] == near(3 * 7_100 * 0.75 + 3 * 1_000)
    # A hosted 4B model: 1,800 x 0.10 + 350 x 0.30, no cache, no batch.
    assert ways["qwen3.5-4b, hosted"] == near(3 * 285)


def test_a_cache_that_calls_miss_and_one_too_short():
    # A call in five minutes on average: e ** -1 of them come too late.
    rare = decide(inputs(**SONNET | {"volume": 30.4375 * 24 * 12}))
    how = {way.name: way.words for way in rare.rivals}["cached"]
    assert how == "cache of 60 minutes, found by 100%"  # dearer to write, never missed
    short = decide(inputs(tokens_in=600))
    how = {way.name: way.words for way in short.rivals}["cached"]
    assert how == "480 equal tokens are below the cache's 512"
    assert short.rival_year == short.plain_year


def test_people_by_hand():
    found = decide(inputs())
    # 12 weeks of 40 hours, and 4 days of 8 hours a month, at 60 USD.
    assert found.people_year[1] == near(12 * 40 * 60 + 12 * 4 * 8 * 60)
    # At worst 26 weeks and 9 days, at best 4 weeks and 2 days.
    assert found.people_year[0] == near(4 * 40 * 60 + 12 * 2 * 8 * 60)
    assert found.people_year[2] == near(26 * 40 * 60 + 12 * 9 * 8 * 60)
    # A number of the reader's has no range, also where it is our guess.
    yours = {"review_days": 1.0, "retrain_days": 1.0, "oncall_days": 2.0}
    sure = decide(inputs(build_weeks=12.0, **yours)).people_year
    assert sure == near((51_840,) * 3)
    two = decide(inputs(build_weeks=12.0, **yours, tasks=2, months=24.0)).people_year
    assert two[1] == near(2 * (14_400 + 23_040))


def test_a_measured_machine_by_hand():
    measured = {"gpu": "L40S", "answers_per_second": 4.0, "at_once": 4, "spread": 0.0}
    found = decide(inputs(**SONNET, **measured))
    (machine,) = found.machines
    assert machine.answers_per_second == near(4) and machine.alone == near(1)
    # 3.4 answers a second at the peak are 86 % of one machine's four.
    assert machine.count == 1 and 0.86 < machine.allowed < 1
    assert machine.usd_a_month == near(1.95 * 30.4375 * 24)
    # What is left for an answer, on a machine busy a third of what is allowed.
    most = (found.rival_year - found.people_year[1]) / 36e6
    assert machine.needed == near(1.95 / 3600 / most * 3 / machine.allowed)
    slow = decide(inputs(**SONNET, **measured | {"answers_per_second": 1.0}))
    assert slow.machines[0].allowed == 0 and "too slow" in memo.write(slow)


def test_the_guess_of_speed_against_a_public_benchmark(monkeypatch):
    # vLLM on an RTX 4090, Mistral 7B at 16 bits, 256 tokens in, about 100 out:
    # answers a second at 4, 16 and 32 at a time, mushfiqrahman.dev/?p=1668.
    monkeypatch.setitem(module.GPUS, "RTX 4090", (1008, 165, 24))
    x = inputs(tokens_in=256, tokens_out=100, billions=7.25, same_prefix=0.0)
    for at_once, theirs in ((4, 2.09), (16, 6.44), (32, 9.73)):
        seconds = module._seconds(x, "RTX 4090", at_once)
        # Ours is for 8 bits a parameter: reading them once more makes it 16.
        seconds += 100 * 7.25 / (1008 * module.BANDWIDTH)
        assert at_once / seconds == near(theirs, rel=0.15)


def test_how_many_cases_by_hand():
    # (1.96 + 0.84)² x 0.1 / 0.02² = 1,960
    assert decide(inputs(differ=0.1)).cases_needed == 1_960
    assert decide(inputs(differ=0.1, margin=0.01)).cases_needed == 7_840


def test_from_which_volume_the_centre_saves():
    found = decide(inputs(**SONNET))
    for factor, saves in ((0.97, False), (1.03, True)):
        there = decide(inputs(**SONNET | {"volume": factor * found.from_volume}))
        assert (there.own_year[1] < there.rival_year) == saves
    cheap = decide(inputs(price_in=0.01, price_out=0.02, billions=8.0, model="x"))
    assert math.isinf(cheap.from_volume) and "No volume makes it pay" in memo.write(
        cheap
    )


# --- the rule, and what no price outweighs --------------------------------------------


@pytest.mark.parametrize(
    ("cost", "latency", "quality", "enough", "tier", "verdict"),
    [
        (True, False, None, True, True, "switch tiers, measure, then decide"),
        (True, True, None, True, True, "go: cost, latency"),
        (False, True, None, False, False, "not yet: collect and review first"),
        (False, None, None, True, False, "not yet: measure latency, quality"),
        (False, False, False, True, False, "no-go: stay on the API"),
    ],
)
def test_the_rule_of_notebook_00(cost, latency, quality, enough, tier, verdict):
    signals = {"cost": cost, "latency": latency, "quality": quality}
    assert rule(signals, enough, tier) == verdict


def test_what_no_price_outweighs():
    stays = decide(inputs(data_stays=True))
    assert stays.verdict == "not yet: measure accuracy" and not stays.rivals
    assert stays.own_way in module.GPUS
    text = memo.write(stays)
    assert " less than " not in text and "at its best" not in text  # no API to beat
    assert decide(inputs(data_stays=True, **EQUAL)).verdict.startswith("go: your data")
    bad = decide(inputs(data_stays=True, gap_low=-0.3, gap_high=-0.2))
    assert bad.verdict == "not yet: not accurate enough"
    assert "at least 20.0 points less often" in memo.write(bad)
    few = decide(inputs(data_stays=True, reviewed=0, need=0.9, api_seconds=1.0))
    assert few.verdict == "not yet: collect and review first"
    slow = decide(inputs(data_stays=True, promise=0.1))
    assert slow.verdict == "not yet: measure speed"
    assert "no GPU is fast enough" in memo.write(slow)
    assert decide(inputs(retires=True)).verdict.endswith("the model's successor")
    one, three = (
        decide(inputs(data_stays=True)),
        decide(inputs(data_stays=True, tasks=3)),
    )
    assert three.people_year[1] == near(3 * one.people_year[1])
    assert three.machines[-1].count >= 3 * 1  # each task has a machine that idles


def test_a_need_and_little_data():
    better = {"need": 0.97, "gap_low": 0.02, "gap_high": 0.06}
    # Better than today's, but whether it has what is needed is open.
    assert decide(inputs(**better)).verdict == "not yet: measure quality"
    better["need"] = 0.94
    assert decide(inputs(**better)).verdict == "go: quality"
    assert decide(inputs(**better, reviewed=0)).verdict.startswith("not yet: collect")
    few = decide(inputs(reviewed=0))  # no reason to leave: nothing to collect for
    assert few.verdict == "no-go: stay on the API"
    assert decide(inputs(need=0.97)).verdict == "not yet: measure quality"
    assert decide(inputs(need=0.9)).verdict == "no-go: stay on the API"


# --- what never may happen ------------------------------------------------------------

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # no shrinking: it takes minutes
NUMBERS = {
    "volume": st.floats(1e3, 1e8),
    "tokens_in": st.floats(20, 20_000),
    "tokens_out": st.floats(1, 2_000),
    "price_out": st.floats(0.1, 50),
    "peak": st.floats(1, 10),
    "promise": st.floats(0.3, 20),
    "accuracy": st.floats(0.5, 1),
    "billions": st.floats(0.5, 9),
}


@settings(max_examples=12, deadline=None, phases=QUICK)
@given(numbers=st.fixed_dictionaries(NUMBERS), more=st.floats(1, 30))
def test_more_volume_never_turns_a_go_on_cost_into_a_no_go(numbers, more):
    numbers |= {"price_in": numbers["price_out"] / 5, "cheaper_fails": True} | EQUAL
    few = decide(Inputs(**numbers))
    many = decide(Inputs(**numbers | {"volume": more * numbers["volume"]}))
    assert not (few.signals["cost"] and many.signals["cost"] is False)
    assert few.own_year[0] <= few.own_year[1] <= few.own_year[2]
    assert few.rival_year <= few.plain_year * (1 + 1e-9)
    for found in (few, many):
        text = memo.write(found)
        assert "nan" not in text and "inf " not in text and "e+" not in text


@settings(max_examples=8, deadline=None, phases=QUICK)
@given(numbers=st.fixed_dictionaries(NUMBERS), less=st.floats(0.1, 1))
def test_a_cheaper_api_never_turns_a_no_go_into_a_go(numbers, less):
    numbers |= {"price_in": numbers["price_out"] / 5, "cheaper_fails": True} | EQUAL
    now = decide(Inputs(**numbers))
    cut = {name: max(0.02, less * numbers[name]) for name in ("price_in", "price_out")}
    then = decide(Inputs(**numbers | cut))
    assert not (now.signals["cost"] is False and then.signals["cost"])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"volume": 0}, "--volume is 0 .*above 0"),
        ({"volume": math.nan}, "--volume is nan"),
        ({"volume": math.inf}, "--volume is inf"),
        ({"tokens_in": -5}, "--tokens-in is -5"),
        ({"api_seconds": -1}, "--api-seconds is -1"),
        ({"build_weeks": -1}, "--build-weeks is -1 .*0 or more"),
        ({"accuracy": 93}, "for 93 per cent 0.93"),
        ({"misses": 1.01}, "--misses is 1.01 .*share from 0 to 1"),
        ({"margin": 0}, "--margin is 0"),
        ({"peak": 0.5}, "--peak .*1 or more"),
        ({"promise": 2_000}, "--promise .*seconds"),
        ({"p95": 1.0}, "cannot be below --promise"),
        ({"wage": 90_000}, "--wage .*an hour"),
        ({"price_in": -0.1}, "--price-in is -0.1"),
        ({"price_in": 0.0001, "price_out": 0.0005}, "0.0005 USD .*1,000 times"),
        ({"price_in": 0, "price_out": 0}, "0 USD .*: give the price of a million"),
        ({"price_out": 50_000}, "per million"),
        ({"gap_low": -2.5, "gap_high": 0.5}, "for 2 points 0.02"),
        ({"gap_low": 0.01, "gap_high": -0.01}, "the low end first"),
        ({"gap_low": 0.01}, "together"),
        ({"answers_per_second": 4.0}, "--gpu where"),
        ({"gpu": "H1OO"}, "--gpu where you measured: L4, L40S, H100"),
        ({"tasks": 0}, "--tasks is 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(bad, words):
    with pytest.raises(ValueError, match=words) as error:
        inputs(**bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--volume 3", "give --tokens-in, --tokens-out, --price-in, --price-out, too"),
        ("--utilisation 0.3", "utilisation follows from"),
        ("--accuracy 93%", "--accuracy is '93%': write a number such as 0.93"),
        ("--volume 3M", "--volume is '3M': write a number such as 0.93 or 1800"),
        ("--tasks 1,5", "--tasks is '1,5': write a number such as 12"),
        ("--volumes 3", "unrecognized arguments: --volumes 3"),
    ],
)
def test_a_wrong_command_ends_with_one_line(words, says):
    with pytest.raises(SystemExit, match=says):
        module.read(words.split())


def test_an_unknown_model_is_named():
    with pytest.raises(LookupError, match="'gpt-99'; known: claude-haiku"):
        module.read(["--model", "gpt-99"])


# --- the memo and the command ---------------------------------------------------------


def test_the_memo_tells_old_prices_and_what_is_a_guess(monkeypatch):
    found = decide(inputs())
    found = dataclasses.replace(found, stale=["L4: 2026-07-01, 151 days old"])
    text = memo.write(found)
    assert "**Older than 90 days, look them up: L4.**" in text
    assert "build_weeks 12 (4 to 26)" in text
    assert "wage" not in text.split("Guesses of ours")[1]  # that one is the reader's
    assert len(text.split()) < 800  # short


def test_the_command_needs_no_torch_and_writes_the_memo():
    code = (
        "import sys; from utils.costs import decide; decide.main([]);"
        "heavy = {'torch', 'pandas', 'scipy', 'statsmodels', 'transformers'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "*A worked example. Not your numbers: volume, tokens_in," in done.stdout
    assert done.stdout.rstrip().endswith("[]")
    written = (ROOT / "runs" / "decision.md").read_text(encoding="utf-8")
    assert written in done.stdout


def test_each_price_that_the_memo_uses_has_an_address_and_a_date():
    raw = json.loads((ROOT / "data" / "prices.json").read_text(encoding="utf-8"))
    for name, price in (raw["models"] | raw["hosted"] | raw["compute"]).items():
        assert price["url"].startswith("https://") and price["date"], name


def test_every_part_must_hold():
    assert module.every(True, None) is None and module.every(None, False) is False
    assert module.every(True, True) is True

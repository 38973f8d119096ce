"""Prices: dated, sourced, refused when unknown; costs worked out by hand."""

import datetime as dt
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from utils.costs import prices as costs
from utils.costs.prices import MONTH, PRICE_FILE, UnknownPrice, call_cost, paid_seconds


@pytest.fixture(scope="module")
def prices():
    return costs.load_prices()


def test_prices_as_the_sources_state_them(prices):
    stated = {n: (m.input, m.cached_input, m.output) for n, m in prices.models.items()}
    assert stated == {
        "claude-haiku-5.5": (0.10, 0.01, 0.50),
        "claude-sonnet-5.5": (2, 0.05 * 2, 10),
        "claude-opus-5.5": (4, 0.05 * 4, 20),
        "gpt-6-luna": (0.10, 0.01, 0.50),
        "gpt-6-sol": (2, 0.20, 10),
    }
    assert {m.batch_discount for m in prices.models.values()} == {0.5}
    hosted = {n: (m.billions, m.input, m.output) for n, m in prices.hosted.items()}
    assert hosted == {"qwen3.5-4b": (4, 0.10, 0.30), "qwen3.5-9b": (9, 0.20, 0.60)}
    for model in prices.models.values():  # writing costs a quarter more, an hour twice
        for write in model.cache.writes:
            times = 2 if write.minutes == 60 else 1.25
            assert write.usd == pytest.approx(times * model.input)
    assert prices.gpu("H100").price == 3.95
    for name in ("H1OO", "cpu_core_second"):  # a second of a core is no GPU
        with pytest.raises(UnknownPrice, match=r"known: .*L40S.*source, address"):
            prices.gpu(name)


def test_stale_names_prices_older_than_ninety_days(prices):
    assert prices.stale(dt.date(2026, 9, 29)) == []  # Modal's list is 90 days old
    modal = prices.stale(dt.date(2026, 9, 30))
    assert modal[0] == "H100: 2026-07-01, 91 days old"
    assert len(modal) == len(prices.compute)
    assert len(prices.stale(dt.date(2027, 1, 6))) == 17


BAD = {"source": " ", "url": "the vendor's page", "date": "2026-09", "input": -0.1}
BAD |= {"batch_discount": 50, "cache": {"minimum": 1024}}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_entry_is_named(tmp_path, field):
    raw = json.loads(PRICE_FILE.read_text(encoding="utf-8"))
    raw["models"]["gpt-6-sol"][field] = BAD[field]
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"models\.gpt-6-sol\.{field}"):
        costs.load_prices(path)


def test_cost_of_a_call_by_hand(prices):
    haiku = prices.model("claude-haiku-5.5")
    # 1000 x 0.10 + 200 x 0.50 = 200 USD per million calls
    assert call_cost(haiku, 1000, 200) == pytest.approx(0.000200)
    # 100 x 0.10 + 900 x 0.01 + 200 x 0.50 = 119
    assert call_cost(haiku, 1000, 200, cached_tokens=900) == pytest.approx(0.000119)
    assert call_cost(haiku, 1000, 200, 900, batch=True) == pytest.approx(0.0000595)
    opus = prices.model("claude-opus-5.5").model_copy(update={"cached_input": None})
    assert call_cost(opus, 1000, 0, cached_tokens=1000) == pytest.approx(0.004)
    sol = prices.model("gpt-6-sol")
    usd = call_cost(sol, np.array([1000, 500]), [100, 0], cached_tokens=[0, 500])
    assert usd == pytest.approx([0.003, 0.0001])


def test_cost_of_a_cached_call_by_hand(prices):
    sonnet = prices.model("claude-sonnet-5.5")
    # All found: 900 x 0.10 + 100 x 2 + 10 x 10 = 390 USD a million.
    call = (sonnet, 1000, 10, 900, 5)
    assert costs.cached_call_cost(*call, misses=0) == pytest.approx(0.000390)
    # All written: 900 x 2.50 + 100 x 2 + 10 x 10 = 2,550; plain it is 2,100.
    assert costs.cached_call_cost(*call, misses=1) == pytest.approx(0.002550)
    assert costs.cached_call_cost(*call, misses=0.25) == pytest.approx(0.000930)
    short = costs.cached_call_cost(sonnet, [1000, 600], 10, 511, 5, misses=0)
    assert short == pytest.approx([0.0021, 0.0013])  # below the minimum: plain
    with pytest.raises(UnknownPrice, match="of 30 minutes; known: 5, 60"):
        costs.cached_call_cost(sonnet, 1000, 10, 900, 30, 0)
    with pytest.raises(UnknownPrice, match="known: none"):
        unknown = sonnet.model_copy(update={"cache": None})
        costs.cached_call_cost(unknown, 1000, 10, 900, 5, 0)


def test_cost_per_correct_carries_the_interval():
    half = SimpleNamespace(value=0.5, low=0.4, high=0.8)
    assert costs.per_correct(0.01, half) == pytest.approx((0.02, 0.0125, 0.025))
    none = SimpleNamespace(value=0.0, low=-1e-17, high=0.02)
    assert costs.per_correct(0.01, none) == pytest.approx((math.inf, 0.5, math.inf))


def test_an_hour_of_a_machine_by_hand(prices):
    # 2 cores x 0.0000131 + 4 GiB x 0.00000222 = 0.00003508 USD a second
    assert costs.cpu_hour(prices, 2, 4) == pytest.approx(0.126288)


def test_paid_seconds_by_hand():
    # Never asleep, 1,000 questions a month: each pays a thousandth of the month.
    assert paid_seconds(2, 1_000) == pytest.approx(MONTH / 1_000)
    # 3 a second take two machines of 2 a second.
    assert paid_seconds(2, 3 * MONTH) == pytest.approx(2 / 3)
    # Asleep at once, one question a month: half a second of work, and 6 s of start.
    assert paid_seconds(2, 1, 0, 6) == pytest.approx(6.5, rel=1e-5)
    assert paid_seconds(2, 1, 300, 6) == pytest.approx(306.5, rel=1e-3)

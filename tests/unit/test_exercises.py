"""Exercises: the worked answers are right, near misses are not, values fit the data."""

import re
import subprocess
import sys

import numpy as np
import pytest
from repository import NAMES, ROOT
from scipy import stats as scipy_stats
from solutions import NEAR_MISSES, SOLUTIONS

from utils import tidewater
from utils.costs import bill
from utils.costs import prices as costs
from utils.costs.decide import rule
from utils.costs.prices import cached_call_cost, call_cost, load_prices
from utils.course.exercises import ROWS, TESTS, check
from utils.evals import stats
from utils.evals.grading import Grader
from utils.logs import overlap
from utils.serving import simulate
from utils.tidewater import sql_style


def test_there_is_a_solution_to_every_exercise():
    assert SOLUTIONS.keys() == NEAR_MISSES.keys() == ROWS.keys()
    numbers = {name.split("_")[0] for name in NAMES}
    assert {name.split(".")[0] for name in SOLUTIONS} == numbers
    assert {name for name in ROWS if ROWS[name].keys() == {"hint"}} == TESTS.keys()


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solution_is_right_and_no_other_answer(name):
    verdict = check(name, SOLUTIONS[name])
    assert verdict and repr(verdict) == f"{name}: right."
    for empty in (..., None, "", [], {}):
        assert not check(name, empty)
    absurd = (-1, "SELECT 1", "go", {"spans": []}, lambda x: x)
    for wrong in (NEAR_MISSES[name], *absurd):
        verdict = check(name, wrong)
        assert not verdict
        assert repr(verdict).endswith(ROWS[name]["hint"])


def test_hints_name_functions_that_exist():
    modules = {"overlap": overlap, "stats": stats, "sql_style": sql_style}
    hints = " ".join(row["hint"] for row in ROWS.values())
    named = re.findall(r"\b(overlap|stats|sql_style)\.(\w+)", hints)
    assert named
    assert all(hasattr(modules[module], function) for module, function in named)


def test_queries_that_miss_a_detail_are_wrong():
    assert not check("02.3", "SELECT COUNT(*) FROM tickets WHERE 1 = 1 LIMIT 0")
    assert not check("11.3", "SELECT region, 5.0 FROM shipments GROUP BY region")
    assert not check("11.3", "DELETE FROM shipments")


def test_exercises_import_none_of_what_they_check():
    code = "import sys, utils.course.exercises; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    out = subprocess.check_output(command, cwd=ROOT, text=True)
    ours = {name for name in out.split() if name.startswith("utils.")}
    assert ours == {"utils.course", "utils.course.run", "utils.course.exercises"}


def right(prompt):
    """Which cases the recorded replies under a prompt answer rightly."""
    cases = tidewater.load_cases()
    replies = tidewater.recorded_model(prompt).replies
    texts = [replies[case["question"]].text for case in cases]
    with tidewater.open_pool() as pool:
        grades = Grader(pool).grade(cases, [tidewater.extract_sql(t) for t in texts])
    return np.array([grade.correct for grade in grades])


def answers_about_logs():
    logs = tidewater.load_logs()
    answered = [t.question for t in logs if tidewater.extract_sql(t.reply)]
    yield "01.1", len(set(overlap.duplicates(answered)))
    fixed = [t.feedback["sql"] for t in logs if t.verdict == "corrected"]
    seen = {sql_style.skeleton(sql) for sql in fixed}
    forms = [sql_style.skeleton(case["sql"]) for case in tidewater.load_cases()]
    yield "04.3", sum(form not in seen for form in forms)


def answers_about_replies():
    rows = tidewater.read_jsonl("disagreements.jsonl")
    yield "02.1", next(r["id"] for r in rows if r["verdict"] == "gold_doubtful")
    bullets = {"churned": 7, "active": 3, "bottom": 10}  # by metric, else by form
    missing = set()
    for case, ok in zip(tidewater.load_cases(), right("fewshot"), strict=True):
        if not ok:
            missing.add(bullets.get(case["metric"]) or bullets[case["form"]])
    yield "03.1", sorted(missing)


def answers_of_five_teams():
    off = dict.fromkeys(("cost", "latency", "quality"), False)
    dear = off | {"cost": True}
    teams = {
        "switch": (dear, True, True),
        "go": (dear, True),
        "collect": (off | {"latency": True}, False),
        "measure": (off | {"latency": None}, True),
        "stay": (off, True),
    }
    verdicts = [rule(*team) for team in teams.values()]
    yield "00.2", [w for w, said in zip(teams, verdicts, strict=True) if w in said]


def answers_about_claims():
    told = [(-0.5, -1.5, 0.4, 0.15), (-6.0, -9.2, -3.2, 0.04), (-1.2, -2.8, 0.4, 0.12)]
    told += [(-1.2, -2.8, 0.4, 0.35), (3.0, 0.5, 5.5, 0.20)]
    words = []
    for *points, ratio in told:
        gap = stats.Interval(*(x / 100 for x in points), n=250)
        words.append(bill.judge_claim(bill.judge_quality(gap, 0.02), ratio))
    yield "10.2", words


def answers_by_arithmetic():
    yield "00.3", stats.cases_needed(10, 0.5)
    yield "02.2", (0.55 + 0.8 - 1) / (0.9 + 0.8 - 1)
    yield "04.2", 8 * 10 * (2 * 2 * 576 + 2 * (576 + 192) + 3 * (576 + 1536))
    yield "05.1", 16 * 10 + 8 * 10 + 4 * 20 + 2 * 40
    yield "06.1", scipy_stats.zscore([1] * 6 + [0] * 2, ddof=1)[0]
    yield "06.3", next(n for n in range(1, 99) if 1 - 0.95**n - 0.05**n > 0.5)
    yield "07.1", scipy_stats.zscore([1] * 2 + [-1] * 5 + [0], ddof=1)[-1]
    yield "08.1", round(10_000 / min(5, 100 / 42) / 60)
    yield "08.3", max(n for n in range(1, 999) if 0.99**n >= 0.5)
    yield "09.1", 16e9 / 145e6
    yield "09.2", 4 * 5
    yield "10.1", 1000 * 0.80 / 3600 / (10 * 0.60 / 2.2) / 0.86
    yield "11.1", stats.sequential_test([True] * 50, alpha=0.01).stopped_at
    yield "12.1", stats.cases_needed(8, 0.5, paired_discordance=0.4)
    yield "12.3", (1000 * 92 / 4000 - 0.40) / (1000 * 0.04)


@pytest.mark.parametrize(
    "answers",
    [
        answers_about_logs,
        answers_about_replies,
        answers_of_five_teams,
        answers_about_claims,
        answers_by_arithmetic,
    ],
)
def test_the_fixed_answers_follow_from_the_data(answers):
    for name, value in answers():
        exact = ROWS[name].get("tolerance", 0) == 0
        assert ROWS[name]["answer"] == (value if exact else pytest.approx(value, 1e-5))


def pool_seconds(jobs, sandboxes, batch, call, job):
    policy = simulate.Policy("pool", sandboxes, batch=batch)
    work = simulate.Work(simulate.fixed(job), call=simulate.fixed(call))
    return simulate.simulate(policy, work, jobs).seconds


def test_the_calls_return_what_a_library_does():
    for (usd, seats_pay, share, own), value in ROWS["00.1"]["calls"]:
        assert value * usd == pytest.approx(max(share * seats_pay, own))
    for (tokens, plain, write, read, found), value in ROWS["03.2"]["calls"]:
        price = load_prices().model("claude-haiku-5.5").model_dump(exclude={"cache"})
        price |= {"input": plain, "cached_input": read}
        cache = {"minimum": 0, "writes": [{"minutes": 60.0, "usd": write}]}
        named = {key: price[key] for key in ("source", "url", "date")}
        price = costs.TokenPrice(**price, cache=cache | named)
        cached = cached_call_cost(price, tokens, 0, tokens, 60, 1 - found)
        assert value / 1e6 == pytest.approx(min(cached, call_cost(price, tokens, 0)))
    for (n, c, k), value in ROWS["06.2"]["calls"]:
        some = 1 - scipy_stats.hypergeom(n, c, k).pmf(0)
        assert some == pytest.approx(value, abs=1e-6)
    for (once, months, monthly, *ways), value in ROWS["10.3"]["calls"]:
        own, own_right, api, api_right = ways
        ours = (own + (once / months + monthly) / value) / own_right
        assert ours == pytest.approx(api / api_right) or value == np.inf
    for inputs, value in ROWS["08.2"]["calls"]:
        assert pool_seconds(*inputs) == pytest.approx(value)

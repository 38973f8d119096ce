"""Exercises: the readers' solutions are right, and typical mistakes get a hint."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pandas
import pytest
from repository import NAMES, NOTEBOOKS, ROOT, load
from scipy import stats as scipy_stats

from utils import tidewater
from utils.costs import bill
from utils.costs import prices as costs
from utils.costs.decide import rule
from utils.costs.prices import cached_call_cost, call_cost, load_prices
from utils.course.exercises import ROWS, TESTS, check
from utils.evals import stats
from utils.evals.grading import Grader

PAGE = (ROOT / "notebooks/workshop/solutions.md").read_text(encoding="utf-8")


def solutions():
    """Run the blocks of the readers' page; return what each hands to `check`."""
    answers = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if "check(" in block:  # the others need their notebook's state
            exec(block, {"check": answers.__setitem__})
    return answers


SOLUTIONS = solutions()
# What each exercise's markdown cell asks.
ASKED = {}
for path in NOTEBOOKS:
    cells = load(path).cells
    for question, cell in itertools.pairwise(cells):
        for name in re.findall(r'^check\("([^"]+)"', cell.source, re.M):
            ASKED[name] = question.source


def test_there_is_a_solution_to_every_exercise():
    assert [*SOLUTIONS] == [*ROWS] == [*ASKED]
    assert [*ROWS] == re.findall(r"^\*\*([0-9b.]+)\*\*", PAGE, re.M)
    assert {n for n in ROWS if not ROWS[n].keys() & {"answer", "calls"}} == {*TESTS}


def test_each_notebook_asks_for_a_change_or_a_judgement():
    kinds = {"change", "judgement", "calculation"}
    assert {row["kind"] for row in ROWS.values()} == kinds
    asked = {(name.split(".")[0], row["kind"]) for name, row in ROWS.items()}
    active = {number for number, kind in asked if kind != "calculation"}
    assert active == {name.split("_")[0] for name in NAMES}


@pytest.mark.parametrize("name", ROWS)
def test_a_question_names_itself_and_its_words(name):
    assert f"**{name}**" in ASKED[name]
    answer = ROWS[name].get("answer")
    for word in answer if isinstance(answer, list) else [answer]:
        assert not isinstance(word, str) or f'"{word}"' in ASKED[name]


@pytest.mark.parametrize("name", ROWS)
def test_the_solution_is_right_and_no_other_answer(name):
    verdict = check(name, SOLUTIONS[name])
    assert verdict and repr(verdict) == f"{name}: right."
    for empty in (..., None, "", [], {}):
        assert repr(check(name, empty)) == f"{name}: no answer yet."
    for absurd in (-1, "SELECT 1", "go", {"spans": []}, ["x"], lambda x: x):
        verdict = check(name, absurd)
        assert not verdict and len(repr(verdict)) > 30


@pytest.mark.parametrize("name", [name for name in ROWS if "answer" in ROWS[name]])
def test_each_wrong_value_gets_its_hint(name):
    row = ROWS[name]
    for wrong, hint in row.get("near", []):
        assert repr(check(name, wrong)) == f"{name}: not yet. {hint}"
    for place, hint in enumerate(row.get("hints", [])):
        answer = list(row["answer"])
        answer[place] = 9.0 if isinstance(answer[place], float) else "nonsense"
        assert repr(check(name, answer)).endswith(f"number {place + 1} again. {hint}")
    if isinstance(row["answer"], list):
        assert (
            row["hint"] in repr(check(name, row["answer"][:-1] or "?")) or row["near"]
        )
        assert len(row.get("hints", row["answer"])) == len(row["answer"])


# A typical mistake in a function or a query, and words of the hint that it gets.
SPANS = SOLUTIONS["01.3"]["spans"]
REPLIED = SPANS[0]["attributes"] | {"gen_ai.output.messages": [{"role": "assistant"}]}
SLOWEST = SOLUTIONS["07.2"][1]
MISTAKES = [
    ("00.1", lambda bill, seats, share, own: share * seats / bill, "larger one"),
    ("00.1", 712, "A function is asked for"),
    ("01.2", lambda text: re.sub(r"#\w*", "[order]", text), "at least one digit"),
    ("01.3", {"trace_id": "a", "time": "b", "spans": []}, "One llm span"),
    ("01.3", SOLUTIONS["01.3"] | {"time": ""}, "an id and a time"),
    (
        "01.3",
        SOLUTIONS["01.3"] | {"spans": [SPANS[0] | {"attributes": REPLIED}]},
        "holds a reply",
    ),
    ("02.2", lambda seen, tpr, tnr: (seen + tnr - 1) / (tpr + tnr - 1), "below 0"),
    ("02.2", lambda seen, tpr, tnr: seen, "Solve observed"),
    ("02.3", "SELECT 67", "(67,)"),
    ("02.3", "SELECT COUNT(*) FROM tickets WHERE 1 = 1 LIMIT 0", "by pool.run"),
    (
        "02.3",
        "SELECT COUNT(*) FROM tickets WHERE is_test = 0 AND topic <> 'spam' "
        "AND opened_date LIKE '2026-03-%'",
        "on all three",
    ),
    (
        "03.2",
        lambda tokens, plain, write, read, found: (
            tokens * (found * read + (1 - found) * write)
        ),
        "Without the cache",
    ),
    ("03.3", lambda rows, margin: min(r[1:] + r[:1] for r in rows)[-1], "too much"),
    (
        "03.3",
        lambda rows, margin: min((r[1], r[0]) for r in rows if r[2] > -margin)[1],
        "loses exactly the margin",
    ),
    ("05.2", lambda losses, keep, noise: sorted(losses)[:2], "NaN comes last"),
    ("06.2", lambda n, c, k: 1 - (1 - c / n) ** k, "puts back"),
    ("06.3", lambda gains, visits: [sum(gains) / len(gains)], "that visit"),
    ("06b.2", lambda samples: [t for t, _, ok, _ in samples if ok], "more frequent"),
    ("07.2", (lambda case, sql, grade: float(grade.correct), SLOWEST), "search on"),
    ("07.2", (lambda case, sql, grade: 1.0, SLOWEST), "as much as a right one"),
    ("07.3", lambda right, n: right - n / 1000, "paid by their length"),
    ("07.3", lambda right, n: right * (1 - n / 10_000), "no more than a wrong"),
    ("07.3", lambda right, n: 1.0 * right, "the shorter must"),
    ("08.1", lambda *five: (five[0], "rate"), "Little's law"),
    ("08.2", lambda some: [(r or 0) - sum(filter(None, some)) / 4 for r in some], "0"),
    ("09.3", lambda refused, places, seconds: refused * seconds / places, "one whole"),
    (
        "10.3",
        lambda once, months, monthly, own, own_right, api, api_right: (
            (once / months + monthly) / (api - own)
        ),
        "only 0.8",
    ),
    ("11.2", lambda lost, rate: [2 * rate if x else 2 - 2 * rate for x in lost], "mul"),
    ("11.3", SOLUTIONS["11.3"].replace("> 3", "> 2"), "old rule"),
    ("11.3", SOLUTIONS["11.3"].replace("is_test = 0 AND", ""), "Test accounts"),
    ("11.3", "SELECT region, 5.0 FROM shipments GROUP BY region", "More than 3 days"),
    ("11.3", "DELETE FROM shipments", "readonly"),
    ("12.2", lambda reply: json.loads(reply[reply.find("{") :]).get("queue"), "Extra"),
]


@pytest.mark.parametrize(("name", "answer", "words"), MISTAKES)
def test_a_typical_mistake_gets_its_hint(name, answer, words):
    verdict = check(name, answer)
    assert not verdict and words in repr(verdict)


# Other forms of a right answer.
FORMS = [
    ("00.2", " Switch, go, collect, measure, stay "),
    ("00.2", ("SWITCH", "go ", "collect.", "measure", "stay")),
    ("00.3", " D "),
    ("01.1", [False, True, False, True, False]),
    ("01.1", np.array(["no", "yes", "no", "yes", "no"])),
    ("01.2", lambda text: re.sub("#[0-9]+", "[order]", text)),
    ("02.2", lambda *three: np.float64(SOLUTIONS["02.2"](*three))),  # NaN for None
    ("02.3", " select 50 + 4; "),
    ("03.1", "[3, 7, 10]"),
    ("03.1", {10, 7, 3}),
    ("03.1", np.array([3, 7, 10])),
    ("03.1", pandas.Series([3.0, 7.0, 10.0])),
    ("04.2", "814,080"),
    ("04.2", np.int64(814080)),
    ("04.3", (np.float32(0.62), "0.47")),
    ("05.1", 400.0),
    ("05.3", "19.20"),
    ("06.1", "harder teach train ending temperature"),
    ("06b.3", " 955 "),
    ("07.1", np.float32(2.475)),
    ("08.1", lambda *five: list(SOLUTIONS["08.1"](*five))),
    ("08.2", lambda some: np.array(SOLUTIONS["08.2"](some))),
    ("09.2", "8"),
    ("10.1", 0.0947),
    ("10.2", pandas.Series(["stands", "falls", "open", "falls", "stands"])),
    ("11.2", lambda lost, rate: pandas.Series(SOLUTIONS["11.2"](lost, rate))),
    ("11.3", SOLUTIONS["11.3"].lower() + " ORDER BY 2;"),
    ("11.3", SOLUTIONS["11.3"].replace(", 1)", ", 2)")),
    ("11.4", np.float64(0.262)),
    ("12.3", "0.565"),
]


@pytest.mark.parametrize(("name", "answer"), FORMS)
def test_other_forms_of_a_right_answer_are_right(name, answer):
    assert repr(check(name, answer)) == f"{name}: right."


def test_hints_name_functions_that_exist():
    named = re.findall(r"\bstats\.(\w+)", json.dumps(ROWS))
    assert named and all(hasattr(stats, function) for function in named)


def test_exercises_import_none_of_what_they_check():
    code = "import sys, utils.course.exercises; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    out = subprocess.check_output(command, cwd=ROOT, text=True)
    ours = {name for name in out.split() if name.startswith("utils.")}
    assert ours == {"utils.course", "utils.course.run", "utils.course.exercises"}


# --- answers that stand as words follow from the data ---------------------------------


def right(prompt):
    """Which cases the recorded replies under a prompt answer rightly."""
    cases = tidewater.load_cases()
    replies = tidewater.recorded_model(prompt).replies
    texts = [replies[case["question"]].text for case in cases]
    with tidewater.open_pool() as pool:
        grades = Grader(pool).grade(cases, [tidewater.extract_sql(t) for t in texts])
    return np.array([grade.correct for grade in grades])


def answer_of_five_teams():
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


def answer_of_four_settings():
    saved = json.loads((ROOT / "data/runs/00_start_here.json").read_text())["results"]
    today = saved["bill"]["claude-sonnet-5.5"]["today, USD a month"]
    gpu = saved["min_saving_a_month"] - 4 * 600
    limits = {"a": (10, max(128, gpu)), "b": (10, max(32, gpu + 2400))}
    limits |= {"c": (10, max(6.4, gpu + 2400)), "d": (1000, max(128, gpu + 2400))}
    (on,) = [name for name, (growth, limit) in limits.items() if growth * today > limit]
    yield "00.3", on


def answer_of_five_queries():
    delivered = "from shipments where is_test=0 and delivered_date is not null and "
    late = "select sum(julianday(delivered_date)-julianday(promised_date){}) "
    late += delivered + "promised_date like '2026-05-%'"
    units = "select sum(qty) from order_lines where is_test=0 and status='paid' "
    units += "and product='Night Ferry'{}"
    csat = "select round(100.0*avg(rating>=4),1) from tickets where is_test=0 "
    csat += "and topic<>'spam' and opened_date like '2026-06-%'{}"
    live = "select count(*) from subscriptions where is_test=0 and plan='solo' "
    live += "and end_date is null{}"
    most = "select region, count(*) from customers where is_test=0 group by region "
    most += "order by 2 desc, 1 limit {}"
    said = [late.format(">=2"), units.format(""), csat.format(""), live.format("")]
    gold = [late.format(">2"), units.format(" and category<>'sample'")]
    gold += [csat.format(" and rating is not null"), live.format(" and paused=0")]
    said, gold = [*said, most.format(3)], [*gold, most.format(5)]
    cases = [{"sql": sql, "ordered": "limit" in sql} for sql in gold]
    same = [grade.correct for grade in tidewater.grade(cases, said)]
    yield "02.1", ["pass" if one else "fail" for one in same]


def answer_of_missed_cases():
    bullets = {"churned": 7, "active": 3, "bottom": 10}  # by metric, else by form
    missing = set()
    for case, ok in zip(tidewater.load_cases(), right("fewshot"), strict=True):
        if not ok:
            missing.add(bullets.get(case["metric"]) or bullets[case["form"]])
    yield "03.1", sorted(missing)


def answer_of_five_claims():
    told = [(-0.5, -1.5, 0.4, 0.15), (-6.0, -9.2, -3.2, 0.04), (-1.2, -2.8, 0.4, 0.12)]
    told += [(-1.2, -2.8, 0.4, 0.35), (3.0, 0.5, 5.5, 0.20)]
    words = []
    for *points, ratio in told:
        gap = stats.Interval(*(x / 100 for x in points), n=250)
        words.append(bill.judge_claim(bill.judge_quality(gap, 0.02), ratio))
    yield "10.2", words


@pytest.mark.parametrize(
    "answers",
    [
        answer_of_five_teams,
        answer_of_four_settings,
        answer_of_five_queries,
        answer_of_missed_cases,
        answer_of_five_claims,
    ],
)
def test_the_words_follow_from_the_data(answers):
    for name, value in answers():
        assert ROWS[name]["answer"] == value


def test_the_calls_return_what_a_library_does():
    for (usd, seats_pay, share, own), value, _ in ROWS["00.1"]["calls"]:
        assert value * usd == pytest.approx(max(share * seats_pay, own))
    for (tokens, plain, write, read, found), value, _ in ROWS["03.2"]["calls"]:
        price = load_prices().model("claude-haiku-5.5").model_dump(exclude={"cache"})
        price |= {"input": plain, "cached_input": read}
        cache = {"minimum": 0, "writes": [{"minutes": 60.0, "usd": write}]}
        named = {key: price[key] for key in ("source", "url", "date")}
        price = costs.TokenPrice(**price, cache=cache | named)
        cached = cached_call_cost(price, tokens, 0, tokens, 60, 1 - found)
        assert value / 1e6 == pytest.approx(min(cached, call_cost(price, tokens, 0)))
    for (n, c, k), value, _ in ROWS["06.2"]["calls"]:
        some = 1 - scipy_stats.hypergeom(n, c, k).pmf(0)
        assert some == pytest.approx(value, abs=1e-6)
    for (rewards,), value, _ in ROWS["08.2"]["calls"]:
        graded = pandas.Series(rewards, dtype=float)
        assert (graded - graded.mean()).fillna(0).tolist() == pytest.approx(value)

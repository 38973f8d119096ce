"""Exercises that check themselves: `check("02.1", answer)`.

Every expected value is computed from the data, so an exercise stays right when the data
or a price changes. Worked answers are in tests/solutions.py.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils import tidewater
from utils.costs import prices as costs
from utils.costs import routing
from utils.costs.prices import call_cost, load_prices
from utils.evals import stats
from utils.evals.grading import Grader, rows_equal
from utils.logs import overlap
from utils.logs.traces import Trace
from utils.serving import simulate
from utils.tidewater import sql_style as sqlstyle

_EXERCISES: dict[str, tuple[Callable[[Any], bool], str]] = {}


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer; true if it is right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


def check(name: str, answer: Any) -> Verdict:
    """Check the answer to an exercise; a wrong one gets a hint.

    Raises:
        ValueError: there is no exercise of this name; the message lists them.

    """
    if name not in _EXERCISES:
        raise ValueError(f"no exercise {name!r}; there are {', '.join(_EXERCISES)}")
    test, hint = _EXERCISES[name]
    empty = isinstance(answer, str | list | dict) and not answer
    if answer is ... or answer is None or empty:
        return Verdict(False, f"{name}: no answer yet.")
    try:
        right = bool(test(answer))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return Verdict(False, f"{name}: the answer cannot be checked ({why}). {hint}")
    return Verdict(right, f"{name}: right." if right else f"{name}: not yet. {hint}")


def _exercise(name: str, hint: str) -> Callable:
    def keep(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
        _EXERCISES[name] = (test, hint)
        return test

    return keep


@_exercise("00.1", "Divide what the seats may cost by today's bill at that tier.")
def _growth(answer: float) -> bool:
    logs = tidewater.load_logs()
    into, out = (sum(trace.tokens[k] for trace in logs) for k in (0, 1))
    days = {trace.time[:10] for trace in logs}
    price = load_prices().model("claude-sonnet-5.5")
    today = call_cost(price, into, out) * (365.25 / 12) / len(days)
    seats = 20.0 * len({trace.user_id for trace in logs})
    return abs(answer - 0.20 * seats / today) <= 1


@_exercise("00.2", "Count the traces by user_id and leave out the largest count.")
def _other_users(answer: int) -> bool:
    users = [trace.user_id for trace in tidewater.load_logs()]
    return answer == len(users) - max(map(users.count, set(users)))


@_exercise("00.3", "Follow `decide` line by line: no signal is on, and none is None.")
def _stay(answer: str) -> bool:
    return answer.strip().lower().rstrip(":") == "no-go"


@_exercise("01.1", "Use overlap.duplicates on the questions that have an answer.")
def _different_questions(answer: int) -> bool:
    answered = [t for t in tidewater.load_logs() if t.outcome == "answered"]
    return answer == len(set(overlap.duplicates([t.question for t in answered])))


@_exercise("01.2", "Every '#' with digits after it goes, and nothing else: re.sub.")
def _order_numbers(answer: Callable[[str], str]) -> bool:
    pairs = {
        "refund order #10442 please": "refund order [order] please",
        "orders #7 and #881, today": "orders [order] and [order], today",
        "top 5 products in Q3": "top 5 products in Q3",
        "C# or #hashtag": "C# or #hashtag",
    }
    return all(answer(text) == wanted for text, wanted in pairs.items())


@_exercise("01.3", "One llm span: an input message, no output, and 'error.type'.")
def _timed_out(answer: dict) -> bool:
    trace = Trace.from_dict(answer)
    return trace.outcome == "timeout" and bool(trace.question)


@_exercise("02.1", "Try k = 92, 93, ... in stats.wilson(k, 250).")
def _enough_right(answer: int) -> bool:
    cases = tidewater.load_cases()
    replies = tidewater.recorded_model("launch").replies
    sqls = [tidewater.extract_sql(replies[case["question"]].text) for case in cases]
    with tidewater.open_pool() as pool:
        right = sum(grade.right for grade in Grader(pool).grade(cases, sqls))
    rate, n = right / len(cases), len(cases)
    return answer == next(k for k in range(n) if stats.wilson(k, n).low > rate)


@_exercise("02.2", "(observed + TNR - 1) / (TPR + TNR - 1), times 100.")
def _corrected(answer: float) -> bool:
    return math.isclose(answer, 100 * (0.55 + 0.8 - 1) / (0.9 + 0.8 - 1), abs_tol=0.1)


@_exercise(
    "02.3", "It must hold on the live warehouse and fail on a twin. What never looks?"
)
def _lucky(answer: str) -> bool:
    right = (
        "SELECT COUNT(*) FROM tickets WHERE is_test=0 AND topic<>'spam' "
        "AND opened_date BETWEEN '2026-03-01' AND '2026-03-31'"
    )
    with tidewater.open_pool() as pool:
        jobs = itertools.product(pool.databases, (right, answer))
        results = [result.rows for result in pool.map(jobs)]
    pairs = zip(results[::2], results[1::2], strict=True)
    same = [mine is not None and rows_equal(mine, rows, False) for rows, mine in pairs]
    return same[0] and not all(same)


@_exercise("03.1", "Compare right['fewshot'] and right['rules'] case by case.")
def _differing(answer: int) -> bool:
    cases = tidewater.load_cases()
    with tidewater.open_pool() as pool:
        grader, right = Grader(pool), []
        for name in ("fewshot", "rules"):
            replies = tidewater.recorded_model(name).replies
            texts = [replies[case["question"]].text for case in cases]
            grades = grader.grade(cases, [tidewater.extract_sql(t) for t in texts])
            right.append([grade.right for grade in grades])
    return answer == sum(a != b for a, b in zip(*right, strict=True))


@_exercise("03.2", "A million times the mean cost of one call: cost('rules', DEAR).")
def _million(answer: float) -> bool:
    rows = tidewater.read_jsonl("recorded/rules.jsonl")
    into, out = (
        np.array([r[k] for r in rows]) for k in ("input_tokens", "output_tokens")
    )
    price = load_prices().model("claude-sonnet-5.5")
    return abs(answer - 1e6 * call_cost(price, into, out).mean()) <= 50


@_exercise("03.3", "Times 3, 2, 1; never less than the one before; never above 1.")
def _holm(answer: Callable[[list[float]], list[float]]) -> bool:
    trials = ([0.01, 0.02, 0.03], [0.001, 0.3, 0.9], [0.02, 0.021, 0.5], [0.5, 0.6, 1])
    pairs = ((list(answer(list(trial))), stats.holm(trial)) for trial in trials)
    return all(np.allclose(mine, right) for mine, right in pairs)


@_exercise(
    "04.1", "Other words, same meaning: an alias, days as >= and <, conditions in turn."
)
def _other_spelling(answer: str) -> bool:
    given = (
        "select count(*) from tickets where is_test=0 and topic<>'spam' "
        "and opened_date between '2026-03-01' and '2026-03-31'"
    )
    days = ">=" in answer and "<" in answer.replace("<>", "")
    return days and " as " in answer.lower() and sqlstyle.normalise(answer) == given


@_exercise("04.2", "Seven maps a layer: q, k, v, o, gate, up, down; rank x (in + out).")
def _adapter_weights(answer: int) -> bool:
    wide, narrow, inner = 576, 192, 1536
    sizes = [2 * wide, wide + narrow, wide + narrow, 2 * wide, *[wide + inner] * 3]
    return answer == 8 * 10 * sum(sizes)


@_exercise("04.3", "sqlstyle.form of each, and a set; trace.feedback['sql'] is right.")
def _new_forms(answer: int) -> bool:
    logs = tidewater.load_logs()
    fixed = [t.feedback["sql"] for t in logs if t.verdict == "corrected"]
    seen = {sqlstyle.form(sql) for sql in fixed}
    cases = tidewater.load_cases()
    return answer == sum(sqlstyle.form(case["sql"]) not in seen for case in cases)


@_exercise("05.1", "16 to step 10, 8 from there to 20, 4 to 40, 2 to 80.")
def _halving_steps(answer: int) -> bool:
    return answer == 16 * 10 + 8 * 10 + 4 * 20 + 2 * 40


@_exercise("05.2", "Sort by loss, NaN last, and cut at max(1, len // keep).")
def _survivors(answer: Callable[[dict[str, float], int], list[str]]) -> bool:
    losses = {"a": 0.5, "b": math.nan, "c": 0.2, "d": 0.3, "e": 0.9}
    ranked = ["c", "d", "a", "e"]
    cuts = [list(answer(dict(losses), keep)) for keep in (2, 3, 9)]
    alone = list(answer({"b": math.nan, "a": 1.0}, 2))
    return cuts == [ranked[:2], ranked[:1], ranked[:1]] and alone == ["a"]


@_exercise("05.3", "24 calls, two attempts, half an hour, times the price of an hour.")
def _worst_bill(answer: tuple[str, float]) -> bool:
    name, usd = answer
    return abs(usd - 24 * 2 * 0.5 * load_prices().gpu(name).price) <= 0.01


@_exercise("06.1", "Mean 6/8; the sample's standard deviation divides by 7, not by 8.")
def _advantage(answer: float) -> bool:
    rewards = np.array([1.0] * 6 + [0.0] * 2)
    return abs(answer - (1 - rewards.mean()) / rewards.std(ddof=1)) <= 0.005


@_exercise("06.2", "One less the share of draws that hold wrong ones only; math.comb.")
def _pass_at_k(answer: Callable[[int, int, int], float]) -> bool:
    trials = ((8, 2, 1), (8, 2, 4), (8, 0, 3), (8, 8, 1), (8, 6, 3), (16, 1, 16))
    right = [1 - math.comb(n - c, k) / math.comb(n, k) for n, c, k in trials]
    return np.allclose([answer(*trial) for trial in trials], right)


@_exercise("06.3", "All right has probability 0.95**n; all wrong is as good as never.")
def _mixed_group(answer: int) -> bool:
    p = 0.95
    sizes = (n for n in range(1, 100) if 1 - p**n - (1 - p) ** n > 0.5)
    return answer == next(sizes)


@_exercise("07.1", "The mean is below zero; a sample's deviation divides by 7, not 8.")
def _stalled(answer: float) -> bool:
    rewards = np.array([1.0] * 2 + [-1.0] * 5 + [0.0])
    return abs(answer + rewards.mean() / rewards.std(ddof=1)) <= 0.005


@_exercise("07.2", "itertools.combinations keeps the order; max takes the first best.")
def _best_of_n(answer: Callable[[list[tuple[float, bool]], int], float]) -> bool:
    tries = [(0.2, True), (0.9, False), (0.5, True), (0.5, False), (0.9, True)]
    right = []
    for n in range(1, len(tries) + 1):
        draws = list(itertools.combinations(tries, n))
        best = [max(draw, key=lambda one: one[0])[1] for draw in draws]
        right.append(sum(best) / len(draws))
    return np.allclose([answer(tries, n + 1) for n in range(len(tries))], right)


@_exercise("07.3", "Wrong: one value. Right: falls with length, to a floor above it.")
def _short_if_right(answer: Callable[[bool, int], float]) -> bool:
    wrong = {answer(False, n) for n in (0, 1, 80, 5_000)}
    right = [answer(True, n) for n in (20, 80, 200, 400, 5_000, 100_000)]
    falls = all(a > b for a, b in itertools.pairwise(right[:4]))
    return len(wrong) == 1 and falls and min(right) > max(wrong)


@_exercise(
    "08.1", "Little: 100 at a time, each living 42 s, are 100 / 42 jobs a second."
)
def _binding_limit(answer: float) -> bool:
    return answer == round(10_000 / min(5, 100 / 42) / 60)


@_exercise(
    "08.2", "Rounds of calls; if the last round is the short call alone, it ends."
)
def _pool_time(answer: Callable[[int, int, int, float, float], float]) -> bool:
    trials = ((10, 2, 4, 3.0, 1.0), (9, 2, 4, 3.0, 1.0), (8, 1, 4, 0.5, 2.0))
    trials += ((3, 5, 4, 1.0, 1.0), (1_000, 7, 16, 0.7, 0.1), (101, 1, 10, 2.0, 0.5))
    for jobs, sandboxes, batch, call, job in trials:
        policy = simulate.Policy("pool", sandboxes, batch=batch)
        work = simulate.Work(simulate.fixed(job), call=simulate.fixed(call))
        right = simulate.simulate(policy, work, jobs).seconds
        if abs(answer(jobs, sandboxes, batch, call, job) - right) > 1e-6:
            return False
    return True


@_exercise("08.3", "None of n is late with probability 0.99**n; look for the last n.")
def _without_stragglers(answer: int) -> bool:
    return answer == max(n for n in range(1, 1_000) if 0.99**n >= 0.5)


@_exercise("09.1", "Bytes a second over bytes a token.")
def _bandwidth(answer: float) -> bool:
    return abs(answer - 16e9 / 145e6) <= 1


@_exercise("09.2", "Inside = arrivals a second x seconds inside.")
def _little(answer: float) -> bool:
    return answer == 4 * 5


@_exercise("09.3", "Sort, and take place ceil(share / 100 x n), counted from 1.")
def _nearest_rank(answer: Callable[[list[float], float], float]) -> bool:
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0, 10.0]
    shares = (1, 10, 11, 50, 51, 90, 95, 99, 100)
    wanted = [np.percentile(values, s, method="inverted_cdf") for s in shares]
    return [answer(list(values), s) for s in shares] == wanted and answer([3.0], 0) == 3


@_exercise(
    "10.1", "A fifth of a right answer's price, times 0.86; then utilisation_for."
)
def _fifth(answer: float) -> bool:
    rows = tidewater.read_jsonl("recorded/rules.jsonl")
    into, out = (
        np.array([r[k] for r in rows]) for k in ("input_tokens", "output_tokens")
    )
    usd = call_cost(load_prices().model("claude-haiku-5.5"), into, out).mean()
    return abs(answer - costs.utilisation_for(usd / 5 * 0.86, 0.80, 10)) <= 0.006


@_exercise(
    "10.2", "Below the threshold large counts, at it and above it small; the mean."
)
def _routed(answer: Callable[[list[float], list, list, float], float]) -> bool:
    signal, small = [0.9, 0.1, 0.5, 0.5], [True, False, True, False]
    large = [True, True, False, False]
    trials = [(signal, small, large, step) for step in (0.0, 0.5, 0.6, 2.0)]
    right = [np.mean(routing.at(t, *rest, 0, 0).right) for *rest, t in trials]
    return np.allclose([answer(*trial) for trial in trials], right)


@_exercise(
    "10.3", "What is paid in a month, over what an answer saves; inf if nothing."
)
def _pays_back(answer: Callable[[float, float, float, float], float]) -> bool:
    trials = ((1200, 12, 0.001, 0.003), (50, 1, 0.0, 0.01), (1200, 12, 0.003, 0.003))
    trials += ((1200, 6, 0.004, 0.003), (0, 12, 0.001, 0.003))
    right = [costs.break_even(once / m, own, api) for once, m, own, api in trials]
    return np.allclose([answer(*trial) for trial in trials], right)


@_exercise("11.1", "Give it twenty times True and look at .alarm; alpha must be 0.01.")
def _losses_in_a_row(answer: int) -> bool:
    return answer == stats.sequential_test([True] * 50, alpha=0.01).alarm


@_exercise("11.2", "A loss: times rate / 0.5. A win: times (1 - rate) / 0.5. cumprod.")
def _bet_on_a_rate(answer: Callable[[list[bool], float], list[float]]) -> bool:
    trials = (([True, False, True, True], 0.75), ([False, False], 0.6), ([True], 0.9))
    pairs = []
    for lost, rate in trials:
        steps = [2 * rate if one else 2 * (1 - rate) for one in lost]
        pairs.append((list(answer(list(lost), rate)), np.cumprod(steps)))
    return all(len(a) == len(b) and np.allclose(a, b) for a, b in pairs)


@_exercise(
    "11.3", "More than 3 days after promised_date; delivered ones, no test account."
)
def _late_by_region(answer: str) -> bool:
    right = (
        "SELECT region, ROUND(100.0*AVG(julianday(delivered_date)"
        "-julianday(promised_date)>3),1) FROM shipments WHERE is_test=0 AND "
        "delivered_date IS NOT NULL AND promised_date BETWEEN '2026-05-01' AND "
        "'2026-05-31' GROUP BY region"
    )
    case = {"id": "11.3", "sql": right, "ordered": False}
    with tidewater.open_pool() as pool:
        (grade,) = Grader(pool).grade([case], [answer])
    return grade.right

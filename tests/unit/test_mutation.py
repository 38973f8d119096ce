"""Mutants change one part of a query; a planted twin notices what the others miss."""

from collections import Counter

import pytest

from utils.evals.grading import Grader
from utils.evals.mutation import mutants, survivors
from utils.evals.sandbox import SandboxPool
from utils.tidewater import (
    WAREHOUSES,
    build_twin_c,
    extract_sql,
    load_cases,
    read_jsonl,
)

CHANGES = {  # of each query, in its words: what is changed, and what must then be there
    "SELECT a FROM t WHERE b = 1": {"no b = 1": "WHERE TRUE"},
    "SELECT a FROM t WHERE (b = 'x' AND c) AND (d OR e)": {
        "no b = 'x'": "(TRUE AND c)", "no c": "(b = 'x' AND TRUE)",
        "no (d OR e)": "AND TRUE",
    },
    "SELECT DISTINCT a FROM t JOIN u ON t.i = u.i HAVING COUNT(DISTINCT b) > 2": {
        "no DISTINCT": "COUNT(b) > 2", "no t.i = u.i": "ON TRUE",
        "COUNT(DISTINCT b) > 2 or equal": ">= 2", "no COUNT(DISTINCT b) > 2": "TRUE",
    },
    "SELECT SUM(CASE WHEN a < 1 AND b THEN c END), CASE d WHEN 1 THEN 2 END FROM t": {
        "no a < 1": "WHEN TRUE AND b", "a < 1 or equal": "a <= 1", "no b": "AND TRUE",
    },
    "SELECT a FROM t WHERE NOT b IS NULL ORDER BY a DESC LIMIT 3": {
        "no b IS NOT NULL": "TRUE", "no LIMIT": "a DESC",
        "ORDER BY a DESC turned round": "ORDER BY a ASC LIMIT",
    },
    "SELECT 1": {},
}  # fmt: skip


@pytest.mark.parametrize("sql", CHANGES)
def test_mutants(sql):
    found = mutants(sql)
    assert {name for name, _ in found} == set(CHANGES[sql])
    for name, mutant in found:
        assert name == "no DISTINCT" or CHANGES[sql][name] in mutant
        assert mutant != sql


def test_the_planted_twin_sees_forgotten_rules_and_agrees_with_right_answers(tmp_path):
    cases, rows = load_cases(), read_jsonl("recorded/rules.jsonl")
    twin = build_twin_c(tmp_path / "twin_c.sqlite")
    with SandboxPool({**WAREHOUSES, "twin_c": twin}) as pool:
        grader = Grader(pool)
        answers = [extract_sql(row["reply"]) for row in rows]
        assert all(grade.correct for grade in grader.grade(cases, answers))
        odd = {"id": "odd", "sql": "SELECT (", "ordered": False}
        with pytest.warns(UserWarning, match="case odd left out: sqlglot cannot parse"):
            rows = survivors([odd, *cases], grader)
    by_three, by_four = Counter(), Counter()  # mutants that nobody notices
    for row in rows:
        by_three[row["kind"]] += not set(row["noticed"]) - {"twin_c"}
        by_four[row["kind"]] += not row["noticed"]
    trial = "JULIANDAY(end_date) - JULIANDAY(start_date) > 14 or equal"
    kinds = ["no is_test = 0", "no topic <> …", trial]
    assert [by_three[kind] for kind in kinds] == [27, 19, 3]
    assert [by_four[kind] for kind in kinds] == [3, 10, 0]

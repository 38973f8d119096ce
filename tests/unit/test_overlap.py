"""Repeats and contamination: hand-made pairs, then counts on the course's data."""

import json
from functools import partial
from pathlib import Path

import pytest

from utils.logs import overlap
from utils.logs.overlap import contamination, duplicates, normalise
from utils.tidewater import read_jsonl
from utils.tidewater.words import FILLERS

SPANS = [trace["spans"][0]["attributes"] for trace in read_jsonl("traces.jsonl")]
ASKED = [span["gen_ai.input.messages"][-1]["content"] for span in SPANS]
LINES = Path(__file__).with_name("overlap_pairs.jsonl").read_text().splitlines()
PAIRS = [json.loads(line) for line in LINES]
near_in_tidewater = partial(overlap.near_duplicates, fillers=FILLERS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["a"][:30])
def test_repeats_are_found_and_other_questions_are_not(pair):
    wider = {} if pair["same"] else {"threshold": 50, "fillers": FILLERS}
    found = contamination([pair["a"]], [pair["b"]], **wider)
    assert pair["same"] == bool(found.exact or found.normalised or found.near)


def test_a_product_has_fillers_and_ids_of_its_own():
    pair = ["Gross margin by month", "show what was gross margin by month?"]
    assert not overlap.near_duplicates(pair) and near_in_tidewater(pair)


def test_equal_answers_are_paired():
    train = [((1,), (2,)), None, frozenset({1, 2}), ((1,), (2,))]
    test = [None, ((1,), (2,)), ((2,), (1,)), frozenset({2, 1})]
    assert overlap.same_answers(train, test) == [(0, 1), (3, 1), (2, 3)]


def test_a_repeat_stands_in_one_list_only():
    assert normalise("  ＦＹ２６ What's %,\tEast-coast? ") == "fy26 whats % east coast"
    texts = ["Units, FY26?", "orders", "units FY26", "ORDERS!", "tickets", "??", "!!"]
    assert duplicates(texts) == [0, 1, 0, 1, 4, 5, 6]
    train = ["Units by region", "units by region?", "Units by region please"]
    found = contamination(train, ["tickets", "Units by region"])
    assert (found.exact, found.normalised) == ([(0, 1)], [(1, 1)])
    assert [(i, j) for i, j, _ in found.near] == [(2, 1)]


def test_repeats_in_the_traces(monkeypatch):
    pairs = near_in_tidewater(ASKED)
    assert len(set(ASKED)) == 1336 and len(set(duplicates(ASKED))) == 1319
    assert len(pairs) == 10
    for i, j, _ in pairs:
        words = set(normalise(ASKED[i]).split()) ^ set(normalise(ASKED[j]).split())
        assert words <= {"please"}
    monkeypatch.setattr(overlap, "_BLOCK", 100)
    assert near_in_tidewater(ASKED) == pairs  # whatever the size of a block


def test_no_question_of_the_eval_is_contaminated():
    evals = [case["question"] for case in read_jsonl("eval.jsonl")]
    practice = [case["question"] for case in read_jsonl("practice.jsonl")]
    for train, test in ((ASKED, evals), (practice, evals), (ASKED, practice)):
        found = contamination(train, test, fillers=FILLERS)
        assert (found.exact, found.normalised, found.near) == ([], [], [])
    planted = [f"Hi, could you please tell me {text}" for text in evals]
    near = contamination(planted, evals, fillers=FILLERS).near
    assert len(near) >= 0.95 * len(evals) and all(i == j for i, j, _ in near)

"""Cases out of logs: how they are drawn, split, confirmed, frozen and appealed."""

from collections import Counter

import pytest

from utils.evals import cases
from utils.evals.types import Grade
from utils.logs import traces
from utils.tidewater import DATA, PROMPTS, Tidewater, read_jsonl


class Letters:
    """A product that is no SQL: the answer is what stands behind 'A: '."""

    def extract(self, reply):
        return reply.partition("A: ")[2] or None

    def grade(self, cases, answers):
        pairs = zip(cases, answers, strict=True)
        return [Grade(case["answer"] == answer) for case, answer in pairs]


def trace(i, question=None, user="ann", day=1, reply="A: yes", feedback=None, turns=1):
    chat = [{"role": "user", "content": question or f"question {i}"}] * turns
    out = [{"role": "assistant", "content": reply}]
    call = {"gen_ai.input.messages": chat, "gen_ai.output.messages": out}
    time, spans = f"2026-07-{day:02d}T09:00:00", [traces.span("llm", "chat", call)]
    return traces.Trace(
        trace_id=f"t{i:03d}", user_id=user, time=time, spans=spans, feedback=feedback
    )


def hard(trace):
    return trace.trace_id < "t020"


def test_a_sample_asks_each_question_once_and_says_how_it_was_drawn():
    log = [trace(i, f"question {i // 2}?" + "!" * (i % 2)) for i in range(200)]
    drawn = cases.sample([*log, trace(900, " ")], 30, hard=hard)
    questions = {t.question.rstrip("?!") for t, _ in drawn}
    assert len(questions) == len(drawn) == 30 and " " not in questions
    assert Counter(how for _, how in drawn) == {"random": 20, "hard": 7, "more": 3}
    assert drawn == cases.sample([*log, trace(900, " ")], 30, hard=hard)
    with pytest.warns(UserWarning, match="100 of 120 drawn: .* ask 100 different"):
        cases.sample(log, 120, seed=1)


def test_slices_are_drawn_evenly_and_a_small_one_leaves_its_places():
    log = [trace(i, day=1 if i < 90 else 2 if i < 98 else 3) for i in range(100)]
    drawn = cases.sample(log, 12, by=lambda t: t.time[:10])
    assert Counter(t.time[9] for t, _ in drawn) == {"1": 5, "2": 5, "3": 2}
    assert {how for _, how in drawn} == {"slice"}


def test_a_split_keeps_users_and_days_whole():
    log = [trace(i, user=f"u{i % 9}", day=1 + i // 10) for i in range(90)]
    for by, key in [("user_id", lambda t: t.user_id), ("time", lambda t: t.time[:10])]:
        rest, held, shared = cases.split(log, by)
        assert not {key(t) for t in rest} & {key(t) for t in held} and shared == 0
        assert len(rest) + len(held) == 90 and len(held) == 10
    assert min(t.time for t in held) > max(t.time for t in rest)
    again = [trace(200, "Question 1", user="zoe", day=30)]
    assert cases.split(log + again, "time").shared == 1
    # Day 2 is too large to be held out, so no day before it is.
    gap = [trace(i, day=1 if i < 2 else 2 if i < 22 else 3) for i in range(25)]
    assert {t.time[9] for t in cases.split(gap, "time").held_out} == {"3"}


def test_a_split_that_cannot_be_made_is_told():
    one = [trace(i, user="big") for i in range(95)] + [trace(i) for i in range(95, 100)]
    with pytest.warns(UserWarning, match="5 of 100 .* one user_id alone has 95"):
        assert len(cases.split(one).held_out) == 5
    with pytest.warns(UserWarning, match="10 of 10 traces have no user_id"):
        assert len(cases.split([trace(i, user=None) for i in range(10)]).held_out) == 2


@pytest.mark.parametrize(
    ("feedback", "answer", "source"),
    [
        ({"verdict": "corrected", "answer": "so A: no"}, "no", "correction"),
        ({"verdict": "corrected", "sql": "SELECT 1"}, "SELECT 1", "correction"),
        ({"verdict": "corrected", "answer": {"queue": 1}}, {"queue": 1}, "correction"),
        ({"verdict": "thumbs_down"}, "yes", "reply"),
        (None, "yes", "reply"),
    ],
)
def test_a_draft_is_the_correction_or_else_what_the_model_said(
    feedback, answer, source
):
    with pytest.warns(UserWarning, match="t001: turn 3"):
        case = cases.draft(trace(1, feedback=feedback, turns=3), Letters(), "hard")
    assert case["answer"] == answer
    assert (case["source"], case["drawn"]) == (source, "hard")


def test_only_what_somebody_confirmed_becomes_a_case(tmp_path):
    drafts = [cases.draft(trace(i), Letters()) for i in range(4)]
    drafts += [cases.draft(trace(4, reply="no idea"), Letters())]
    with pytest.warns(UserWarning, match="2 cases, left out: t003, t004"):
        kept = cases.confirm(drafts, {"t000": True, "t001": "no", "t002": None})
    found = [(case["id"], case["answer"], case["source"]) for case in kept]
    assert found == [("t000", "yes", "reply"), ("t001", "no", "written")]
    for wrong in ("t009", "t004"):  # no such draft, no answer drafted
        answers = dict.fromkeys(["t000", "t001", "t002", "t003", "t004", wrong], True)
        with pytest.raises(ValueError, match=wrong):
            cases.confirm(drafts, answers)
    for bad in (drafts, [], kept * 2, [{"question": "?"}], [{"id": "a", "x": (1,)}]):
        with pytest.raises(ValueError, match="cannot be frozen"):
            cases.freeze(tmp_path / "eval.jsonl", bad)
    assert not list(tmp_path.iterdir())


def test_a_frozen_file_changes_only_under_a_new_version_with_a_reason(tmp_path):
    path = tmp_path / "mine/eval.jsonl"
    first = [{"id": "a", "question": "1\u2028\ud800", "answer": "x"}]
    other = [{"id": "a", "question": "1", "answer": "y"}]
    digest = cases.freeze(path, first)
    assert cases.load(path) == first and cases.freeze(path, first) == digest
    for version, note in [("1.0", "why"), ("2.0", "")]:
        with pytest.raises(ValueError, match="raise the version"):
            cases.freeze(path, other, version, note)
    assert cases.appeal(path, "a", "y is as good", by="me", accept={"answer": "y"})
    cases.freeze(path, other, "2.0", "the product changed")
    log = [(entry["version"], entry["note"]) for entry in cases.changelog(path)]
    assert log == [("1.0", ""), ("1.1", "y is as good"), ("2.0", "the product changed")]
    assert cases.load(path, "2.0") == cases.load(path) == other
    with pytest.raises(ValueError, match=r"no version '1.1'; it has \['2.0'\]"):
        cases.load(path, "1.1")
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match="not the eval that was frozen"):
        cases.load(path)
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("precious\n")
    with pytest.raises(ValueError, match="other cases"):
        cases.freeze(foreign, other)


def test_what_an_appeal_accepts_is_right_as_well(tmp_path):
    path = tmp_path / "eval.jsonl"
    frozen = [{"id": "a", "answer": "x"}, {"id": "b", "answer": "x"}]
    cases.freeze(path, frozen)
    assert cases.appeal(path, "a", "y reads it too", "me", {"answer": "y"}) == "1.1"
    assert cases.appeal(path, "b", "it stands", "me") == "1.2"
    assert cases.appeal(path, "a", "so does z", "me", {"answer": "z"}) == "1.3"
    assert cases.load(path) == frozen
    for version, right in [("1.0", "x"), ("1.1", "xy"), ("1.2", "xy"), ("1.3", "xyz")]:
        loaded = cases.load(path, version)
        for letter in "wxyz":
            grades = cases.grade(Letters(), loaded, [letter, letter])
            assert [g.correct for g in grades] == [letter in right, letter == "x"]
    for name, accept in [("c", None), ("a", {"sql": "SELECT 1"})]:
        with pytest.raises(ValueError, match="case"):
            cases.appeal(path, name, "?", "me", accept)


def test_the_courses_eval_has_a_version_with_a_second_reading(pool):
    product = Tidewater(pool)
    rows = [row for name in PROMPTS for row in read_jsonl(f"recorded/{name}.jsonl")]
    answers = [product.extract(row["reply"]) for row in rows]
    asked = cases.load(DATA / "eval.jsonl", "1.1") * len(PROMPTS)
    right = [grade.correct for grade in cases.grade(product, asked, answers)]
    counts = [sum(right[i : i + 250]) for i in range(0, len(right), 250)]
    # launch, terse, caveman, four_rules, fewshot, rules; 1.0 is in test_grading
    assert counts == [91 + 1, 86 + 1, 94, 198 + 1, 241, 250]

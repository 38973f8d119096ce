"""Redaction: recall and precision on the marked data, and what must stay untouched."""

import itertools
import json
import random
import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.logs.redaction import Found, find, redact, redact_trace, score
from utils.tidewater.words import NOT_NAMES

DATA = Path(__file__).parents[2] / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


def question(trace):
    messages = trace["spans"][0]["attributes"]["gen_ai.input.messages"]
    return messages[-1]["content"]


TRACES = {trace["trace_id"]: trace for trace in rows("traces.jsonl")}
MARKED = {row["trace_id"]: row["spans"] for row in rows("pii.jsonl")}


def small_trace(text, reply="", sql="SELECT 1", comment=None, **more):
    attributes = {
        "gen_ai.input.messages": [{"role": "user", "content": text}],
        "gen_ai.output.messages": [{"role": "assistant", "content": reply}],
    }
    call = {"gen_ai.tool.call.arguments": {"sql": sql}}
    spans = [{"attributes": attributes}, {"attributes": call}]
    return {"spans": spans, "feedback": {"comment": comment}, **more}


@pytest.mark.parametrize("words", [(), (NOT_NAMES,)], ids=["general", "tidewater"])
def test_recall_and_precision_on_the_marked_data(words):
    found = {name: find(question(trace), *words) for name, trace in TRACES.items()}
    counts = score(found, MARKED)
    assert counts["all"]["marked"] == 74
    assert counts["all"]["covered"] / 74 >= 0.95
    assert counts["all"]["right"] / counts["all"]["reported"] >= 0.97
    for kind in ("email", "phone", "extension", "name"):
        assert counts[kind]["covered"] / counts[kind]["marked"] >= 0.93, kind
        assert counts[kind]["right"] / counts[kind]["reported"] >= 0.93, kind


def test_no_list_of_names_other_people_are_found_in_the_same_places():
    """Each marked name gives way to one the rules were never shown."""
    rng = random.Random(7)
    given = "Zoë Łukasz Aoife Xochitl Ngozi Jean-Luc Siobhán D'Arcy Bo"
    family = "McAllister O'Hara Nowak-Lis Škoda Nguyen Ødegaard Li Tembo"
    total = hits = 0
    for trace_id, marks in MARKED.items():
        for mark in (m for m in marks if m["type"] == "name"):
            name = rng.choice(given.split())
            if " " in mark["text"]:
                name += " " + rng.choice(family.split())
            text = question(TRACES[trace_id]).replace(mark["text"], name)
            total, hits = total + 1, hits + any(name in h.text for h in find(text))
    assert total == 29
    assert hits / total >= 0.95


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Cheers, dev", "Cheers, [name]"),
        (
            "units by month, thanks. owen tarr x4417",
            "units by month, thanks. [name] x[",
        ),
        ("ring priya on 555-0142 when done", "ring [name] on [phone] when done"),
        ("this is Jean-Luc O'Brien from ops", "this is [name] from ops"),
        ("Please forward it to María Núñez in PR", "Please forward it to [name] in PR"),
        ("call (212) 555-0142. Regards, A. K. Pym", "call [phone]. Regards, [name]"),
        ("Sam Oduya (x4410) wants sales", "[name] (x[extension]) wants sales"),
        ("on +44 20 7946 0958 or a.b@x.co.uk", "on [phone] or [email]"),
        (
            "orders from 2025-01-01 to 2025-12-31",
            "orders from 2025-01-01 to 2025-12-31",
        ),
        ("ask for Jo, extension 31", "ask for [name], extension [extension]"),
        ("if it's unclear, ring 555-0142", "if it's unclear, ring [phone]"),
    ],
)
def test_forms(text, redacted):
    assert redact(text).startswith(redacted)


@pytest.mark.parametrize(
    "frame",
    [
        "How many units has {} bought?",
        "orders for {} in FY26",
        "Total units sold to {}, all time. ext 2093 please",
        "top segments for {}, last quarter",
        "{} sales by region, x4417",
        "{}: refunds by month in the West. Thanks!",
        "Did sales to {} grow from May 2025 to June 2026?",
    ],
)
def test_customers_and_products_are_not_redacted(frame):
    with sqlite3.connect(f"file:{DATA / 'warehouse.sqlite'}?mode=ro", uri=True) as db:
        names = db.execute(
            "SELECT customer FROM customers UNION SELECT product FROM order_lines"
        ).fetchall()
    assert len(names) == 440
    for (name,) in names:
        kinds = {hit.kind for hit in find(frame.format(name), NOT_NAMES)}
        assert kinds <= {"extension"}, name


PIECES = "thanks, |Ana Bauer|owen|ext 12| x4417|555-0142|a@b.co|. |(|)|\n| - "
PIECES += "|[name]|[|ring |for |it's | van |A."


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(PIECES.split("|")), max_size=9).map("".join),
    )
)
def test_any_text_is_redacted_once_and_for_all(text):
    hits = find(text)
    assert all(text[hit.start : hit.end] == hit.text != "" for hit in hits)
    assert all(a.end <= b.start for a, b in itertools.pairwise(hits))
    once = redact(text)
    assert redact(once) == once


def test_every_trace_keeps_its_sql_rows_and_counts():
    for trace in TRACES.values():
        before = json.dumps(trace)
        cleaned, hits = redact_trace(trace, not_names=NOT_NAMES)
        assert json.dumps(trace) == before, "the given trace was changed"
        assert hits == find(question(trace), NOT_NAMES)
        assert cleaned["spans"][1:] == trace["spans"][1:]
        assert fenced(cleaned) == fenced(trace)
        if trace["feedback"]:
            assert cleaned["feedback"] == trace["feedback"]
        if trace["trace_id"] not in MARKED:
            assert cleaned == trace


def fenced(trace):
    replies = trace["spans"][0]["attributes"]["gen_ai.output.messages"]
    return [re.findall(r"```.*?```", m["content"], re.DOTALL) for m in replies]


def test_names_leave_the_replies_too():
    for trace_id, marks in MARKED.items():
        cleaned, _ = redact_trace(TRACES[trace_id], not_names=NOT_NAMES)
        cleaned = json.dumps(cleaned, ensure_ascii=False)
        for mark in marks:
            assert mark["text"] not in cleaned or mark["type"] == "extension"
        for word in re.findall(r"[A-Z][a-z]{2,}", " ".join(m["text"] for m in marks)):
            assert not re.search(rf"\b{word}\b", cleaned), word


def test_a_products_words_are_no_names():
    assert redact("Cheers, Coast") == "Cheers, [name]"
    assert redact("Cheers, Coast", NOT_NAMES) == "Cheers, Coast"
    trace = small_trace("sales? coast.west@x.example", "Coast: West")
    general, _ = redact_trace(trace)
    tidewater, _ = redact_trace(trace, not_names=NOT_NAMES)
    replies = [
        cleaned["spans"][0]["attributes"]["gen_ai.output.messages"][0]["content"]
        for cleaned in (general, tidewater)
    ]
    assert replies == ["[name]: [name]", "Coast: West"]


def test_replies_lose_single_names_and_sql_only_whole_ones():
    text = "Sales? nadia.west@x.example or Dev May, ext 2026"
    sql = "SELECT 'Dev', 'Dev May' WHERE day > '2026-05-01' LIMIT 2026"
    trace = small_trace(
        text,
        f"Nadia, Dev: West, May 2026, ext 2026\n```sql\n{sql}\n```",
        sql,
        "ask Dev",
    )
    cleaned, hits = redact_trace(trace, not_names=NOT_NAMES)
    assert [hit.kind for hit in hits] == ["email", "name", "extension"]
    first = cleaned["spans"][0]["attributes"]
    new_sql = sql.replace("Dev May", "[name]")
    reply = first["gen_ai.output.messages"][0]["content"]
    assert reply == (
        "[name], [name]: West, May [extension], ext [extension]"
        f"\n```sql\n{new_sql}\n```"
    )
    call = cleaned["spans"][1]["attributes"]["gen_ai.tool.call.arguments"]
    assert call["sql"] == new_sql
    assert cleaned["feedback"]["comment"] == "ask [name]"


def test_pseudonyms_group_by_key():
    trace = small_trace("sales?", user_id="u28", session_id="u28-0701")
    same, _ = redact_trace(trace)
    one, _ = redact_trace(trace, key=b"k")
    again, _ = redact_trace(trace, key=b"k")
    other, _ = redact_trace(trace, key=b"l")
    assert same["user_id"] == "u28"
    assert one == again
    assert len({"u28", one["user_id"], one["session_id"], other["user_id"]}) == 4
    assert "u28" not in json.dumps(one)


@pytest.mark.parametrize("trace", [{}, {"spans": []}, small_trace(None)])
def test_a_trace_without_a_question_is_refused(trace):
    with pytest.raises(ValueError, match=r"needs a text in the 'content'"):
        redact_trace(trace)


def test_score_counts_misses_and_false_finds():
    found = {
        "a": [Found(0, 10, "name", "Thanks Owen"), Found(20, 24, "extension", "2026")],
        "b": [Found(0, 3, "name", "Dev")],
    }
    truth = {
        "a": [{"text": "Owen", "type": "name"}],
        "b": [{"text": "Dev Ash", "type": "name"}],
        "c": [{"text": "a@b.co", "type": "email"}],
    }
    counts = score(found, truth)
    assert counts["name"] == {"marked": 2, "covered": 1, "reported": 2, "right": 2}
    assert counts["all"] == {"marked": 3, "covered": 1, "reported": 3, "right": 2}
    assert counts["email"] == {"marked": 1, "covered": 0, "reported": 0, "right": 0}

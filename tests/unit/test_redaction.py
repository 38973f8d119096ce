"""Redaction: recall and precision on marked data, what stays, and the whole of a trace.

`redaction_cases.jsonl` holds messages as people write them, with what is personal in
them; half hold nothing, and look as if.
"""

import itertools
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.logs.redaction import KINDS, NOT_COVERED, find, redact, redact_trace, score
from utils.tidewater import read_jsonl
from utils.tidewater.words import NOT_NAMES

TRACES = {trace["trace_id"]: trace for trace in read_jsonl("traces.jsonl")}
MARKED = {row["trace_id"]: row["spans"] for row in read_jsonl("pii.jsonl")}
LINES = Path(__file__).with_name("redaction_cases.jsonl").read_text(encoding="utf-8")
CASES = [json.loads(line) for line in LINES.splitlines()]


def question(trace):
    return trace["spans"][0]["attributes"]["gen_ai.input.messages"][-1]["content"]


def reply(trace):
    return trace["spans"][0]["attributes"]["gen_ai.output.messages"][0]["content"]


@pytest.mark.parametrize("words", [(), (NOT_NAMES,)], ids=["general", "tidewater"])
def test_recall_and_precision_on_the_log_that_the_rules_were_fitted_to(words):
    found = {name: find(question(trace), *words) for name, trace in TRACES.items()}
    counts = score(found, MARKED)
    assert counts["all"]["marked"] == 74
    assert counts["all"]["covered"] / 74 >= 0.95
    assert counts["all"]["right"] / counts["all"]["reported"] >= 0.97
    for kind in ("email", "phone", "extension", "name"):
        assert counts[kind]["covered"] / counts[kind]["marked"] >= 0.93, kind
        assert counts[kind]["right"] / counts[kind]["reported"] >= 0.93, kind


def test_recall_and_precision_on_messages_that_no_rule_was_fitted_to():
    """Print nothing of these messages: whoever mends a rule must not know them."""
    rows = read_jsonl("pii_fresh.jsonl")
    found = {row["id"]: find(row["text"]) for row in rows}
    counts = score(found, {row["id"]: row["spans"] for row in rows})["all"]
    enough = counts["marked"] == 101 and counts["covered"] >= 72
    assert enough, "fewer are found than when the rules were written"
    assert counts["right"] >= 0.95 * counts["reported"], "more is taken that is not"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_what_people_write(case):
    hits = find(case["text"])
    for mark in case["spans"]:
        assert any(mark["text"] in hit.text for hit in hits), mark
    for hit in hits:
        marks = [m["text"] for m in case["spans"]]
        assert any(m in hit.text or hit.text in m for m in marks), hit


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Cheers, dev", "Cheers, [name]"),
        ("ring priya on 555-0142 when done", "ring [name] on [phone] when done"),
        ("this is Jean-Luc O'Brien from ops", "this is [name] from ops"),
        ("Please forward it to María Núñez in PR", "Please forward it to [name] in PR"),
        ("call (212) 555-0142. Regards, A. K. Pym", "call [phone]. Regards, [name]"),
        ("on +44 20 7946 0958 or a.b@x.co.uk", "on [phone] or [email]"),
        ("Ana Bauer, ana.bauer@x.example: ana", "[name], [email]: [name]"),
        ("IBAN GB13QXYZ20051931415926 and more", "IBAN [iban] and more"),
        ("live at 5 Elm Road, Leeds LS6 2AB.", "live at [address]."),
    ],
)
def test_finds_are_cut_where_they_end(text, redacted):
    assert redact(text) == redacted


def test_the_regions_of_national_phones_are_a_setting():
    text = "ruf an: 030 23125 123"
    assert redact(text) == "ruf an: [phone]"
    assert redact(text, regions=("NO",)) == text
    assert redact("ruf an: +49 30 23125 123", regions=("NO",)) == "ruf an: [phone]"


def test_kinds_and_what_is_not_covered_are_sentences_for_the_card():
    assert len(KINDS) == 12 and len(NOT_COVERED) >= 5
    assert all(sentence.endswith(".") for sentence in KINDS.values())
    assert set(score({}, {})) == {*KINDS, "all"}


PIECES = (
    "thanks, |Ana Bauer|owen|ext 12| x4417|555-0142|a@b.co|. |(|)|\n| - |my name is "
)
PIECES += (
    "|[name]|[|ring |for |it's | van |A.|born |1.2.1990|pin |4821|@ana_b|5 Elm Road"
)
pieces = st.lists(st.sampled_from(PIECES.split("|")), max_size=9).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=80), pieces))
def test_any_text_is_redacted_once_and_for_all(text):
    hits = find(text)
    assert all(text[hit.start : hit.end] == hit.text != "" for hit in hits)
    assert all(a.end <= b.start for a, b in itertools.pairwise(hits))
    once = redact(text)
    assert redact(once) == once


SLOW = ["a", "1", " ", "\n", "@", "(", "A", "1 ", "a.", "a-", "x12 ", "Ab ", "Mr ", "é"]


@pytest.mark.parametrize("piece", SLOW)
def test_no_text_keeps_it_busy(piece):
    started = time.perf_counter()
    find(piece * (100_000 // len(piece)))
    assert time.perf_counter() - started < 20


def test_every_trace_keeps_its_sql_rows_and_loses_what_is_marked():
    for trace_id, trace in TRACES.items():
        before, marks = json.dumps(trace), MARKED.get(trace_id, [])
        cleaned, _ = redact_trace(trace, not_names=NOT_NAMES)
        assert json.dumps(trace) == before, "the given trace was changed"
        assert cleaned["spans"][1:] == trace["spans"][1:]
        assert cleaned["feedback"] == trace["feedback"]
        assert marks or cleaned == trace
        left = json.dumps(cleaned, ensure_ascii=False)
        for mark in marks:
            assert mark["text"] not in left or mark["type"] == "extension"
            for word in re.findall(r"[A-Z][a-z]{2,}", mark["text"]):
                assert not re.search(rf"\b{word}\b", left), word


def test_replies_lose_single_names_and_sql_only_whole_ones():
    sql = "SELECT 'Dev', 'Dev May' WHERE day > '2026-05-01' LIMIT 2026"
    asked = "Sales? nadia.west@x.example or Dev May, ext 2026"
    told = f"Nadia, Dev: West, May 2026, ext 2026\n```sql\n{sql}\n```"
    chat = {"gen_ai.input.messages": [{"content": asked}]}
    chat |= {"gen_ai.output.messages": [{"content": told}]}
    call = {"gen_ai.tool.call.arguments": {"sql": sql}}
    trace = {"spans": [{"attributes": chat}, {"attributes": call}]}
    trace |= {"feedback": {"comment": "ask Dev"}, "user_id": "u28"}
    cleaned, hits = redact_trace(trace, not_names=NOT_NAMES)
    assert [hit.kind for hit in hits[:3]] == ["email", "name", "extension"]
    new_sql = sql.replace("Dev May", "[name]")
    names = "[name], [name]: West, May [extension], ext [extension]"
    assert reply(cleaned) == f"{names}\n```sql\n{new_sql}\n```"
    (arguments,) = cleaned["spans"][1]["attributes"].values()
    assert arguments == {"sql": new_sql}
    assert cleaned["feedback"]["comment"] == "ask [name]"
    # West is a region for Tidewater; without its words it is half of an address.
    assert "[name]: [name], May" in reply(redact_trace(trace)[0])
    # With a key users become pseudonyms, the same ones for the same key.
    users = [redact_trace(trace, key)[0]["user_id"] for key in (None, b"k", b"k", b"l")]
    assert users[0] == "u28" and users[1] == users[2] and len(set(users)) == 3
    # Without one they stay, be they e-mails: one placeholder for all is no user.
    known = {"user_id": "ana@x.example", "session_id": "b@x.example"}
    told, hits = redact_trace(trace | known | {"feedback": {"by": "ana@x.example"}})
    assert known.items() <= told.items() and told["feedback"] == {"by": "[email]"}


def test_every_part_of_a_trace_is_covered_and_json_stays_json():
    turns = [
        {"role": "system", "content": "You serve Ana's shop."},
        {"role": "user", "content": "I spoke with Marta Lopes: marta.lopes@x.example"},
        {"role": "user", "content": "Update my phone, 07700 900123. Thanks, Zoë"},
    ]
    told = [{"role": "assistant", "content": "Done, Zoë. MARTA knows. March may go."}]
    sent = '{"to": "marta lopes", "phone": "4155550123", "pin": "4821", "n": 3}'
    chat = {"gen_ai.input.messages": turns, "gen_ai.output.messages": told}
    tool = {"gen_ai.tool.call.arguments": sent}
    tool |= {"gen_ai.tool.call.result": {"rows": [["Marta Lopes", 3], ["martaban", 1]]}}
    trace = {"spans": [{"attributes": chat}, {"attributes": tool}]}
    cleaned, hits = redact_trace(trace)
    assert [hit.text for hit in hits][:3] == ["07700 900123", "Zoë", "Marta Lopes"]
    assert reply(cleaned) == "Done, [name]. [name] knows. March may go."
    arguments, result = cleaned["spans"][1]["attributes"].values()
    wanted = {"to": "[name]", "phone": "[phone]", "pin": "[secret]", "n": 3}
    assert json.loads(arguments) == wanted
    assert result == {"rows": [["[name]", 3], ["martaban", 1]]}
    assert redact_trace(cleaned) == (cleaned, []), "twice is as good as once"
    with pytest.raises(ValueError, match="needs a text"):
        redact_trace({"spans": []})

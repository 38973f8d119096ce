"""Traces: the course's log, feedback, what is trained on, the foreign logs of data."""

import json
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest

from utils.logs import traces

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "traces.jsonl"
FIXTURES = ROOT / "data" / "foreign_logs"
RAW = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def call(question="q?", reply="a.", **attributes):
    """An `llm` span."""
    attributes = {
        traces.INPUT: [{"role": "user", "content": question}],
        traces.OUTPUT: [{"role": "assistant", "content": reply}] if reply else [],
    } | attributes
    return traces.span("llm", "chat m", attributes)


# A trace and its file


def test_every_trace_of_the_course_survives_the_round_trip(tmp_path):
    found, bad = traces.read(DATA)
    assert [t.to_dict() for t in found] == RAW and bad == []
    traces.write(tmp_path / "copy.jsonl", found)
    assert (tmp_path / "copy.jsonl").read_bytes() == DATA.read_bytes()
    statuses = {"answered": 1371, "timeout": 7, "rate_limit": 5, "overloaded": 3}
    assert Counter(t.status for t in found) == statuses
    reviewed = [t for t in found if t.verdict in ("approved", "corrected")]
    chats = [traces.to_messages(t, answer=t.feedback.get("sql")) for t in reviewed]
    assert len(chats) == 814
    assert {tuple(m["role"] for m in c) for c in chats} == {("user", "assistant")}


def test_malformed_lines_are_numbered_and_skipped(tmp_path):
    good = [json.dumps(d, ensure_ascii=False).encode() for d in RAW[:3]]
    lines = [b"\xef\xbb\xbf" + good[0], b"", good[1]]
    lines += [b"not json", b'{"trace_id": "\xff"}', b"[1]", b"[" * 100_000, good[0]]
    lines += [b'{"trace_id": "nobody", "feedback": {"verdict": "approved"}}']
    lines += [b'{"trace_id": [], "feedback": {"verdict": "approved"}}', good[2]]
    lines += [b'{"trace_id": "x", "feedback": {"comment": ""}}', good[2][:200]]
    odd = deepcopy(RAW[3])
    odd["spans"][0]["kind"] = "agent"
    lines.append(json.dumps(odd).encode())
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.warns(traces.SkippedLines, match="10 of 14 lines skipped: line 4: "):
        found, bad = traces.read(path)
    assert [t.trace_id for t in found] == [d["trace_id"] for d in RAW[:3]]
    assert [b.number for b in bad] == [4, 5, 6, 7, 8, 9, 10, 12, 13, 14]
    assert "spans[0].kind: " in bad[-1].reason


@pytest.mark.timeout(600)
def test_processes_append_whole_lines_whatever_they_hold(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    code = """if True:
        import sys; from utils.logs import traces
        chat = [{'role': 'user', 'content': 'é' * 20_000}]
        for i in range(100):
            s = traces.span('llm', 'x', {traces.INPUT: chat})
            traces.append(sys.argv[1], traces.new_trace([s]))
    """
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(500) for process in running] == [0, 0]
    # A writer that was cut off spoils its own line. Two at once may leave blank ones.
    with path.open("ab") as file:
        file.write(b'{"trace_id": "cut')
    odd = traces.new_trace([call("line\u2028sep \x85 \r\n \ud800 é 中")])
    traces.append(path, odd)
    with pytest.warns(traces.SkippedLines, match="1 of .* lines skipped: line"):
        found, _ = traces.read(path)
    assert len(found) == 201 and found[-1] == odd


def test_feedback_joins_its_trace(tmp_path):
    path = tmp_path / "log.jsonl"
    one = traces.new_trace([call(**{"gen_ai.response.id": "chatcmpl-7"})])
    two = traces.new_trace([call()])
    traces.append(path, one)
    traces.append(path, two)
    traces.feedback(path, "chatcmpl-7", "thumbs_down", "user")
    traces.feedback(path, two.trace_id, "approved", source="analyst")
    better = {"comment": "tests", "sql": "SELECT 1"}
    traces.feedback(path, one.trace_id, "corrected", "analyst", **better)
    (first, second), bad = traces.read(path)
    assert not bad
    assert first.feedback == {"source": "analyst", "verdict": "corrected"} | better
    assert second.feedback == {"source": "analyst", "verdict": "approved"}


def test_to_messages():
    asked, said = {"role": "user", "content": "q?"}, "SELECT 1"
    answer = {"role": "assistant", "content": said}
    old = {traces.INPUT: [{"role": "system", "content": "Old."}, asked]}
    prompted = traces.new_trace([call(reply=said, **old)])
    assert traces.to_messages(prompted) == [*old[traces.INPUT], answer]
    chat = [asked, answer, {"role": "user", "content": "no such table"}]
    retried = traces.new_trace([call(), call(reply="fixed", **{traces.INPUT: chat})])
    assert traces.to_messages(retried)[:3] == chat
    best = answer | {"content": "best"}
    assert traces.to_messages(retried, answer="best") == [asked, best]
    failed = traces.new_trace([call(reply="par", **{"error.type": "incomplete"})])
    for trace in (failed, traces.new_trace([call(reply="")]), traces.new_trace([])):
        with pytest.raises(ValueError, match="no question, or no complete reply"):
            traces.to_messages(trace)


@pytest.mark.parametrize(
    ("status", "reply", "ends", "ran"),
    [
        ("answered", "a.", ["stop"], None),
        ("no_reply", "", ["stop"], None),
        ("truncated", "a", ["length"], None),
        ("truncated", "a", ["max_tokens"], None),
        ("truncated", "", ["MAX_TOKENS"], None),
        ("answered", "a", ["length"], {"rows": []}),
        ("tool_error", "a", ["stop"], {"error": "no such table"}),
    ],
)
def test_status(status, reply, ends, ran):
    spans = [call(reply=reply, **{"gen_ai.response.finish_reasons": ends})]
    if ran is not None:
        spans.append(traces.span("tool", "t", {traces.RESULT: ran}))
    assert traces.new_trace(spans).status == status


# Foreign logs that a reader of the course sees


@pytest.mark.parametrize(
    ("name", "statuses", "tokens", "kinds"),
    [
        ("openai_chat.jsonl", "answered answered answered answered rate_limit",
         [(548, 61), (601, 38), (655, 14)], ["llm", "llm tool", "tool llm"]),
        # 31 fresh, 510 written to the cache: OpenTelemetry counts both as input.
        ("anthropic_messages.jsonl", "answered answered answered overloaded",
         [(541, 42), (736, 12)], ["llm", "tool tool llm"]),
        # The web request and the agent's span are no calls and add no tokens.
        ("otel_genai.json", "answered answered rate_limit tool_error",
         [(1180, 75), (548, 61)], ["llm tool llm", "llm"]),
    ],
)  # fmt: skip
def test_foreign_logs(name, statuses, tokens, kinds):
    found, bad = traces.load(FIXTURES / name)
    assert [t.status for t in found] == statuses.split() and not bad
    assert [t.tokens for t in found[: len(tokens)]] == tokens
    every = [" ".join(span["kind"] for span in t.spans) for t in found]
    assert every[: len(kinds)] == kinds
    assert "Two regions came back" not in json.dumps([t.to_dict() for t in found])

import gc
import inspect
import json
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from utils.logs import importers, traces
from utils.logs import record as collect
from utils.logs.traces import Trace

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "traces.jsonl"
FIXTURES = ROOT / "data" / "foreign_logs"
RAW = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
PROPERTIES = [k for k, v in vars(Trace).items() if isinstance(v, property)]
pytestmark = pytest.mark.timeout(60)


def call(question="q?", reply="a.", **attributes):
    """An `llm` span."""
    attributes = {
        traces.INPUT: [{"role": "user", "content": question}],
        traces.OUTPUT: [{"role": "assistant", "content": reply}] if reply else [],
    } | attributes
    return traces.span("llm", "chat m", attributes)


def tool(arguments, result):
    """A `tool` span."""
    attributes = {traces.ARGUMENTS: arguments, traces.RESULT: result}
    return traces.span("tool", "execute_tool run_sql", attributes)


def test_every_trace_of_the_course_survives_the_round_trip(tmp_path):
    found, bad = traces.read(DATA)
    assert [t.to_dict() for t in found] == RAW and bad == []
    traces.write(tmp_path / "copy.jsonl", found)
    assert (tmp_path / "copy.jsonl").read_bytes() == DATA.read_bytes()


def test_properties_over_the_course_data():
    found, _ = traces.read(DATA)
    assert Counter(t.outcome for t in found) == {
        "answered": 1348,
        "no_query": 23,
        "timeout": 7,
        "rate_limit": 5,
        "overloaded": 3,
    }
    assert Counter(t.verdict for t in found)[None] == 426
    first = found[0]
    assert first.question.startswith("I'd like FY26 Q4 sales by category.")
    assert "```sql\nSELECT category" in first.reply
    assert list(first.arguments) == ["sql"] and first.result["error"] is None
    assert first.tokens == (553, 128) and first.seconds is None


def test_properties_of_a_trace_with_a_second_try():
    trace = traces.new_trace(
        [
            call("first?", "SELECT x", **{traces.TOKENS[0]: 10, traces.TOKENS[1]: 2}),
            tool({"sql": "SELECT x"}, {"error": "no such column: x"}),
            call("no such column: x", "SELECT y", **{traces.TOKENS[0]: 20}),
            tool({"sql": "SELECT y"}, {"rows": [[1]], "error": None})
            | {"seconds": 0.25},
        ],
        user_id="u1",
    )
    assert (trace.question, trace.reply) == ("first?", "SELECT y")
    assert trace.arguments == {"sql": "SELECT y"} and trace.result["rows"] == [[1]]
    assert trace.outcome == "answered" and trace.tokens == (30, 2)
    assert trace.seconds == 0.25 and trace.user_id == "u1"
    trace.spans.pop()
    assert trace.outcome == "tool_error" and trace.seconds is None
    assert traces.new_trace([]).outcome == "no_query"
    assert len(trace.trace_id) == 32 and len(trace.spans[0]["span_id"]) == 16
    with pytest.raises(ValueError, match="'llm' or 'tool'"):
        traces.span("agent", "x", {})


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["trace_id"], None, "trace_id should be str, is NoneType"),
        (["spans"], {}, "spans should be list, is dict"),
        (["extra"], 1, "extra is no key"),
        (["user_id"], 7, "user_id should be str | None, is int"),
        (["feedback"], {"verdict": 1}, r"feedback\.verdict"),
        (["spans", 0], "x", r"spans\[0\]\. ?should be a JSON object"),
        (["spans", 0, "kind"], "agent", r"spans\[0\]\.kind should be llm or tool"),
        (["spans", 0, "seconds"], "1", r"spans\[0\]\.seconds"),
        (["spans", 0, "attributes", traces.INPUT], [{"role": "user"}], "content"),
        (["spans", 1, "attributes", traces.RESULT], "rows", r"result should be dict"),
    ],
)
def test_from_dict_names_the_wrong_key(path, value, named):
    d = deepcopy(RAW[0])
    place = d
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=named.replace(" | ", r" \| ")):
        Trace.from_dict(d)


def test_from_dict_names_the_missing_key():
    for key in ("trace_id", "time", "spans"):
        with pytest.raises(ValueError, match=f"{key} should be .*, is missing"):
            Trace.from_dict({k: v for k, v in RAW[0].items() if k != key})


def test_malformed_lines_are_numbered_and_skipped(tmp_path):
    good = [json.dumps(d, ensure_ascii=False).encode() for d in RAW[:3]]
    lines = [
        b"\xef\xbb\xbf" + good[0],
        b"",
        good[1],
        b"not json",
        b'{"trace_id": "\xff"}',
        b"[1]",
        b"[" * 100_000,
        good[0],
        b'{"trace_id": "nobody", "feedback": {"verdict": "approved"}}',
        b'{"trace_id": [], "feedback": {"verdict": "approved"}}',
        good[2],
        good[2][:200],
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.warns(traces.SkippedLines) as caught:
        found, bad = traces.read(path)
    assert [t.trace_id for t in found] == [d["trace_id"] for d in RAW[:3]]
    assert [b.number for b in bad] == [4, 5, 6, 7, 8, 9, 10, 12]
    reasons = [b.reason for b in bad]
    parts = ["Expecting value", "can't decode", "should be a JSON object", "recursion"]
    parts += ["came before", "not here", "trace_id should be str", "Unterminated"]
    assert all(part in reason for part, reason in zip(parts, reasons, strict=True))
    assert bad[0].text == "not json" and len(bad[3].text) == 80
    message = str(caught[0].message)
    assert len(caught) == 1 and "8 of 12 lines skipped: line 4: " in message
    assert str(path) in message and message.endswith("; ...")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_read_and_load_never_raise_on_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", traces.SkippedLines)
        for format in traces.FORMATS:
            found, bad = traces.load(path, format)
            assert found == [] and all(b.number >= 1 and b.reason for b in bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
SEEDS = [RAW[0], next(d for d in RAW if d["feedback"])]
SEEDS += [json.loads((FIXTURES / "otel_genai.json").read_text())]
for name in ("openai_chat.jsonl", "anthropic_messages.jsonl"):
    SEEDS += map(json.loads, (FIXTURES / name).read_text().splitlines())


def places(value, path=()):
    """The path of every part of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from places(part, (*path, key))


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.sampled_from(SEEDS), st.integers(0, 10**6), JSON)
def test_a_record_with_one_odd_part_is_read_or_reported(
    tmp_path_factory, seed, where, odd
):
    record = deepcopy(seed)
    _, *inner = places(record)
    *path, last = inner[where % len(inner)]
    place = record
    for key in path:
        place = place[key]
    place[last] = odd
    file = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    file.write_text(json.dumps(record))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, bad = traces.load(file)
    assert found or bad or "resourceSpans" in record  # an export may hold no model call
    for trace in found:
        for name in PROPERTIES:
            getattr(trace, name)
        assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) is not None
        text = (trace.question, trace.reply, trace.outcome)
        assert all(isinstance(part, str) for part in text)


def test_append_survives_a_cut_last_line_and_odd_characters(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    odd = traces.new_trace([call("line\u2028sep \x85 \r\n \ud800 é 中")])
    traces.append(path, odd)
    with path.open("ab") as file:
        file.write(b'{"trace_id": "cut')
    last = traces.new_trace([call()])
    traces.append(path, last)
    with pytest.warns(traces.SkippedLines, match="line 2"):
        found, bad = traces.read(path)
    assert found == [odd, last] and [b.number for b in bad] == [2]
    broken = traces.new_trace([tool({"sql": ""}, ["not", "a", "dict"])])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="result should be dict"):
        traces.append(path, broken)
    assert path.read_bytes() == before


def test_write_replaces_a_file_only_when_done(tmp_path):
    path = tmp_path / "log.jsonl"
    kept = traces.new_trace([call()])
    traces.write(path, [kept])

    def broken():
        yield traces.new_trace([])
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError):
        traces.write(path, broken())
    assert traces.read(path) == ([kept], [])


def test_threads_and_processes_append_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import sys; from utils import traces\n"
        "for i in range(100):\n"
        "    s = traces.span('llm', 'x', {traces.INPUT: "
        "[{'role': 'user', 'content': 'é' * 20_000}]})\n"
        "    traces.append(sys.argv[1], traces.new_trace([s]))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        new = [traces.new_trace([call("y" * 5000)]) for _ in range(200)]
        list(pool.map(lambda trace: traces.append(path, trace), new))
    assert [process.wait(50) for process in running] == [0, 0]
    found, bad = traces.read(path)
    assert len(found) == 400 and bad == []


def test_feedback_joins_its_trace(tmp_path):
    path = tmp_path / "log.jsonl"
    one = traces.new_trace([call(**{"gen_ai.response.id": "chatcmpl-7"})])
    two = traces.new_trace([call()])
    traces.append(path, one)
    traces.append(path, two)
    traces.feedback(path, "chatcmpl-7", "thumbs_down", "user")
    traces.feedback(path, two.trace_id, "approved", source="analyst")
    traces.feedback(
        path, one.trace_id, "corrected", "analyst", comment="tests", sql="SELECT 1"
    )
    (first, second), bad = traces.read(path)
    corrected = {"source": "analyst", "verdict": "corrected", "comment": "tests"}
    assert first.feedback == corrected | {"sql": "SELECT 1"} and not bad
    assert second.feedback == {"source": "analyst", "verdict": "approved"}
    traces.write(path, [first, second])
    assert traces.read(path)[0] == [first, second]
    with pytest.raises(ValueError, match="verdict should be one of"):
        traces.feedback(path, one.trace_id, "good", "user")
    with pytest.raises(TypeError, match="note"):
        traces.feedback(path, one.trace_id, "approved", "user", note="x")


def test_to_messages():
    asked, said = {"role": "user", "content": "q?"}, "SELECT 1"
    answer = {"role": "assistant", "content": said}
    plain = traces.new_trace([call(reply=said)])
    assert traces.to_messages(plain) == [asked, answer]
    system = {"role": "system", "content": "Be right."}
    assert traces.to_messages(plain, "Be right.") == [system, asked, answer]
    corrected = traces.to_messages(plain, answer="SELECT 2")
    assert corrected == [asked, answer | {"content": "SELECT 2"}]
    old = {traces.INPUT: [{"role": "system", "content": "Old."}, asked]}
    prompted = traces.new_trace([call(reply=said, **old)])
    assert traces.to_messages(prompted)[0]["content"] == "Old."
    assert traces.to_messages(prompted, "Be right.") == [system, asked, answer]

    chat = [asked, answer, {"role": "user", "content": "no such table"}]
    retried = traces.new_trace([call(), call(reply="fixed", **{traces.INPUT: chat})])
    assert [m["content"] for m in traces.to_messages(retried)][1:] == [
        said,
        "no such table",
        "fixed",
    ]
    assert traces.to_messages(retried, answer="best") == [
        asked,
        answer | {"content": "best"},
    ]

    failed = traces.new_trace([call(reply="par", **{"error.type": "incomplete"})])
    for trace in (failed, traces.new_trace([call(reply="")]), traces.new_trace([])):
        with pytest.raises(ValueError, match="no question, or no complete reply"):
            traces.to_messages(trace)
    assert traces.to_messages(failed, answer="whole")[-1]["content"] == "whole"
    with pytest.raises(ValueError, match="no question"):
        traces.to_messages(traces.new_trace([]), answer="x")


def test_all_reviewed_traces_become_training_chats():
    found, _ = traces.read(DATA)
    kept = [t for t in found if t.verdict in ("approved", "corrected")]
    chats = [traces.to_messages(t, answer=t.feedback.get("sql")) for t in kept]
    assert len(chats) == 814
    assert {tuple(m["role"] for m in c) for c in chats} == {("user", "assistant")}


# The collect-now kit


def completion(text="SELECT 1", **more):
    """A response of a duck-typed client."""
    message = SimpleNamespace(role="assistant", content=text, tool_calls=None)
    choice = SimpleNamespace(index=0, message=message, finish_reason="stop")
    usage = SimpleNamespace(prompt_tokens=9, completion_tokens=3)
    parts = {"id": "c1", "model": "m-1", "choices": [choice], "usage": usage}
    return SimpleNamespace(**parts | more)


def chunk(text=None, finish=None, **more):
    """A chunk of a streamed response."""
    delta = SimpleNamespace(content=text)
    choice = SimpleNamespace(index=0, delta=delta, finish_reason=finish)
    return SimpleNamespace(id="c2", model="m-1", choices=[choice], **more)


def client_of(create, **more):
    """A client that has only what the kit needs."""
    completions = SimpleNamespace(create=create)
    return SimpleNamespace(chat=SimpleNamespace(completions=completions), **more)


def ask(client, question="How many?", **more):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="m", messages=messages, **more)


def test_record_returns_the_response_and_keeps_a_trace(tmp_path):
    path, response, chat = tmp_path / "a" / "log.jsonl", completion(), []
    bare = client_of(lambda **_: (chat.append({}), response)[1], api_key="k")
    who = {"user_id": "u1", "session_id": "s1", "prompt_version": "launch"}
    client = collect.record(bare, path, **who)
    chat.append({"role": "user", "content": "How many?"})
    given = {
        "model": "m",
        "messages": chat,
        "temperature": 0,
        "extra_headers": {"k": 1},
    }
    assert client.chat.completions.create(**given) is response
    assert client.api_key == "k" and bare.chat.completions.create is not None
    (trace,), bad = traces.read(path)
    assert (trace.question, trace.reply) == ("How many?", "SELECT 1") and not bad
    assert (trace.user_id, trace.session_id) == ("u1", "s1")
    assert trace.tokens == (9, 3) and 0 <= trace.seconds < 5
    (llm,) = trace.spans
    assert llm["name"] == "chat m" and llm["attributes"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.prompt.version": "launch",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0,
        # The list as it was when sent, without what the product added later.
        traces.INPUT: [{"role": "user", "content": "How many?"}],
        traces.OUTPUT: [{"role": "assistant", "content": "SELECT 1"}],
        "gen_ai.response.id": "c1",
        "gen_ai.response.model": "m-1",
        "gen_ai.response.finish_reasons": ["stop"],
        traces.TOKENS[0]: 9,
        traces.TOKENS[1]: 3,
    }
    ask(client, user="u2")
    assert traces.read(path)[0][1].user_id == "u2"
    with pytest.raises(TypeError, match="customer"):
        collect.record(bare, path, customer="x")


def test_record_raises_what_the_api_raised(tmp_path):
    path, boom = tmp_path / "log.jsonl", TimeoutError("slow")

    def create(**_):
        raise boom

    with pytest.raises(TimeoutError) as caught:
        ask(collect.record(client_of(create), path))
    assert caught.value is boom
    (trace,), _ = traces.read(path)
    assert trace.outcome == "timeout" and trace.question == "How many?"
    assert trace.spans[0]["attributes"][traces.OUTPUT] == []


@pytest.mark.parametrize("filters", ["always", "error"])
def test_a_trace_that_cannot_be_written_is_one_warning(tmp_path, filters):
    (tmp_path / "file").write_text("in the way")
    response = completion()
    client = client_of(lambda **_: response)
    client = collect.record(client, tmp_path / "file" / "log.jsonl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filters)
        assert all(ask(client) is response for _ in range(3))
    assert len(caught) == (filters == "always")
    assert all("unrecorded" in str(w.message) for w in caught)


@pytest.mark.parametrize("odd", [None, "text", object(), completion(choices=None)])
def test_a_response_of_no_known_shape_goes_through(tmp_path, odd):
    client = collect.record(client_of(lambda **_: odd), tmp_path / "log.jsonl")
    with pytest.warns(RuntimeWarning, match="unrecorded"):
        assert ask(client) is odd
    generator = iter([{"role": "user", "content": "q"}])
    client = collect.record(client_of(lambda messages: list(messages)), tmp_path / "l")
    with pytest.warns(RuntimeWarning, match="no messages"):
        assert client.chat.completions.create(messages=generator)[0]["content"] == "q"


def test_record_from_many_threads(tmp_path):
    path = tmp_path / "log.jsonl"
    client = client_of(lambda messages, **_: completion(messages[0]["content"] * 50))
    client = collect.record(client, path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ask(client, f"<{i}>"), range(300)))
    found, bad = traces.read(path)
    assert {t.question for t in found} == {f"<{i}>" for i in range(300)} and not bad
    assert all(t.reply == t.question * 50 for t in found)


def test_a_stream_passes_through_and_is_recorded_at_its_end(tmp_path):
    path = tmp_path / "log.jsonl"
    usage = SimpleNamespace(prompt_tokens=9, completion_tokens=2)
    chunks = [chunk("SEL"), chunk("ECT"), chunk(finish="stop")]
    chunks += [SimpleNamespace(id="c2", choices=[], usage=usage)]
    client = collect.record(client_of(lambda **_: iter(chunks)), path)
    stream = ask(client, stream=True)
    assert next(stream) is chunks[0] and not path.exists()
    assert list(stream) == chunks[1:]
    (trace,), _ = traces.read(path)
    assert (trace.reply, trace.tokens) == ("SELECT", (9, 2))
    assert trace.outcome == "no_query"


@pytest.mark.parametrize("leave", ["close", "drop", "error", "with"])
def test_a_stream_left_early_is_recorded_as_incomplete(tmp_path, leave):
    path, closed = tmp_path / "log.jsonl", []

    class Stream:
        def __iter__(self):
            yield chunk("SEL")
            if leave == "error":
                raise ConnectionError("cut")
            yield chunk("ECT", finish="stop")

        def close(self):
            closed.append(True)

        def __enter__(self):
            return self

    client = collect.record(client_of(lambda **_: Stream()), path)
    stream = ask(client, stream=True)
    assert next(stream).choices[0].delta.content == "SEL"
    if leave == "close":
        stream.close()
    elif leave == "with":
        with stream:
            pass
    elif leave == "error":
        with pytest.raises(ConnectionError):
            next(stream)
    del stream
    gc.collect()
    (trace,), _ = traces.read(path)
    assert trace.reply == "SEL" and trace.tokens == (0, 0)
    expected = "ConnectionError" if leave == "error" else "incomplete"
    assert trace.outcome == expected and bool(closed) == (leave in ("close", "with"))
    with pytest.raises(ValueError, match="no complete reply"):
        traces.to_messages(trace)


def test_a_stream_of_tool_calls_is_put_together():
    def piece(index, **function):
        call = {"index": index, "id": function.pop("id", None), "function": function}
        return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}

    pieces = [piece(0, id="a", name="run_sql", arguments=""), piece(0, arguments='{"s')]
    pieces += [
        piece(1, id="b", name="plot", arguments="{}"),
        piece(0, arguments='": 1}'),
    ]
    pieces += [{"id": "c9", "choices": [{"index": 0, "finish_reason": "tool_calls"}]}]
    whole = importers.joined(pieces)
    record = {"request": {"messages": [{"role": "user", "content": "q"}]}, "time": 1}
    trace = traces.from_openai(record | {"response": whole})
    names = [s["attributes"]["gen_ai.tool.name"] for s in trace.spans[1:]]
    assert names == ["run_sql", "plot"]
    ids = [s["attributes"]["gen_ai.tool.call.id"] for s in trace.spans[1:]]
    assert ids == ["a", "b"]
    assert trace.spans[1]["attributes"][traces.ARGUMENTS] == {"s": 1}
    assert trace.result is None and trace.outcome == "answered"


def test_an_asynchronous_client_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match="asynchronous"):
        collect.record(openai.AsyncOpenAI(api_key="x"), tmp_path / "log.jsonl")


@pytest.fixture
def real(chat_server, tmp_path):
    """A real client of a server on loopback, recorded, and its log."""
    client = openai.OpenAI(
        base_url=chat_server.url, api_key="secret-key", max_retries=0, timeout=10
    )
    with client:
        yield collect.record(client, tmp_path / "log.jsonl"), tmp_path / "log.jsonl"


def test_the_real_client_over_the_wire(real, chat_server):
    client, path = real
    response = ask(client, temperature=0)
    assert isinstance(response, ChatCompletion)
    chat = [{"role": "user", "content": "How many?"}, response.choices[0].message]
    chat.append({"role": "user", "content": "And in June?"})
    client.chat.completions.create(model="m", messages=chat, top_p=openai.omit)
    assert client.with_options(timeout=5).chat.completions.create(
        model="m", messages=chat
    )
    assert client.models is not None and client.max_retries == 0
    found, bad = traces.read(path)
    assert [t.question for t in found] == ["How many?"] + ["And in June?"] * 2
    assert [t.tokens for t in found] == [(11, 7)] * 3 and not bad
    assert found[1].spans[0]["attributes"][traces.INPUT][1] == {
        "role": "assistant",
        "content": "hello",
    }
    assert "gen_ai.request.top_p" not in found[1].spans[0]["attributes"]
    assert "secret-key" not in path.read_text()
    assert len(chat_server.requests) == 3


@pytest.mark.parametrize(
    ("entry", "error", "outcome"),
    [
        (429, openai.RateLimitError, "rate_limit"),
        (503, openai.InternalServerError, "overloaded"),
        (401, openai.AuthenticationError, "AuthenticationError"),
        (1.0, openai.APITimeoutError, "timeout"),
    ],
)
def test_errors_of_the_real_client(real, chat_server, entry, error, outcome):
    client, path = real
    chat_server.script = [entry]
    with pytest.raises(error):
        ask(client, timeout=0.3)
    (trace,), _ = traces.read(path)
    assert trace.outcome == outcome and trace.reply == ""


def test_a_stream_of_the_real_client(real, chat_server):
    client, path = real
    chunks = [{"choices": [{"index": 0, "delta": {"content": c}}]} for c in "abc"]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    chunks.append(
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
    )
    head = {"id": "s1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    lines = [json.dumps(head | c) for c in chunks] + ["[DONE]"]
    chat_server.script = ["".join(f"data: {line}\n\n" for line in lines).encode()]
    with ask(client, stream=True) as stream:
        said = [c.choices[0].delta.content for c in stream if c.choices]
        assert stream.response.status_code == 200
    assert said == ["a", "b", "c"]
    (trace,), _ = traces.read(path)
    assert (trace.reply, trace.tokens) == ("abc", (5, 3))


# Foreign logs


def test_openai_log(tmp_path):
    path = FIXTURES / "openai_chat.jsonl"
    found, bad = traces.load(path, "openai")
    assert len(found) == 5 and not bad
    for line in path.read_text().splitlines():
        body = json.loads(line)["response"]
        body = body.get("body", body)
        if "choices" in body:
            ChatCompletion.model_validate(body)  # the fixture has OpenAI's own shape
    plain, asked, told, image, limited = found
    assert plain.question == "decaf net sales, all time" and "```sql" in plain.reply
    assert (
        plain.tokens == (548, 61) and plain.seconds == 1.84 and plain.user_id == "u09"
    )
    assert plain.time == "2026-07-06T09:00:12"
    attributes = plain.spans[0]["attributes"]
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 512
    assert attributes[traces.INPUT][0]["role"] == "system"
    assert attributes["gen_ai.request.max_tokens"] == 600

    assert [s["kind"] for s in asked.spans] == ["llm", "tool"] and asked.result is None
    assert traces.to_messages(asked)[-1]["tool_calls"][0]["type"] == "function"
    definition = asked.spans[0]["attributes"]["gen_ai.tool.definitions"][0]
    assert definition["type"] == "function" and definition["name"] == "run_sql"
    assert [s["kind"] for s in told.spans] == ["tool", "llm"]
    assert told.result == {"rows": [[103]], "error": None}
    assert list(told.arguments) == ["sql"] and told.outcome == "answered"
    assert told.reply == "103 customers have bought by phone."
    assert [m["role"] for m in traces.to_messages(told)][2:] == [
        "assistant",
        "tool",
        "assistant",
    ]
    corrected = traces.to_messages(told, answer="104")
    assert [m["role"] for m in corrected] == ["system", "user", "assistant"]
    assert (told.session_id, told.user_id) == ("u28-0706", "u28")
    assert image.question == "What does this chart show?\n[image_url]"
    assert image.reply.startswith("I can only answer") and image.time.endswith(
        "09:19:03"
    )
    assert limited.outcome == "rate_limit" and limited.time == "2026-07-06T09:20:31"

    traces.write(tmp_path / "ours.jsonl", found)
    assert traces.read(tmp_path / "ours.jsonl") == (found, [])
    again = [t.trace_id for t in traces.load(path)[0]]
    assert again == [t.trace_id for t in found]


def test_tool_calls_of_earlier_turns_are_not_counted_again():
    turn = json.loads((FIXTURES / "openai_chat.jsonl").read_text().splitlines()[2])
    chat = turn["request"]["messages"]
    chat += [{"role": "assistant", "content": "103."}]
    chat += [{"role": "user", "content": "And by mail?"}]
    trace = traces.from_openai(turn)
    assert trace.question == "And by mail?" and trace.outcome == "no_query"


def test_anthropic_log():
    found, bad = traces.load(FIXTURES / "anthropic_messages.jsonl", "anthropic")
    assert len(found) == 4 and not bad
    plain, looped, asked, failed = found
    # 31 fresh, 510 written to the cache: OpenTelemetry counts both as input.
    assert plain.tokens == (541, 42) and plain.user_id == "u14"
    attributes = plain.spans[0]["attributes"]
    assert attributes["gen_ai.usage.cache_creation.input_tokens"] == 510
    assert attributes["gen_ai.provider.name"] == "anthropic"
    assert attributes["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert [m["role"] for m in attributes[traces.INPUT]] == ["system", "user"]
    assert attributes[traces.INPUT][0]["content"].startswith("You are Tidewater")

    assert looped.tokens == (736, 12) and looped.question == "late shipments by region?"
    assert [s["kind"] for s in looped.spans] == ["tool", "tool", "llm"]
    first = looped.spans[0]["attributes"]
    assert first[traces.RESULT] == {"error": "no such column: is_late"}
    assert looped.result["rows"][0] == ["northeast", 41]
    assert looped.reply == "Northeast 41, southwest 29."
    text = json.dumps(looped.to_dict())
    assert "Two regions came back" not in text and "Let me look." in text

    assert asked.reply == "Counting tickets by their opening date."
    assert "2026-05" in asked.arguments["sql"] and asked.result is None
    definition = asked.spans[0]["attributes"]["gen_ai.tool.definitions"][0]
    assert definition["name"] == "run_sql" and "input_schema" in definition
    assert failed.outcome == "overloaded" and failed.tokens == (0, 0)


def test_opentelemetry_export():
    found, bad = traces.load(FIXTURES / "otel_genai.json", "otel")
    assert len(found) == 4 and not bad
    loop, structured, limited, broken = found
    # The web request and the agent's summary span are no calls and add no tokens.
    assert [s["kind"] for s in loop.spans] == ["llm", "tool", "llm"]
    assert loop.question == "How many grocers have ever bought by phone?"
    assert loop.tokens == (1180, 75) and loop.reply.startswith("36 grocers")
    assert loop.result == {"rows": [[36]], "error": None}
    assert loop.arguments["sql"].startswith("SELECT COUNT(DISTINCT customer_id)")
    assert (loop.session_id, loop.user_id) == ("u28-0701", "u28")
    assert loop.outcome == "answered" and 0 < loop.seconds < 60
    assert loop.time.startswith("2026-07-06T08:02")
    roles = [m["role"] for m in traces.to_messages(loop)]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]

    first, *_ = structured.spans[0]["attributes"][traces.INPUT]
    assert first["role"] == "system" and "Tidewater" in first["content"]
    assert structured.question == "decaf net sales last quarter?"
    assert "```sql" in structured.reply and structured.user_id == "u09"
    assert structured.session_id == "conv-0706-9"
    assert limited.outcome == "rate_limit" and limited.question.startswith("orders")
    assert broken.result == {"error": 'near "SELEC": syntax error'}
    assert broken.outcome == "tool_error"


def export(**attributes):
    """An OTLP span with these attributes, all text."""
    pairs = [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()]
    ids = {"traceId": "a" * 32, "spanId": "b" * 16, "name": "chat m"}
    times = {"startTimeUnixNano": "1783324931000000000"}
    times["endTimeUnixNano"] = "1783324932500000000"
    return ids | times | {"attributes": pairs}


def test_an_opentelemetry_trace_may_span_lines_and_lack_tool_spans(tmp_path):
    chat = [
        {"role": "user", "parts": [{"type": "text", "content": "q?"}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                {"type": "tool_call", "id": "1", "name": "f", "arguments": {"x": 1}},
            ],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "1", "response": "three"}],
        },
    ]
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "3"}]}]
    late = export(
        **{
            "gen_ai.operation.name": "chat",
            traces.INPUT: json.dumps(chat),
            traces.OUTPUT: json.dumps(said),
            "session.id": "of a later span",
        }
    )
    root = export(**{"session.id": "s9", "user.id": "u1"}) | {
        "startTimeUnixNano": "1783324930000000000"
    }
    bad = export() | {"startTimeUnixNano": "soon"}
    path = tmp_path / "export.jsonl"
    lines = [{"resourceSpans": [{"scopeSpans": [{"spans": [s]}]}]} for s in (late, bad)]
    lines.append({"resourceSpans": [{"scopeSpans": [{"spans": [root]}]}]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(traces.SkippedLines, match="line 2: invalid literal"):
        (trace,), _ = traces.load(path)
    assert trace.session_id == "s9" and trace.time == "2026-07-06T08:02:10"
    assert [s["kind"] for s in trace.spans] == ["tool", "llm"] and trace.seconds == 1.5
    assert trace.arguments == {"x": 1} and trace.result == {"text": "three"}
    assert trace.outcome == "answered" and trace.reply == "3"


def test_model_calls_without_messages_are_kept_and_told_of(tmp_path):
    silent = export(**{"gen_ai.operation.name": "chat"})
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [silent]}]}]}
    (tmp_path / "export.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="1 model calls have no messages"):
        (trace,), bad = traces.load(tmp_path / "export.json")
    assert trace.seconds == 1.5 and trace.question == "" and not bad


def test_opentelemetry_errors_by_status_alone():
    failed = export(**{"gen_ai.operation.name": "chat"})
    for code in (2, "STATUS_CODE_ERROR"):
        span = failed | {"status": {"code": code}}
        document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        (trace,) = traces.from_otel(document)
        assert trace.outcome == "_OTHER" and trace.question == ""
    assert traces.from_otel({"resourceSpans": []}) == []


def test_auto_takes_every_format_in_one_list(tmp_path):
    records = [RAW[0]]
    for name in ("openai_chat.jsonl", "anthropic_messages.jsonl"):
        records += map(json.loads, (FIXTURES / name).read_text().splitlines())
    records.append(json.loads((FIXTURES / "otel_genai.json").read_text()))
    records.append({"request": {"messages": []}, "response": {}})
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(records, indent=1))
    with pytest.warns(traces.SkippedLines, match="line 12: the record has no messages"):
        found, bad = traces.load(path)
    assert len(found) == 1 + 5 + 4 + 4 and len(bad) == 1
    with pytest.raises(ValueError, match="format should be one of"):
        traces.load(path, "csv")


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("APITimeoutError", "", "timeout"),
        ("Request timed out.", "", "timeout"),
        ("rate_limit_exceeded", "", "rate_limit"),
        ("429", "", "rate_limit"),
        ("InternalServerError", 529, "overloaded"),
        ("insufficient_quota", "", "insufficient_quota"),
        ("Something broke", "", "_OTHER"),
    ],
)
def test_error_types(name, status, word):
    assert importers.error_type(name, status) == word


def test_times():
    assert importers.timestamp("2026-07-06T11:20:31+02:00") == "2026-07-06T09:20:31"
    assert importers.timestamp("2026-07-06T11:20:31") == "2026-07-06T11:20:31"
    assert importers.timestamp(1783329631) == "2026-07-06T09:20:31"
    assert importers.timestamp(1783329631999) == "2026-07-06T09:20:31"


def test_the_kit_needs_no_openai_package():
    source = inspect.getsource(traces) + inspect.getsource(importers)
    assert "import openai" not in source and "from openai" not in source

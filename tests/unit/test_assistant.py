"""The harness: every way to fail is a named outcome, and no question is lost."""

import json

import pytest
from chat_server import completion

from utils import tidewater
from utils.evals.harness import (
    STATUSES,
    ApiModel,
    Assistant,
    ModelError,
    RecordedModel,
    Reply,
    live_model,
)
from utils.logs import record as collect
from utils.logs import traces

SQL = "Counting.\n```sql\nSELECT COUNT(*) FROM tickets;\n```"
BROKEN = "```sql\nSELECT total FROM nowhere\n```"


@pytest.fixture
def tool(pool):
    return tidewater.SqlTool(pool)


def api(server, **settings):
    settings = {"model": "m", "api_key": "k", "max_retries": 0} | settings
    return ApiModel(base_url=server.url, **settings)


def test_an_answer_over_http_becomes_a_trace(chat_server, tool):
    chat_server.script = [SQL]
    trace = Assistant(api(chat_server), "the prompt", tool).ask("How many tickets?")
    assert trace.status == "answered"
    assert trace.question == "How many tickets?"
    assert trace.result == {"rows": [[1400]], "error": None}
    assert trace.tokens == (11, 7)
    assert trace.seconds > 0
    assert [s["kind"] for s in trace.spans] == ["llm", "tool"]
    (asked,) = chat_server.requests
    assert [m["role"] for m in asked["messages"]] == ["system", "user"]
    assert asked["messages"][0]["content"] == "the prompt"
    assert chat_server.keys == ["Bearer k"]


def test_model_url_and_key_come_from_the_environment(chat_server, tool, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    monkeypatch.setenv("MODEL", "env-model")
    trace = Assistant(ApiModel(), "p", tool).ask("hi")
    assert trace.status == "no_query"
    assert chat_server.requests[0]["model"] == "env-model"
    assert chat_server.keys == ["Bearer from-env"]


def test_one_repair_turn_shows_the_model_its_error(chat_server, tool):
    chat_server.script = [BROKEN, SQL]
    trace = Assistant(api(chat_server), "p", tool).ask("How many tickets?")
    assert trace.status == "answered"
    assert [s["kind"] for s in trace.spans] == ["llm", "tool", "llm", "tool"]
    assert "no such table" in chat_server.requests[1]["messages"][-1]["content"]
    assert trace.tokens == (22, 14)
    # The first span keeps the messages that it saw.
    assert len(trace.spans[0]["attributes"]["gen_ai.input.messages"]) == 1


def test_repairs_end(chat_server, tool):
    chat_server.script = [BROKEN]
    trace = Assistant(api(chat_server), "p", tool).ask("q")
    assert trace.status == "tool_error"
    assert len(chat_server.requests) == 2
    assert Assistant(api(chat_server), "p", tool, repairs=0).ask("q").spans[2:] == []


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "bad_request"),
        (400, "bad_request"),
        (429, "rate_limit"),
        (500, "overloaded"),
        (503, "overloaded"),
        (2.0, "timeout"),
        ("", "empty_reply"),
        ("   \n", "empty_reply"),
        (completion(None), "empty_reply"),
        ("no query here", "no_query"),
        ("```python\nprint()\n```", "no_query"),
        (completion("```sql\nSELECT 1", finish_reason="length"), "truncated"),
        (b"<html>502</html>", "bad_response"),
        ({"choices": []}, "bad_response"),
        ({"detail": "what?"}, "bad_response"),
    ],
)
def test_each_failure_has_a_name(chat_server, tool, script, outcome):
    chat_server.script = [script]
    trace = Assistant(api(chat_server, timeout=0.5), "p", tool).ask("the question")
    assert trace.status == outcome
    assert outcome in STATUSES
    assert trace.question == "the question"
    assert traces.Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_no_key_no_model_no_server(tool):
    def outcome(model):
        trace = Assistant(model, "p", tool).ask("q")
        return trace.status, trace.spans[0]["attributes"]["error.message"]

    name, message = outcome(ApiModel(model="m"))
    assert name == "missing_key" and "OPENAI_API_KEY" in message
    name, message = outcome(ApiModel(api_key="k"))
    assert name == "missing_model" and "MODEL" in message
    closed = ApiModel("m", "http://127.0.0.1:9/v1", "k", timeout=2, max_retries=0)
    name, message = outcome(closed)
    assert name == "unreachable" and "OPENAI_BASE_URL" in message
    name, message = outcome(ApiModel("m", "no url at all", "k", max_retries=0))
    assert name in ("unreachable", "bad_response") and message


def test_live_model_needs_both_a_key_and_a_model(monkeypatch):
    assert live_model() is None
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert live_model() is None  # a developer's key alone must not be billed
    monkeypatch.setenv("MODEL", "m")
    assert live_model().name == "m"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert live_model() is None  # MODEL alone may be meant for something else
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not"):
        live_model()


def test_a_model_can_pose_as_an_openai_client(tmp_path):
    client = collect.as_client(lambda messages: Reply(f"to {messages[-1]}", 5, 2))
    client = collect.record(client, tmp_path / "log.jsonl", user_id="u")
    asked = [{"role": "user", "content": "hi"}]
    response = client.chat.completions.create(model="m", messages=asked)
    assert response.choices[0].message.content == f"to {asked[-1]}"
    (trace,), bad = traces.read(tmp_path / "log.jsonl")
    assert (trace.question, trace.tokens, trace.user_id) == ("hi", (5, 2), "u")
    assert not bad


def test_the_sdk_retries_after_a_429(chat_server, tool):
    chat_server.script = [429, SQL]
    trace = Assistant(api(chat_server, max_retries=1), "p", tool).ask("q")
    assert trace.status == "answered"
    assert len(chat_server.requests) == 2


def test_cached_tokens_and_missing_usage_are_kept_as_told(chat_server, tool):
    told = completion(SQL, prompt_tokens_details={"cached_tokens": 8})
    untold = completion(SQL) | {"usage": None}
    chat_server.script = [told, untold]
    assistant = Assistant(api(chat_server), "p", tool)
    first, second = assistant.ask("q"), assistant.ask("q")
    key = "gen_ai.usage.cache_read.input_tokens"
    assert first.spans[0]["attributes"][key] == 8
    assert "gen_ai.usage.input_tokens" not in second.spans[0]["attributes"]
    assert second.tokens == (0, 0)


def test_a_breaking_model_or_tool_loses_nothing(tool):
    def broken(messages):
        raise ZeroDivisionError("oops")

    trace = Assistant(broken, "p", tool).ask("q")
    assert trace.status == "model_error"
    assert "oops" in trace.spans[0]["attributes"]["error.message"]

    class Bad(tidewater.SqlTool):
        def run(self, arguments):
            raise RuntimeError("disk gone")

    model = RecordedModel({"q": Reply(SQL, 1, 1)}, "p")
    trace = Assistant(model, "p", Bad(tool.pool), repairs=0).ask("q")
    assert trace.status == "tool_error"
    assert "disk gone" in trace.result["error"]


@pytest.mark.parametrize("answer", [None, "text", Reply(None), Reply("x", 1), 3])
def test_a_model_that_returns_nonsense_is_a_named_outcome(tool, answer, tmp_path):
    assistant = Assistant(lambda m: answer, "p", tool, log=tmp_path / "log.jsonl")
    outcome = assistant.ask("q").status
    assert outcome == ("no_query" if answer == Reply("x", 1) else "model_error")


def test_a_tool_that_breaks_or_returns_nonsense_loses_nothing(tool, tmp_path):
    class Odd(tidewater.SqlTool):
        extracted, ran = {"sql": "SELECT 1"}, {"error": None}

        def extract(self, reply):
            if isinstance(self.extracted, Exception):
                raise self.extracted
            return self.extracted

        def run(self, arguments):
            return self.ran

    def outcome(**how):
        odd = type("Odd", (Odd,), how)(tool.pool)
        log = tmp_path / "log.jsonl"
        trace = Assistant(lambda m: Reply("x"), "p", odd, log=log).ask("q")
        assert traces.read(log)[0][-1].to_dict() == trace.to_dict()
        return trace.status

    assert outcome() == "answered"
    assert outcome(extracted=ValueError("no JSON")) == "bad_call"
    assert outcome(extracted=["a list"]) == "bad_call"
    assert outcome(ran=None) == "tool_error"
    assert outcome(ran={"error": None, "rows": [[float("inf")]]}) == "tool_error"
    assert outcome(ran={"error": None, "rows": [[b"blob"]]}) == "answered"


@pytest.mark.parametrize(
    ("value", "shown"), [("x'ff'", "ff"), ("9e999", "inf"), ("NULL", None)]
)
def test_what_json_lacks_reaches_the_log_as_text(tool, tmp_path, value, shown):
    model = RecordedModel({"q": Reply(f"```sql\nSELECT {value}\n```")}, "p")
    trace = Assistant(model, "p", tool, log=tmp_path / "log.jsonl").ask("q")
    assert trace.result == {"rows": [[shown]], "error": None}
    assert json.loads((tmp_path / "log.jsonl").read_text()) == trace.to_dict()


@pytest.mark.parametrize("question", ["", "  ", None, 3])
def test_a_question_is_a_text(tool, question):
    with pytest.raises(ValueError, match="ask a question"):
        Assistant(lambda m: Reply("x"), "p", tool).ask(question)


def test_a_recording_knows_its_questions_and_its_prompt(pool):
    model = tidewater.recorded_model("launch")
    asked = [{"role": "system", "content": tidewater.load_prompt("launch")}]
    case = tidewater.load_cases(n=1)[0]
    reply = model([*asked, {"role": "user", "content": case["question"]}])
    assert "```sql" in reply.text and reply.seconds is None
    for messages in (
        [*asked, {"role": "user", "content": "never asked"}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
    ):
        with pytest.raises(ModelError) as caught:
            model(messages)
        assert caught.value.status == "not_recorded"


def test_ask_all_keeps_order_and_logs_every_trace(chat_server, tool, tmp_path):
    chat_server.script = [0.01, SQL]
    log = tmp_path / "log.jsonl"
    assistant = Assistant(api(chat_server), "p", tool, log=log)
    questions = [f"question {i}" for i in range(12)]
    answered = assistant.ask_all(questions, workers=4)
    assert [trace.question for trace in answered] == questions
    kept, bad = traces.read(log)
    assert sorted(t.question for t in kept) == sorted(questions) and not bad


@pytest.mark.parametrize(
    ("reply", "sql"),
    [
        ("```sql\nSELECT 1;\n```", "SELECT 1"),
        ("```SQL\nSELECT 1\n```", "SELECT 1"),
        ("```sql\r\nSELECT 1\r\n```", "SELECT 1"),
        ("```sqlite\nSELECT 1 ; \n``` as asked", "SELECT 1"),
        ("first\n```sql\nSELECT 1\n```\nbetter\n```sql\nSELECT 2\n```", "SELECT 2"),
        ("SELECT 1", None),
        ("```\nSELECT 1\n```", None),
        ("```sql\nSELECT 1", None),
        # A tuned model sends the query and nothing else.
        ("select 1 from customers", "select 1 from customers"),
        (
            " WITH a AS (SELECT 1) SELECT 2 FROM a ",
            "WITH a AS (SELECT 1) SELECT 2 FROM a",
        ),
        ("Select a region from the list.\nThen ask again.", None),
        ("You could select it from customers", None),
    ],
)
def test_the_query_is_the_last_fenced_block(reply, sql):
    assert tidewater.extract_sql(reply) == sql


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="caveman"):
        tidewater.load_prompt("shout")
    with pytest.raises(ValueError, match="practice"):
        tidewater.load_cases("train")

"""The harness: every way to fail is a named status, and no question is lost."""

import json

import openai
import pytest
from chat_server import completion

from utils import tidewater
from utils.evals import harness
from utils.evals.harness import ApiModel, Assistant, live_model
from utils.evals.types import ModelError, Reply
from utils.logs import traces

SQL = "Counting.\n```sql\nSELECT COUNT(*) FROM tickets;\n```"
BROKEN = "```sql\nSELECT total FROM nowhere\n```"
USER = [{"role": "user", "content": "q"}]


@pytest.fixture
def tool(pool):
    return tidewater.SqlTool(pool)


def api(server, **settings):
    settings = {"model": "m", "api_key": "k", "max_retries": 0} | settings
    return ApiModel(base_url=server.url, **settings)


def test_an_answer_over_http_becomes_a_trace(chat_server, tool):
    cached = completion(SQL, prompt_tokens_details={"cached_tokens": 8})
    chat_server.script = [cached, completion(SQL) | {"usage": None}]
    assistant = Assistant(api(chat_server), "the prompt", tool)
    trace, untold = assistant.ask("How many tickets?"), assistant.ask("q")
    assert (trace.status, trace.question) == ("answered", "How many tickets?")
    assert trace.result == {"rows": [[1400]], "error": None}
    assert [s["kind"] for s in trace.spans] == ["llm", "tool"] and trace.seconds > 0
    messages = chat_server.requests[0]["messages"]
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[0]["content"] == "the prompt"
    assert trace.tokens == (11, 7) and untold.tokens == (0, 0)
    key = "gen_ai.usage.cache_read.input_tokens"
    assert trace.spans[0]["attributes"][key] == 8
    assert "gen_ai.usage.input_tokens" not in untold.spans[0]["attributes"]


def test_a_retry_shows_the_model_its_error(chat_server, tool):
    chat_server.script = [BROKEN, SQL, BROKEN]
    assistant = Assistant(api(chat_server), "p", tool)
    trace = assistant.ask("How many tickets?")
    assert trace.status == "answered"
    assert [s["kind"] for s in trace.spans] == ["llm", "tool", "llm", "tool"]
    assert "no such table" in chat_server.requests[1]["messages"][-1]["content"]
    assert trace.tokens == (22, 14)
    # The first span keeps the messages that it saw.
    assert len(trace.spans[0]["attributes"]["gen_ai.input.messages"]) == 1
    assert assistant.ask("q").status == "tool_error"
    assert len(chat_server.requests) == 4  # one retry and no more


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (401, "model_error"),
        (404, "model_error"),
        (429, "rate_limit"),
        (500, "overloaded"),
        (10.0, "timeout"),
        ("", "no_answer"),
        (completion(None), "no_answer"),
        ("```python\nprint()\n```", "no_answer"),
        (completion("```sql\nSELECT 1", finish_reason="length"), "truncated"),
        (b"<html>502</html>", "model_error"),
        ({"choices": []}, "model_error"),
    ],
)
def test_each_failure_has_a_name(chat_server, tool, script, status):
    chat_server.script = [script]
    timeout = 0.5 if script == 10.0 else 60
    trace = Assistant(api(chat_server, timeout=timeout), "p", tool).ask("the question")
    assert (trace.status, trace.question) == (status, "the question")
    assert status in harness.STATUSES
    assert traces.Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_no_key_no_server(tool):
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        ApiModel(model="m")
    closed = ApiModel("m", "http://127.0.0.1:9/v1", "k", max_retries=0)
    trace = Assistant(closed, "p", tool).ask("q")
    assert trace.status == "unreachable"
    assert "127.0.0.1:9" in trace.spans[0]["attributes"]["error.message"]


def test_a_server_on_this_machine_is_asked_without_the_proxy(chat_server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for host in ("127.0.0.1", "localhost"):
        url = chat_server.url.replace("127.0.0.1", host)
        assert ApiModel("m", url, "k", max_retries=0)(USER).text == "hello"


def test_live_model_needs_both_a_key_and_a_model(chat_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    assert live_model() is None  # a developer's key alone must not be billed
    monkeypatch.setenv("MODEL", "env-model")
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    assert live_model()(USER).text == "hello"
    assert chat_server.requests[0]["model"] == "env-model"
    assert chat_server.keys == ["Bearer from-env"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not"):
        live_model()
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert live_model() is None  # MODEL alone may be meant for something else


@pytest.mark.parametrize(
    ("model", "extract", "run", "status"),
    [
        (lambda messages: 1 / 0, dict, dict, "model_error"),
        (lambda messages: "a text", dict, dict, "model_error"),
        (None, lambda reply: json.loads("{"), dict, "no_answer"),
        (None, dict, lambda call: 1 / 0, "tool_error"),
        (None, dict, lambda call: {"rows": [[float("inf")]]}, "tool_error"),
        (None, dict, lambda call: {"error": None, "rows": [[b"x"]]}, "answered"),
    ],
)
def test_what_breaks_or_returns_nonsense_loses_nothing(
    tool, monkeypatch, tmp_path, model, extract, run, status
):
    monkeypatch.setattr(tool, "extract", extract)
    monkeypatch.setattr(tool, "run", run)
    model = model or (lambda messages: Reply(""))
    trace = Assistant(model, "p", tool, max_retries=0).ask("q")
    assert (trace.status, trace.question) == (status, "q")
    traces.append(tmp_path / "log.jsonl", trace)
    assert traces.read(tmp_path / "log.jsonl")[0] == [trace]


def test_a_recording_knows_its_questions_and_its_prompt(tool):
    model = tidewater.recorded_model("launch")
    prompt = tidewater.load_prompt("launch")
    question = tidewater.load_cases(n=1)[0]["question"]
    system = {"role": "system", "content": prompt}
    asked = {"role": "user", "content": question}
    assert "```sql" in model([system, asked]).text
    for other in ([system, *USER], [system | {"content": "another"}, asked]):
        with pytest.raises(ModelError) as caught:
            model(other)
        assert caught.value.status == "not_recorded"


def test_paid_replies_are_logged_resumed_and_replayed(chat_server, tool, tmp_path):
    log, questions = tmp_path / "live" / "log.jsonl", ["a", "b", "a", "c"]
    chat_server.script = [SQL, 500, "small talk", BROKEN, SQL]
    assistant = Assistant(api(chat_server), "p", tool, "v1")
    first = assistant.ask_all(questions, workers=1, log=log)
    told = ["answered", "overloaded", "no_answer", "answered"]
    assert [trace.status for trace in first] == told
    again = assistant.ask_all([*questions, "d"], workers=1, log=log)
    assert [*again[:1], *again[2:4]] == [*first[:1], *first[2:]]
    # Asked again are the one without a reply and the new one; then all, by others.
    assert len(chat_server.requests) == 5 + 2
    for prompt, name in [("another prompt", "m"), ("p", "n")]:
        changed = Assistant(api(chat_server, model=name), prompt, tool, "v1")
        changed.ask_all("a", log=log)
    assert len(chat_server.requests) == 5 + 2 + 2


@pytest.mark.parametrize(
    ("reply", "sql"),
    [
        ("```SQL\r\nSELECT 1 ; \r\n``` as asked", "SELECT 1"),
        ("first\n```sql\nSELECT 1\n```\nbetter\n```sql\nSELECT 2\n```", "SELECT 2"),
        ("```\nSELECT 1\n```", None),
        ("```sql\nSELECT 1", None),
        # A tuned model sends the query and nothing else.
        (" select 1 from customers", "select 1 from customers"),
        ("Select a region from the list.\nThen ask again.", None),
        ("You could select it from customers", None),
    ],
)
def test_the_query_is_the_last_fenced_block(reply, sql):
    assert tidewater.extract_sql(reply) == sql

"""A served model: the file, the protocol, its limits, overload, and lost engines."""

import asyncio
import concurrent.futures
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import gguf
import modal
import numpy as np
import openai
import pytest
import torch
from aiohttp import ClientError
from aiohttp.test_utils import TestClient, TestServer
from modal_proto import api_pb2
from repository import ROOT
from standin import Standin
from transformers import LlamaConfig, LlamaForCausalLM

from utils import course, remote, tidewater
from utils.serving import engine, export, server
from utils.serving.__main__ import find_model
from utils.serving.load import (
    RequestResult,
    judge,
    load,
    summary,
)
from utils.training import weights

ADAPTER = course.SHIPPED / "06_rl_seed_0" / "adapter"
QUESTION = tidewater.load_cases("eval", 1)[0]["question"]
CHAT = {
    "model": "tidewater",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0.0,
    "max_tokens": 40,
}
LATE = 120  # seconds that a busy machine may take to notice something
ROOM = {"slots": 2, "waiting": 4, "max_tokens": 150}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def behind_a_proxy():
    """Everything here works where HTTP_PROXY leads to a port at which nobody is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.delenv("NO_PROXY", raising=False)
        patch.delenv("no_proxy", raising=False)
        yield


@pytest.fixture(scope="module")
def exported():
    return export.to_gguf(adapter=ADAPTER, quantization="F32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file with random weights, the laptop's tokenizer, and answers at once."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        # The base model is the reader's own; what is made of this one goes.
        laptop = weights.fetch(weights.LAPTOP)
        patch.setenv("BENEATH_CACHE", str(folder / "cache"))
        tokenizer = weights.load_tokenizer(str(laptop))
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(
            vocab_size=49152,
            **sizes,
            **heads,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            initializer_range=0.2,  # or every reply would be much the same
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        return find_model(folder / "model", "", "F32")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log.jsonl"


@pytest.fixture(scope="module")
def url(tiny, log):
    with server.serve(tiny, api_key="secret", engines=2, log=log, **ROOM) as address:
        yield address


@contextlib.contextmanager
def client_of(url, retries=0):
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=url, api_key="secret", http_client=http, max_retries=retries
    ) as one:
        yield one


@pytest.fixture
def client(url):
    with client_of(url) as one:
        yield one


def chat(client, **more):
    return client.chat.completions.create(**CHAT | more)


def ask(url, body=None, key="secret", **headers):
    """Send bytes, past any proxy; return status (0: nobody is there) and text."""
    headers = {name.replace("_", "-"): one for name, one in headers.items()}
    headers |= {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=LATE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def eventually(holds):
    late = time.monotonic() + LATE
    while not holds() and time.monotonic() < late:
        time.sleep(0.02)
    return holds()


def metric(url, name):
    lines = ask(url.replace("/v1", "/metrics"))[1].splitlines()
    (line,) = (one for one in lines if one.startswith(name))
    return float(line.split()[-1])


def test_the_file_holds_the_merged_weights_and_is_made_once(exported):
    model, _ = weights.load(adapter=ADAPTER, dtype="float32")
    found = {t.name: t for t in gguf.GGUFReader(exported).tensors}
    ours = model.state_dict()
    assert len(found) == len(ours) - 1  # the head is that of the embeddings
    table = ours["model.embed_tokens.weight"].numpy()
    assert np.array_equal(found["token_embd.weight"].data, table)
    # A head's rows lie in pairs there: 0, 32, 1, 33 and so on.
    rows = np.arange(64).reshape(2, 32).T.ravel()
    wanted = ours["model.layers.3.self_attn.k_proj.weight"].numpy()[rows]
    assert np.array_equal(found["blk.3.attn_k.weight"].data[:64], wanted)
    before = exported.stat().st_mtime_ns
    assert export.to_gguf(adapter=ADAPTER, quantization="F32") == exported
    assert exported.stat().st_mtime_ns == before
    other = course.SHIPPED / "06_rl_seed_1" / "adapter"
    assert export.to_gguf(adapter=other) != export.to_gguf(adapter=ADAPTER)


def test_replies_are_those_of_the_model(exported):
    model, tokenizer = weights.load(adapter=ADAPTER, dtype="float32")
    prompt = weights.prompt_ids(tokenizer, CHAT["messages"])
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(prompt) :]
    text = tokenizer.decode(out, skip_special_tokens=True)
    with (
        server.serve(exported, api_key="secret", engines=1) as url,
        client_of(url) as client,
    ):
        reply = chat(client, max_tokens=20)
        # An empty system prompt, which the model never saw, changes nothing; a real
        # one is read.
        for system, same in (("", True), ("  \n", True), ("Say hi.", False)):
            messages = [{"role": "system", "content": system}, *CHAT["messages"]]
            tokens = chat(client, messages=messages, max_tokens=1).usage.prompt_tokens
            assert (tokens == len(prompt)) is same
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(out) == 20


def test_the_sdk_finds_what_it_knows_from_openai(client, tiny):
    whole = chat(client)
    (choice,) = whole.choices
    assert choice.finish_reason == "length" and whole.usage.completion_tokens == 40
    assert whole.model == "tidewater"
    assert whole.system_fingerprint == "fp_" + server.sha256(tiny)[:12]
    # The same in pieces; usage comes where it is asked for, and without choices.
    events = list(chat(client, stream=True))
    pieces = [event.choices[0].delta.content or "" for event in events]
    assert "".join(pieces) == choice.message.content
    assert not any(event.usage for event in events)
    events = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert events[-1].usage.completion_tokens == 40 and not events[-1].choices
    # Log-probabilities, in a stream too.
    how = {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    tokens = chat(client, **how).choices[0].logprobs.content
    assert len(tokens) == 3 and all(one.logprob < 0 for one in tokens)
    assert tokens[0].logprob == max(one.logprob for one in tokens[0].top_logprobs)
    found = [e.choices[0].logprobs for e in chat(client, stream=True, **how)]
    same = [one.content[0].logprob for one in found if one and one.content]
    assert same == pytest.approx([one.logprob for one in tokens], abs=1e-4)
    # Stops, seeds, limits.
    text = choice.message.content
    stopped = chat(client, stop=[text[5:12]]).choices[0]
    assert stopped.message.content == text[:5] and stopped.finish_reason == "stop"
    hot = {"temperature": 1.0, "max_tokens": 8}
    texts = [chat(client, seed=s, **hot).choices[0].message.content for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    several = chat(client, n=3, seed=1, **hot)
    assert [one.index for one in several.choices] == [0, 1, 2]
    assert [one.message.content for one in several.choices[:2]] == texts[1:]
    assert several.usage.completion_tokens == 24  # all are counted
    # Models, and an id that goes through to the log.
    assert [one.id for one in client.models.list()] == ["tidewater"]
    assert client.models.retrieve("tidewater").id == "tidewater"
    named = client.with_options(default_headers={"X-Request-Id": "trace-7"})
    assert chat(named, max_tokens=1)._request_id == "trace-7"


def test_other_forms_of_a_conversation_are_read(client):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "How many"}, {"type": "text", "text": "orders?"}]
    asked = [{"role": "user", "content": parts}]
    called = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    called += [{"role": "tool", "tool_call_id": "c", "content": "7"}]
    for more in ([], called, [{"role": "developer", "content": "Be brief."}]):
        assert chat(client, messages=asked + more, max_tokens=2).choices
    # What an SDK puts into a message that it got, and what changes no reply.
    history = chat(client, max_tokens=2).choices[0].message.model_dump()
    again = [*CHAT["messages"], history, *CHAT["messages"]]
    assert chat(client, messages=again, max_tokens=2, user="u", store=False).choices
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    form = {"name": "count", "schema": schema | {"required": ["n"]}}
    form = {"type": "json_schema", "json_schema": form}
    assert chat(client, response_format=form).choices[0].message.content[0] == "{"


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def wants(schema):
    named = {"name": "a", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def says(content, role="user"):
    return {"messages": [{"role": role, "content": content}]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
REFUSED = {  # what is changed, the status, and a word of the message
    "no model of the name": ({"model": "gpt-99"}, 404, "gpt-99"),
    "no messages": ({"messages": []}, 400, "messages"),
    "no user": (says("Be brief.", "system"), 400, "no question"),
    "an image": (says([{"type": "text", "text": "What?"}, IMAGE]), 400, "text"),
    "half a character": (says("\ud800"), 400, ""),
    "too long for the context": (says("word " * 1000), 400, "1,010 tokens"),
    "far too long": (says("word " * 20_000), 400, "characters"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools"),
    "a tool that must be called": ({"tool_choice": "required"}, 400, "tool_choice"),
    "a text for a number": ({"temperature": "0.5"}, 400, "temperature"),
    "too many choices": ({"n": 5}, 400, "n:"),
    "choices in a stream": ({"n": 2, "stream": True}, 400, "stream"),
    "too many stops": ({"stop": ["a"] * 5}, 400, "stop"),
    "a long stop": ({"stop": "a" * 65}, 400, "stop"),
    "llama.cpp's limit": ({"n_predict": 10**6}, 400, "n_predict"),
    "llama.cpp's grammar": ({"grammar": "root ::= " + "(" * 60_000}, 400, "grammar"),
    "llama.cpp's schema": ({"json_schema": {"type": "string"}}, 400, "json_schema"),
    "a deep schema": (wants(deep(9)), 400, "levels"),
    "a large schema": (wants({"enum": ["a" * 4000]}), 400, "characters"),
    "repeats": (wants(deep(1) | {"minItems": 10**6}), 400, "minItems"),
    "a schema of itself": (wants({"$ref": "#"}), 400, "$ref"),
    "a pattern": (wants({"type": "string", "pattern": "^(a*)*$"}), 400, "pattern"),
    "no schema at all": (wants({"type": "array", "minItems": [1]}), 400, "schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_its_name(url, name):
    change, wanted, word = REFUSED[name]
    status, text = ask(url + "/chat/completions", json.dumps(CHAT | change).encode())
    error = json.loads(text)["error"]
    assert status == wanted and word in error["message"], text
    assert error["type"] and error.keys() == {"message", "type", "param", "code"}


def test_broken_requests_leave_the_server_well(url, client):
    questions = url + "/chat/completions"
    nested = b'{"a":' * 60_000 + b"1" + b"}" * 60_000
    infinite = json.dumps(CHAT | {"temperature": float("inf")}).encode()
    for body, wanted in (
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (nested[:200_000], 400),
        (infinite, 400),
        (b" " * (2 << 20), 413),
    ):
        assert ask(questions, body)[0] == wanted
    bomb = gzip.compress(b" " * (64 << 20))
    assert ask(questions, bomb, Content_Encoding="gzip")[0] in (400, 413)
    assert ask(questions, b"{}", key="guessed")[0] == 401
    assert ask(questions, b"{}", key="ä")[0] == 401
    for path in ("/embeddings", "/completions", "/../slots", "/models/other"):
        assert ask(url + path)[0] == 404
    assert ask(questions)[0] == 405
    root = url.removesuffix("/v1")
    assert ask(root + "/slots")[0] == 404  # others' questions
    assert ask(root + "/health", key="")[0] == 200
    # Text that is hard to cut into tokens: 16,000 characters, and none ends an engine.
    for one in ("a", " ", "\n", "1", "é", "\u4e00", "\U0001f600", "'s", "\u0301"):
        text = json.dumps(CHAT | says("?" + one * (16_000 // len(one)))).encode()
        assert ask(questions, text)[0] in (200, 400), one  # blanks are few tokens
    assert chat(client, max_tokens=5).choices[0].message.content
    assert metric(url, "serving_engine_restarts_total") == 0


def test_whatever_is_asked_the_servers_limit_stays(client):
    for name in ("max_tokens", "max_completion_tokens"):
        asked = {"max_tokens": openai.omit} | {name: 10**9}
        assert chat(client, **asked).usage.completion_tokens == 150
    assert chat(client, max_tokens=openai.omit).usage.completion_tokens == 150


def test_the_log_has_a_line_a_request_and_no_question(log, client):
    named = client.with_options(default_headers={"X-Request-Id": "trace-8"})
    chat(named, messages=[{"role": "user", "content": "What is secret-42?"}])
    assert eventually(lambda: '"trace-8"' in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["event"] == "serving" and len(lines[0]["engines"]) == 2
    (mine,) = (line for line in lines if line.get("id") == "trace-8")
    assert mine["status"] == 200 and mine["tokens"] == 40 and mine["seconds"] > 0
    assert "secret" not in log.read_text()


def test_over_the_edge_some_are_refused_at_once_and_told_when(tiny):
    crowd = [f"How many orders in {month} 2026?" for month in ("May", "June")] * 10
    long = {"api_key": "secret", "temperature": 0.0, "max_tokens": 900}
    room = {"slots": 1, "waiting": 4, "max_tokens": 900, "engines": 1}
    with server.serve(tiny, api_key="secret", **room) as url:
        rows = load(url, crowd, len(crowd), **long)
        # The SDK waits as long as it is told; its two retries are enough.
        patient = load(url, crowd[:10], 10, retries=2, **long)
    assert {row.status for row in rows} == {200, 429}
    assert sum(row.status == 200 for row in rows) >= 5  # one at once, four may wait
    assert all(row.tokens == 900 for row in rows if row.status == 200)
    told = summary(rows)
    assert told["errors"] == 0 and told["answered"] + told["refused"] == len(crowd)
    assert sum(row.status == 200 for row in patient) >= 8


def test_who_is_refused_is_told_when_there_will_be_room(tiny):
    gate = server.Gate(server.Settings(str(tiny), "tidewater", engines=2, slots=2))
    gate.seconds = 2.0  # an answer; so a place every half second
    told = [int(gate._refusal().headers["Retry-After"]) for _ in range(6)]
    assert told == [1, 1, 2, 2, 3, 3]


def test_a_slow_machine_has_a_shorter_queue(tiny):
    async def check():
        async with gate_of(tiny, slots=1, engines=1, waiting=16) as client:
            client.gate.seconds, client.gate.inside = 20.0, 2
            assert (await post(client, max_tokens=2))[0] == 429  # it would wait 40 s
            client.gate.inside = 0
            assert (await post(client, max_tokens=2))[0] == 200

    asyncio.run(check())


def test_who_hangs_up_frees_the_server(url, client, log):
    stream = chat(client, stream=True, max_tokens=150)
    next(iter(stream))
    stream.close()
    assert eventually(lambda: metric(url, "serving_answering") == 0)
    assert metric(url, "serving_waiting") == 0
    assert eventually(lambda: json.loads(log.read_text().splitlines()[-1])["status"])


# With the gate in this process, whose waits can be made short.


@contextlib.asynccontextmanager
async def gate_of(tiny, **more):
    settings = ROOM | {"engines": 2, "max_tokens": 3000, "context": 4096} | more
    gate = server.Gate(server.Settings(str(tiny), "tidewater", **settings))
    async with TestClient(TestServer(gate.app(), handler_cancellation=True)) as client:
        client.gate = gate
        yield client


async def post(client, **more):
    """Return a status, and the text or what broke."""
    body = CHAT | {"max_tokens": 3000} | more
    async with client.post("/v1/chat/completions", json=body) as answer:
        return answer.status, await answer.text()


async def until(holds):
    async with asyncio.timeout(LATE):
        while not holds():
            await asyncio.sleep(0.02)


def test_who_hangs_up_in_mid_answer_leaves_one_line_and_no_traceback(
    tiny, caplog, capsys
):
    async def broken(payload, request):
        yield {"choices": [{"delta": {"content": "SELECT"}}]}
        request.transport.close()  # as it is after a write to a client that is gone
        yield {"choices": [{"delta": {"content": " 1"}}]}

    async def check():
        async with gate_of(tiny, engines=1) as client:
            client.gate._ask = broken
            with contextlib.suppress(ClientError):
                await post(client, stream=True)
            await until(lambda: client.gate.counts)
            assert client.gate.inside == 0

    capsys.readouterr()
    asyncio.run(check())
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["status"] for line in lines if "status" in line] == [499]
    assert not caplog.records and not err  # aiohttp would tell by its logger


def test_an_engine_that_is_killed_loses_no_request(tiny):
    async def check():
        async with gate_of(tiny) as client:
            gate = client.gate
            whole = [asyncio.create_task(post(client)) for _ in range(6)]
            await until(lambda: all(e.in_flight == 2 for e in gate.engines))
            first = gate.engines[0]
            first.process.kill()
            answers = await asyncio.gather(*whole)
            await until(lambda: all(gate.engines))
            assert gate.engines[0] is not first and gate.restarts == 1
            # A stream of which half is out cannot begin again; it says so.
            streams = [asyncio.create_task(post(client, stream=True)) for _ in "12"]
            await until(lambda: sum(e.in_flight for e in gate.engines) == 2)
            await asyncio.sleep(0.3)
            gate.engines[0].process.kill()
            ends = [
                text.strip().splitlines()[-1]
                for _, text in await asyncio.gather(*streams)
            ]
            assert (await post(client, max_tokens=2))[0] == 200
            assert gate.inside == 0
            return answers, ends

    answers, ends = asyncio.run(check())
    assert [status for status, _ in answers] == [200] * 6
    broken = [end for end in ends if end != "data: [DONE]"]
    assert len(broken) <= 1 and all("in mid-answer" in end for end in broken)


def test_an_engine_that_hangs_is_replaced(tiny, monkeypatch):
    monkeypatch.setattr(engine, "HUNG", 2.0)
    monkeypatch.setattr(engine, "LOOK", 0.2)

    async def check():
        async with gate_of(tiny, engines=1) as client:
            asked = asyncio.create_task(post(client))
            await until(lambda: client.gate.engines[0].in_flight == 1)
            os.kill(client.gate.engines[0].process.pid, signal.SIGSTOP)
            assert (await asked)[0] == 200
            assert client.gate.restarts == 1

    asyncio.run(check())


def test_slow_senders_and_slow_readers_hold_no_place(tiny, monkeypatch):
    monkeypatch.setattr(server, "UPLOAD", 1.0)
    monkeypatch.setattr(server, "DRAIN", 1.0)

    async def check():
        async with gate_of(tiny, slots=1, engines=1, waiting=0) as client:
            gate, port = client.gate, client.server.port
            slow = []
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
                writer.write(b"Content-Length: 100\r\n\r\n{")
                slow.append((reader, writer))
            assert (await post(client, max_tokens=2))[0] == 200
            heads = [(await reader.readline()).split()[1] for reader, _ in slow]
            assert heads == [b"408"] * 20
            # Answers of half a megabyte that nobody reads.
            many = {"logprobs": True, "top_logprobs": 20, "max_tokens": 400}
            for stream in (True, False):
                body = json.dumps(CHAT | many | {"stream": stream}).encode()
                one = socket.create_connection(("127.0.0.1", port))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                head = f"Content-Length: {len(body)}\r\n\r\n".encode()
                one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
                one.sendall(head + body)
                await until(lambda: gate.inside)
                await until(lambda: not gate.inside)
                assert (await post(client, max_tokens=2))[0] == 200
                slow.append((None, one))
            for _, one in slow:
                one.close()

    asyncio.run(check())


def test_no_engine_is_a_503(tiny):
    async def check():
        async with gate_of(tiny, engines=1) as client:
            engines, client.gate.engines = client.gate.engines, [None]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(server, "WAIT", 0.2)
                status, _ = await post(client, max_tokens=2)
                health = await client.get("/health")
            client.gate.engines = engines
            return status, health.status

    assert asyncio.run(check()) == (503, 503)


# The command.


@contextlib.contextmanager
def command(*words, **more):
    """Start the command; yields its process and the address that it tells."""
    full = [sys.executable, "-m", "utils.serving", *map(str, words), "--port", "0"]
    with subprocess.Popen(full, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def test_an_orderly_stop_finishes_what_is_under_way(tiny, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("first\nsecret\n")
    words = [tiny, "--name", "tidewater", "--key-file", keys, "--engines", 1]
    words += ["--max-tokens", 3000, "--context", 4096]
    with (
        command(*words) as (process, url),
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        body = json.dumps(CHAT | {"max_tokens": 3000}).encode()
        asked = threads.submit(ask, url + "/chat/completions", body, "first")
        assert eventually(lambda: metric(url, "serving_answering") == 1)
        process.send_signal(signal.SIGTERM)
        status, text = asked.result()
        assert status == 200
        assert json.loads(text)["usage"]["completion_tokens"] > 200
        assert process.wait(LATE) == 0
        assert ask(url + "/models")[0] == 0


def test_a_server_that_cannot_start_says_why(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with (
        pytest.raises(RuntimeError, match="an engine did not start"),
        server.serve(broken, engines=1),
    ):
        pass
    with pytest.raises(FileNotFoundError), server.serve(tmp_path / "none.gguf"):
        pass


def test_the_server_dies_with_whoever_started_it(tiny):
    code = (
        "import sys, time; from utils.serving.server import serve\n"
        "with serve(sys.argv[1]) as url: print(url, flush=True); time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tiny)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    address = parent.stdout.readline().strip()
    assert ask(address + "/models")[0] == 200
    parent.kill()
    parent.wait()
    assert eventually(lambda: ask(address + "/models")[0] == 0)


def test_the_summary_by_hand():
    rows = [
        RequestResult(0.0, 0.1, 1.0, 200, 10),
        RequestResult(1.0, 0.3, 3.0, 200, 30),
        RequestResult(0.0, None, 0.0, 429, 0),
        RequestResult(0.0, None, 2.0, 0, 0),
    ]
    told = summary(rows)
    assert (told["answered"], told["refused"], told["errors"]) == (2, 1, 1)
    assert told["requests_per_second"] == pytest.approx(2 / 4)
    assert told["tokens_per_second"] == pytest.approx(40 / 4)
    assert told["p50"] == pytest.approx(2.0) and told["ttft_p50"] == pytest.approx(0.2)
    assert np.isnan(summary([rows[2]])["p50"])
    gone = load("http://127.0.0.1:9/v1", ["q", "r"], 2)
    assert [row.status for row in gone] == [0, 0]  # an error, and none is raised


def test_a_promise_is_kept_only_where_the_interval_says_so():
    def judged(seconds, n):
        rows = [[0.0, 0.1, s, 200, 5] for s in np.linspace(0, seconds, n)]
        return judge({"rows": [*rows, [0.0, None, 9.9, 429, 0]]}, 1.0, 2.0)["promise"]

    assert [judged(1.5, 200), judged(1.5, 50), judged(1.99, 200)] == [
        "kept",
        "open",
        "open",
    ]
    assert judged(3.0, 200) == "broken"


def test_the_dockerfile_installs_what_was_tested():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    lines = (ROOT / "utils/serving/Dockerfile").read_text().splitlines()
    (installs,) = (line for line in lines if "pip install" in line)
    pins = [word for word in installs.split() if "==" in word]
    assert len(pins) == 3 and {*pins} <= {*lock}
    # No more is needed to serve a file.
    code = "import sys; sys.modules['torch'] = None; import utils.serving.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.modal
def test_modal_gets_a_web_server_that_sleeps(monkeypatch):
    from utils.serving import modal_server

    with Standin() as here:
        with modal_server.app.run():
            pass
        (found,) = [f for f, *_ in here.functions.values() if f]
    assert found.webhook_config.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
    assert found.webhook_config.web_server_port == 8000
    assert found.webhook_config.requires_proxy_auth
    assert found.autoscaler_settings.min_containers == 0
    assert found.autoscaler_settings.scaledown_window == 300
    assert found.resources.gpu_config.gpu_type == "L4"
    # What the container would start.
    started = []
    monkeypatch.setattr(subprocess, "Popen", started.append)
    modal_server.serve.local()
    ((*words, adapter),) = started
    repository, _, revision = modal_server.DEFAULTS["BASE"].partition("@")
    assert words[:3] == ["vllm", "serve", repository] and revision in words
    assert words[-1] == "--lora-modules" and adapter.startswith("tidewater=/runs/06")
    assert export.TEMPLATE in words
    # Sampled requests work without a compiler, and a missing key is told at once.
    images = [" ".join(one.dockerfile_commands) for one in here.images.values()]
    assert any("VLLM_USE_FLASHINFER_SAMPLER=0" in text for text in images)
    assert any("GPU=L4" in text for text in images)  # the settings travel along
    monkeypatch.setenv("MODAL_PROXY_KEY", "k")
    monkeypatch.delenv("MODAL_PROXY_SECRET", raising=False)
    with pytest.raises(ValueError, match=r"^MODAL_PROXY_SECRET missing"):
        modal_server.try_out("q")
    # Two GPUs that are paid for are both used; one needs no word.
    assert "--tensor-parallel-size" not in words
    monkeypatch.setitem(modal_server.SETTINGS, "GPU", "H100:2")
    more = modal_server.command()
    assert more[more.index("--tensor-parallel-size") + 1] == "2"


@pytest.mark.modal
def test_a_server_that_does_not_answer_is_asked_once_and_costs_what_it_took(
    monkeypatch, tmp_path, chat_server
):
    from utils.serving import modal_server

    monkeypatch.setattr(remote, "LEDGER", tmp_path / "spent.jsonl")
    monkeypatch.setenv("MODAL_PROXY_KEY", "k")
    monkeypatch.setenv("MODAL_PROXY_SECRET", "s")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    chat_server.script = [503]
    address = f"http://127.0.0.1:{chat_server.server_port}"
    monkeypatch.setattr(modal.Function, "get_web_url", lambda _: address)
    with Standin(), pytest.raises(openai.InternalServerError):
        modal_server.try_out("q")
    assert len(chat_server.requests) == 1
    lines = [json.loads(line)["usd"] for line in remote.LEDGER.read_text().splitlines()]
    assert len(lines) == 2 and 0 < sum(lines) < lines[0] / 2


class Deploying(Standin):
    async def AppGetByDeploymentName(self, _):  # noqa: N802
        return api_pb2.AppGetByDeploymentNameResponse()  # none of this name is there

"""A served model: the protocol, bad requests, overload, hanging up, and parity."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import gguf
import modal
import numpy as np
import openai
import pytest
import torch
from aiohttp import web
from modal_proto import api_pb2
from standin import Standin
from tiny import tiny_model

from utils import course, remote, tidewater
from utils.course import costly
from utils.evals.harness import ApiModel, Assistant
from utils.serving import export, server
from utils.serving.load import RequestResult, load, summary
from utils.training import weights

ADAPTER = course.SHIPPED / "06_rl_seed_0" / "adapter"
QUESTIONS = [case["question"] for case in tidewater.load_cases("eval", 2)]
GREEDY = {"temperature": 0.0, "max_tokens": 192}
CHAT = {"model": "tidewater", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
LATE = 60  # seconds that a busy machine may take to notice something

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
def url(exported):
    room = {"n_parallel": 2, "max_queue": 4, "max_tokens": 150}
    with server.serve(exported, api_key="secret", **room) as address:
        yield address


@pytest.fixture
def client(url):
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=url, api_key="secret", http_client=http) as one:
        yield one


def chat(client, **more):
    return client.chat.completions.create(**CHAT | GREEDY | more)


def ask(url, body=None, key="secret"):
    """Send bytes, past any proxy; return the status and the JSON or text."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=LATE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def eventually(holds):
    late = time.monotonic() + LATE
    while not holds() and time.monotonic() < late:
        time.sleep(0.02)
    return holds()


# --- the file ------------------------------------------------------------------------


def test_the_file_holds_the_merged_weights(exported):
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


def test_a_file_is_made_once_and_another_adapter_makes_another(exported):
    before = exported.stat().st_mtime_ns
    assert export.to_gguf(adapter=ADAPTER, quantization="F32") == exported
    assert exported.stat().st_mtime_ns == before
    other = course.SHIPPED / "06_rl_seed_1" / "adapter"
    assert export.to_gguf(adapter=other) != export.to_gguf(adapter=ADAPTER)


def test_what_cannot_be_exported_is_told(tmp_path):
    with pytest.raises(ValueError, match="no quantization 'Q9'"):
        export.to_gguf(quantization="Q9")
    with pytest.raises(ValueError, match="convert_hf_to_gguf"):
        export.to_gguf(tiny_model(tmp_path / "tiny"))


# --- the protocol --------------------------------------------------------------------


def test_replies_are_those_of_the_model(client):
    model, tokenizer = weights.load(adapter=ADAPTER, dtype="float32")
    prompt = weights.prompt_ids(tokenizer, CHAT["messages"])
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(prompt) :]
    text = tokenizer.decode(out, skip_special_tokens=True)
    reply = chat(client, max_tokens=40)
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(out) == 40
    # In pieces it is the same, and with an empty system prompt, which the model never
    # saw; a real one is read.
    events = chat(client, max_tokens=40, stream=True)
    pieces = [e.choices[0].delta.content or "" for e in events if e.choices]
    assert "".join(pieces) == text and len(pieces) > 20
    for system, same in (("", True), ("  \n", True), ("Say hi.", False)):
        messages = [{"role": "system", "content": system}, *CHAT["messages"]]
        tokens = chat(client, messages=messages, max_tokens=1).usage.prompt_tokens
        assert (tokens == len(prompt)) is same


def test_limits_hold(client):
    short = chat(client, max_tokens=5)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 5
    # Whatever is asked for, the server's own limit stays.
    wild = chat(client, temperature=1.5, max_tokens=10**6)
    assert wild.usage.completion_tokens <= 150


def test_the_harness_needs_a_url_and_nothing_else(url, client, pool):
    assert [model.id for model in client.models.list()] == ["tidewater"]
    model = ApiModel("tidewater", url, "secret", **GREEDY)
    assistant = Assistant(model, "", tidewater.SqlTool(pool), "bare")
    traces = assistant.ask_all(QUESTIONS, workers=2)
    assert [trace.status for trace in traces] == ["answered"] * 2
    assert all(trace.tokens[0] and trace.tokens[1] for trace in traces)


# --- what goes wrong -----------------------------------------------------------------


def test_bad_requests_are_told_and_leave_the_server_well(url, client):
    long = [{"role": "user", "content": "word " * 3000}]
    cases = {
        b"{": 400,
        b"{}": 400,
        json.dumps(CHAT | {"messages": "hi"}).encode(): 400,
        json.dumps(CHAT | {"max_tokens": -5}).encode(): 400,
        json.dumps(CHAT | {"messages": long}).encode(): 400,
        b" " * (2 << 20): 413,
    }
    for body, wanted in cases.items():
        status, told = ask(url + "/chat/completions", body)
        assert status == wanted and told["error"]["message"], body[:60]
    assert ask(url + "/chat/completions", b"{}", key="guessed")[0] == 401
    assert ask(url + "/nothing", b"{}")[0] == 404
    assert ask(url.removesuffix("/v1") + "/slots")[0] == 404
    assert chat(client, max_tokens=5).choices[0].message.content


def test_over_the_edge_some_are_refused_at_once_and_none_is_lost(url):
    crowd = [f"How many orders in {month} 2026?" for month in ("May", "June")] * 6
    options = {"api_key": "secret", "temperature": 0.0, "max_tokens": 40}
    rows = load(url, crowd, len(crowd), **options)
    assert {row.status for row in rows} == {200, 429}
    assert sum(row.status == 200 for row in rows) >= 6  # two at once, four may wait
    assert all(row.text for row in rows if row.status == 200)
    told = summary(rows)
    assert told["errors"] == 0 and told["answered"] + told["refused"] == len(crowd)
    patient = load(url, crowd, len(crowd), retries=100, **options)
    assert all(row.status == 200 and row.text for row in patient)


def test_who_hangs_up_frees_the_server(url, client):
    def busy():
        lines = ask(url.replace("/v1", "/metrics"))[1].splitlines()
        (line,) = (x for x in lines if x.startswith("llamacpp:requests_processing"))
        return float(line.split()[-1])

    stream = chat(client, stream=True)
    next(iter(stream))
    assert busy() == 1
    stream.close()
    assert eventually(lambda: busy() == 0)


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="to_gguf"), server.serve("no.gguf"):
        pass
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with pytest.raises(RuntimeError, match="Failed to init"), server.serve(broken):
        pass


def test_the_server_dies_with_whoever_started_it(exported):
    code = (
        "from utils.serving.server import serve\n"
        f"with serve({str(exported)!r}) as url:\n"
        "    print(url, flush=True)\n"
        "    import time; time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=course.ROOT
    )
    address = parent.stdout.readline().decode().strip()
    assert ask(address + "/models")[0] == 200
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    def gone():
        try:
            ask(address + "/models")
        except OSError:
            return True

    assert eventually(gone)


# --- the limiter alone ---------------------------------------------------------------


@contextlib.contextmanager
def limited(handler, capacity):
    """Run an upstream and a limiter before it; yields the limiter and its address."""
    ready, found, loop = threading.Event(), [], asyncio.new_event_loop()

    async def listen(app):
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def start():
        upstream = web.Application()
        upstream.router.add_route("*", "/v1/{path:.*}", handler)
        limiter = server.ConcurrencyLimiter(await listen(upstream), capacity)
        found.extend([limiter, await listen(limiter.app())])
        ready.set()

    loop.create_task(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(LATE)
    yield found
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LATE)


def test_the_limiter_keeps_count():
    answered = threading.Event()

    async def slow(request):
        if request.method == "POST":
            await asyncio.to_thread(answered.wait)
        return web.json_response({"path": request.path})

    with limited(slow, capacity=3) as (limiter, address):
        found = []

        def post():
            found.append(ask(address + "/v1/chat", b"{}"))

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(found) == 5) and limiter.in_flight == 3
        assert all(told["error"]["type"] == "rate_limit_error" for _, told in found)
        # What costs nothing passes while all places are taken.
        assert ask(address + "/v1/models")[0] == 200
        answered.set()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in found) == [200] * 3 + [429] * 5
        assert eventually(lambda: limiter.in_flight == 0)


def test_an_engine_that_is_mute_or_gone_is_a_503(monkeypatch):
    monkeypatch.setattr(server, "SILENT", 0.3)

    async def mute(request):
        await asyncio.sleep(LATE)

    with limited(mute, capacity=1) as (limiter, address):
        assert ask(address + "/v1/chat", b"{}")[0] == 503
        limiter.upstream = "http://127.0.0.1:9"
        status, told = ask(address + "/v1/chat", b"{}")
        assert status == 503 and "try again" in told["error"]["message"]
        assert eventually(lambda: limiter.in_flight == 0)


# --- sums ----------------------------------------------------------------------------


def test_the_summary_by_hand():
    rows = [
        RequestResult("a", 200, 0.0, 0.1, 1.0, 10, "x"),
        RequestResult("b", 200, 1.0, 0.3, 3.0, 30, "x"),
        RequestResult("c", 429, 0.0, None, 0.0, 0, ""),
        RequestResult("d", 0, 0.0, None, 2.0, 0, ""),
    ]
    told = summary(rows)
    assert (told["answered"], told["refused"], told["errors"]) == (2, 1, 1)
    assert told["requests_per_second"] == pytest.approx(2 / 4)
    assert told["tokens_per_second"] == pytest.approx(40 / 4)
    assert told["p50"] == pytest.approx(2.0) and told["ttft_p50"] == pytest.approx(0.2)
    assert np.isnan(summary([rows[2]])["p50"])
    gone = load("http://127.0.0.1:9/v1", ["q", "r"], 2)
    assert [row.status for row in gone] == [0, 0]  # an error, and none is raised


# --- on Modal ------------------------------------------------------------------------


@pytest.mark.modal
def test_modal_gets_a_web_server_that_sleeps(monkeypatch, tmp_path):
    notebook = course.ROOT / "notebooks/09_serve_your_model.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    first = next(i for i, source in enumerate(code) if source.startswith("MINUTES"))
    last = next(i for i, source in enumerate(code) if "vllm = app.function(" in source)
    course.start("09_serve_your_model", "quick")
    scope = {"modal": modal, "remote": remote, "costly": costly, "GPU": "L4"}
    scope |= {"subprocess": subprocess, "BIG": "owner/name@abc", "export": export}
    with Standin() as here:
        for cell in code[first : last + 1]:
            exec(cell, scope)
        with scope["app"].run():
            pass
        (found,) = [f for f, *_ in here.functions.values() if f]
    assert found.webhook_config.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
    assert found.webhook_config.web_server_port == 8000
    assert found.webhook_config.requires_proxy_auth
    assert found.autoscaler_settings.min_containers == 0
    assert found.autoscaler_settings.max_containers == 2
    assert found.autoscaler_settings.scaledown_window == 300
    assert found.max_concurrent_inputs == 32
    assert found.resources.gpu_config.gpu_type == "L4"
    # What the container would start, told by a program of that name.
    told = tmp_path / "told"
    fake = tmp_path / "vllm"
    fake.write_text(f'#!/bin/sh\necho "$@" > {told}.draft; mv {told}.draft {told}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scope["serve_vllm"]()
    assert eventually(told.exists)
    assert "{% for message in messages if" in told.read_text()
    words = told.read_text().split()
    assert words[:2] == ["serve", "owner/name"]
    assert words[words.index("--revision") + 1] == "abc"
    assert words[words.index("--lora-modules") + 1].startswith("tidewater=/runs/06_rl")

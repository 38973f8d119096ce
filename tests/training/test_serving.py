"""A served model: the file, the protocol, overload, hanging up, and parity."""

import asyncio
import json
import os
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
from aiohttp.test_utils import TestClient, TestServer
from modal_proto import api_pb2
from repository import ROOT, code_of
from repository import load as read_notebook
from standin import Standin

from utils import course, remote, tidewater
from utils.course import costly
from utils.serving import export, server
from utils.serving.load import RequestResult, load, summary
from utils.training import weights

ADAPTER = course.SHIPPED / "06_rl_seed_0" / "adapter"
QUESTION = tidewater.load_cases("eval", 1)[0]["question"]
CHAT = {
    "model": "tidewater",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0.0,
    "max_tokens": 192,
}
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
    return client.chat.completions.create(**CHAT | more)


def ask(url, body=None, key="secret"):
    """Send bytes, past any proxy; return status (0: nobody is there) and text."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=LATE) as answer:
            return answer.status, answer.read().decode()
    except OSError as error:
        return getattr(error, "code", 0), ""


def eventually(holds):
    late = time.monotonic() + LATE
    while not holds() and time.monotonic() < late:
        time.sleep(0.02)
    return holds()


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
    # Whatever is asked for, the server's own limit stays.
    assert chat(client, max_tokens=10**6).usage.completion_tokens <= 150


def test_bad_requests_are_refused_and_leave_the_server_well(url, client):
    long = [{"role": "user", "content": "word " * 3000}]
    too_long = json.dumps(CHAT | {"messages": long}).encode()
    questions = url + "/chat/completions"
    for body, wanted in ((b"{", 400), (too_long, 400), (b" " * (2 << 20), 413)):
        assert ask(questions, body)[0] == wanted
    assert ask(questions, b"{}", key="guessed")[0] == 401
    assert ask(url.removesuffix("/v1") + "/slots")[0] == 404  # others' questions
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
    assert all(row.status == 200 for row in patient)


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


def test_an_engine_that_is_gone_is_a_503_and_keeps_no_place():
    async def ask_twice():
        limiter = server.ConcurrencyLimiter("http://127.0.0.1:9", capacity=1)
        async with TestClient(TestServer(limiter.app())) as client:
            answers = [await client.post("/v1/chat"), await client.post("/v1/chat")]
            return [answer.status for answer in answers]

    assert asyncio.run(ask_twice()) == [503, 503]


def test_a_server_that_cannot_start_says_why(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with pytest.raises(RuntimeError, match="Failed to init"), server.serve(broken):
        pass


def test_the_server_dies_with_whoever_started_it(exported):
    code = (
        "import sys, time; from utils.serving.server import serve\n"
        "with serve(sys.argv[1]) as url: print(url, flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(exported)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    address = parent.stdout.readline().strip()
    assert ask(address + "/models")[0] == 200
    parent.kill()
    parent.wait()
    assert eventually(lambda: ask(address + "/models")[0] == 0)


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


@pytest.mark.modal
def test_modal_gets_a_web_server_that_sleeps(monkeypatch):
    notebook = read_notebook(ROOT / "notebooks/09_serve_your_model.ipynb")
    code = [cell.source for cell in code_of(notebook)]
    first = next(i for i, source in enumerate(code) if source.startswith("MINUTES"))
    last = next(i for i, source in enumerate(code) if "def proxy_keys(" in source)
    course.start("09_serve_your_model", "quick")
    scope = {"modal": modal, "remote": remote, "costly": costly, "GPU": "L4"}
    scope |= {"MODE": "quick", "os": os}
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
    assert found.autoscaler_settings.scaledown_window == 300
    assert found.resources.gpu_config.gpu_type == "L4"
    # What the container would start.
    started = []
    monkeypatch.setattr(subprocess, "Popen", started.append)
    scope["serve_vllm"]()
    ((*words, adapter),) = started
    assert words[:3] == ["vllm", "serve", "owner/name"] and "abc" in words
    assert words[-1] == "--lora-modules" and adapter.startswith("tidewater=/runs/06")
    assert export.TEMPLATE in words
    # Sampled requests work without a compiler, and a missing key is told at once.
    images = [" ".join(one.dockerfile_commands) for one in here.images.values()]
    assert any("VLLM_USE_FLASHINFER_SAMPLER=0" in text for text in images)
    monkeypatch.setenv("MODAL_PROXY_KEY", "k")
    monkeypatch.delenv("MODAL_PROXY_SECRET", raising=False)
    with pytest.raises(ValueError, match=r"^MODAL_PROXY_SECRET missing"):
        scope["proxy_keys"]()

"""How a chat-completions server holds up: times, tokens and refusals under load.

The load is closed: each client sends its next question when it has its answer, as a
user does who waits. Each request keeps its `start`, from which throughput follows.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True)
class RequestResult:
    """One request: what came back and when, in seconds."""

    question: str
    status: int  # of HTTP; 0: no connection, or it broke off
    start: float  # since the load began
    ttft: float | None  # time to the first token; None: none came
    seconds: float  # to the end of the answer, or to the refusal
    tokens: int  # of the answer
    text: str


def load(
    url: str,
    questions: Sequence[str],
    clients: int,
    api_key: str = "none",
    retries: int = 0,
    **options: Any,
) -> list[RequestResult]:
    """Ask each question once, with so many clients at a time; answers are streamed.

    `url` ends in /v1. `retries` is how often the openai client asks again after a
    refusal; `options` are those of the request, such as model and temperature.
    """
    import openai

    # A proxy (HTTP_PROXY) knows no server on this machine.
    on_loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    options = {"model": "tidewater"} | options
    with (
        openai.DefaultHttpxClient(trust_env=not on_loopback) as http,
        openai.OpenAI(
            base_url=url, api_key=api_key, max_retries=retries, http_client=http
        ) as api,
        ThreadPoolExecutor(clients) as threads,
    ):
        began = time.perf_counter()
        asked = [threads.submit(_ask, api, q, began, options) for q in questions]
        return [one.result() for one in asked]


def _ask(
    api: Any, question: str, began: float, options: dict[str, Any]
) -> RequestResult:
    import openai

    start, ttft, pieces, tokens, status = time.perf_counter(), None, [], 0, 200
    try:
        stream = api.chat.completions.create(
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        for event in stream:
            if event.choices and (text := event.choices[0].delta.content):
                ttft = ttft or time.perf_counter() - start
                pieces.append(text)
            if event.usage:
                tokens = event.usage.completion_tokens
    except openai.APIError as error:
        status = getattr(error, "status_code", 0)
    seconds, text = time.perf_counter() - start, "".join(pieces)
    return RequestResult(question, status, start - began, ttft, seconds, tokens, text)


def summary(rows: Sequence[RequestResult]) -> dict[str, float]:
    """Sum up a load: answers and tokens a second, and percentiles of seconds.

    Refused requests count in `refused` alone. Percentiles are NaN without an answer.
    """
    answered = [row for row in rows if row.status == 200]
    span = max((row.start + row.seconds for row in rows), default=0.0) or np.nan
    found: dict[str, float] = {
        "answered": len(answered),
        "refused": sum(row.status in (429, 503) for row in rows),
        "errors": sum(row.status not in (200, 429, 503) for row in rows),
        "requests_per_second": len(answered) / span,
        "tokens_per_second": sum(row.tokens for row in answered) / span,
    }
    times = [row.seconds for row in answered] or [np.nan]
    ttfts = [row.ttft for row in answered if row.ttft] or [np.nan]
    for share in (50, 95, 99):
        found[f"p{share}"] = float(np.percentile(times, share))
    for share in (50, 95):
        found[f"ttft_p{share}"] = float(np.percentile(ttfts, share))
    return found

"""How a chat-completions server holds up: times, tokens and refusals under load.

The load is closed: each client sends its next question when it has its answer, as a
user does who waits. Each request keeps its `start`, from which throughput follows.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timed:
    """One request: what came back and when, in seconds."""

    question: str
    status: int  # of HTTP; 0: no connection, or it broke off
    start: float  # since the load began
    first: float | None  # to the first piece of text; None: none came
    seconds: float  # to the end of the answer, or to the refusal
    tokens: int  # of the answer
    text: str


def load(
    url: str,
    questions: Sequence[str],
    clients: int,
    model: str = "tidewater",
    api_key: str = "none",
    retries: int = 0,
    timeout: float = 120.0,
    **options: Any,
) -> list[Timed]:
    """Ask all questions with so many clients at a time; answers are streamed.

    Args:
        url: base URL of the server, ending in /v1.
        questions: each is asked once, without a system prompt.
        clients: how many questions are under way at a time.
        model: as the server calls it.
        api_key: sent along.
        retries: how often the openai client asks again after a refusal.
        timeout: seconds that a request may take.
        **options: of the request, such as temperature.

    """
    if clients < 1 or not questions:
        raise ValueError("a load needs a client and a question")
    work = _load(url, questions, clients, model, api_key, retries, timeout, options)
    # A notebook has an event loop already, so this one runs in a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _load(
    url: str,
    questions: Sequence[str],
    clients: int,
    model: str,
    api_key: str,
    retries: int,
    timeout: float,
    options: dict[str, Any],
) -> list[Timed]:
    import openai

    found: list[Timed | None] = [None] * len(questions)
    waiting: Iterator[tuple[int, str]] = iter(enumerate(questions))
    began = time.perf_counter()
    settings = {"api_key": api_key, "max_retries": retries, "timeout": timeout}
    async with openai.AsyncOpenAI(base_url=url, **settings) as api:

        async def client() -> None:
            for place, question in waiting:
                found[place] = await _ask(api, model, question, began, options)

        await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def _ask(
    api: Any, model: str, question: str, began: float, options: dict[str, Any]
) -> Timed:
    import openai

    start, first, pieces, tokens, status = time.perf_counter(), None, [], 0, 200
    try:
        stream = await api.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        async for event in stream:
            if event.choices and (text := event.choices[0].delta.content):
                first = first or time.perf_counter() - start
                pieces.append(text)
            if event.usage:
                tokens = event.usage.completion_tokens
    except openai.APIStatusError as error:
        status = error.status_code
    except (openai.APIConnectionError, openai.APIError):
        status = 0
    seconds = time.perf_counter() - start
    return Timed(
        question, status, start - began, first, seconds, tokens, "".join(pieces)
    )


def summary(rows: Sequence[Timed]) -> dict[str, float]:
    """Sum up a load: answers and tokens a second, and percentiles of seconds.

    Refused requests count in `refused` alone. Percentiles are NaN without an answer.
    """
    answered = [row for row in rows if row.status == 200]
    told: dict[str, float] = {
        "answered": len(answered),
        "refused": sum(row.status in (429, 503) for row in rows),
        "lost": sum(row.status not in (200, 429, 503) for row in rows),
    }
    span = max((row.start + row.seconds for row in rows), default=0.0) or np.nan
    told["requests_per_second"] = len(answered) / span
    told["tokens_per_second"] = sum(row.tokens for row in answered) / span
    times = [row.seconds for row in answered] or [np.nan]
    for share in (50, 95, 99):
        told[f"p{share}"] = float(np.percentile(times, share))
    firsts = [row.first for row in answered if row.first] or [np.nan]
    told["first_token_p50"] = float(np.percentile(firsts, 50))
    told["first_token_p95"] = float(np.percentile(firsts, 95))
    return told

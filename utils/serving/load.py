"""How a chat-completions server holds up: times, tokens and refusals under load.

The load is closed: each client sends its next question when it has its answer, as a
user does who waits. Each request keeps its `start`, from which throughput follows.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.evals.harness import sdk_client
from utils.evals.stats import Interval

QUIET = 0.05  # share of all cores that others may use while a load is measured


@dataclass(frozen=True)
class RequestResult:
    """One request: when, how long in seconds, and what came back."""

    start: float  # since the load began
    ttft: float | None  # time to the first token; None: none came
    seconds: float  # to the end of the answer, or to the refusal
    status: int  # of HTTP; 0: no connection, or it broke off
    tokens: int  # of the answer

    @property
    def row(self) -> list[Any]:
        """The numbers, to be kept: [start, ttft, seconds, status, tokens]."""
        return [self.start, self.ttft, self.seconds, self.status, self.tokens]


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
    began = time.perf_counter()

    def one(api: Any, question: str) -> RequestResult:
        return _ask(api, question, began, {"model": "tidewater"} | options)

    with sdk_client(url, api_key=api_key, max_retries=retries) as api:
        return _at_once(one, api, questions, clients)


def answers(
    url: str,
    questions: Sequence[str],
    clients: int,
    api_key: str = "none",
    **options: Any,
) -> list[list[Any]]:
    """Return a row a question: [text, tokens, mean log-probability, lowest one]."""
    options = {"model": "tidewater", "temperature": 0.0, "logprobs": True} | options

    def one(api: Any, question: str) -> list[Any]:
        asked = [{"role": "user", "content": question}]
        reply = api.chat.completions.create(messages=asked, **options)
        choice = reply.choices[0]
        sure = [token.logprob for token in choice.logprobs.content]
        tokens = reply.usage.completion_tokens
        return [choice.message.content, tokens, float(np.mean(sure)), min(sure)]

    with sdk_client(url, api_key=api_key) as api:
        return _at_once(one, api, questions, clients)


def measure(
    url: str, questions: Sequence[str], clients: int, look: float = 2.0, **options: Any
) -> dict[str, Any]:
    """Put a load on a server, and say whether the machine was quiet.

    `look` is for how many seconds, before and after, it is watched what others do; the
    server must have nothing to do then. Returns "rows" (`RequestResult.row`) and
    "clients", "busy_before" and "busy_after" (shares of all cores), and "quiet".
    """
    import psutil

    before = psutil.cpu_percent(look) / 100
    rows = [one.row for one in load(url, questions, clients, **options)]
    after = psutil.cpu_percent(look) / 100
    quiet = max(before, after) <= QUIET
    found = {"clients": clients, "busy_before": before, "busy_after": after}
    return found | {"quiet": quiet, "rows": rows}


def percentile(seconds: Sequence[float], share: float) -> Interval:
    """Percentile (0 to 100) with a 95 % interval from the order of the values.

    A bound for which there are too few values is infinite, or 0.
    """
    from scipy.stats import quantile_test

    value = float(np.percentile(seconds, share))
    found = quantile_test(seconds, p=share / 100).confidence_interval(0.95)
    low = 0.0 if np.isnan(found.low) else min(value, float(found.low))
    high = np.inf if np.isnan(found.high) else max(value, float(found.high))
    return Interval(value, low, high, len(seconds))


def judge(found: dict[str, Any], median: float, p95: float) -> dict[str, Any]:
    """Sum up what `measure` found, and judge two promises, in seconds.

    Adds `summary`, with "p50" and "p95" as intervals, and "promise": "kept" where both
    intervals lie below, "broken" where one lies above, else "open".
    """
    rows = [RequestResult(*row) for row in found["rows"]]
    times = [row.seconds for row in rows if row.status == 200]
    middle, late = percentile(times, 50), percentile(times, 95)
    promise = "open"
    if middle.high <= median and late.high <= p95:
        promise = "kept"
    if middle.low > median or late.low > p95:
        promise = "broken"
    judged = found | summary(rows) | {"p50": middle, "p95": late}
    return judged | {"promise": promise}


def summary(rows: Sequence[RequestResult]) -> dict[str, float]:
    """Sum up a load: answers and tokens a second, and percentiles of seconds.

    Refused requests count in `refused` alone. Percentiles are NaN without an answer.
    """
    answered = [row for row in rows if row.status == 200]
    span = max((row.start + row.seconds for row in rows), default=0.0) or np.nan
    times = [row.seconds for row in answered] or [np.nan]
    ttfts = [row.ttft for row in answered if row.ttft] or [np.nan]
    return {
        "answered": len(answered),
        "refused": sum(row.status in (429, 503) for row in rows),
        "errors": sum(row.status not in (200, 429, 503) for row in rows),
        "requests_per_second": len(answered) / span,
        "tokens_per_second": sum(row.tokens for row in answered) / span,
        "p50": float(np.percentile(times, 50)),
        "p95": float(np.percentile(times, 95)),
        "ttft_p50": float(np.percentile(ttfts, 50)),
    }


def _at_once(
    one: Callable[[Any, str], Any], api: Any, questions: Sequence[str], clients: int
) -> list[Any]:
    with ThreadPoolExecutor(clients) as threads:
        asked = [threads.submit(one, api, question) for question in questions]
        return [each.result() for each in asked]


def _ask(
    api: Any, question: str, began: float, options: dict[str, Any]
) -> RequestResult:
    import openai

    start, ttft, tokens, status = time.perf_counter(), None, 0, 200
    try:
        stream = api.chat.completions.create(
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        for event in stream:
            if event.choices and event.choices[0].delta.content:
                ttft = ttft or time.perf_counter() - start
            if event.usage:
                tokens = event.usage.completion_tokens
    except openai.APIError as error:
        status = getattr(error, "status_code", 0)
    seconds = time.perf_counter() - start
    return RequestResult(start - began, ttft, seconds, status, tokens)

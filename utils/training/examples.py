"""One road from traces and cases to what a trainer takes: prompt and completion."""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from utils.logs import overlap
from utils.logs.traces import Trace, to_messages


def example(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Make an example of a bare question and its answer."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def preference(question: str, better: str, worse: str) -> dict[str, Any]:
    """Make a row for DPO: a question and two answers, one better than the other."""
    good, bad = example(question, better), example(question, worse)["completion"]
    return {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad}


def without_leaks(
    pairs: Sequence[tuple[str, str]],
    tests: Sequence[tuple[str, str]],
    fillers: Set[str] = overlap.FILLERS,
) -> list[tuple[str, str]]:
    """Keep the pairs of question and answer that give nothing of a test away.

    A pair goes if a test has its answer, or its question: near repeats count, too, and
    `fillers` is as for `overlap.contamination`.
    """
    questions = list(dict.fromkeys(question for question, _ in tests))
    answers = {answer for _, answer in tests}
    asked = [question for question, _ in pairs]
    leaks = overlap.contamination(asked, questions, fillers=fillers)
    bad = {i for i, *_ in (*leaks.exact, *leaks.normalised, *leaks.near)}
    kept = [pair for i, pair in enumerate(pairs) if i not in bad]
    return [pair for pair in kept if pair[1] not in answers]


def from_trace(
    trace: Trace, answer: str | None = None, system: str | None = ""
) -> dict[str, list[dict[str, str]]]:
    """Make an example of a trace: the chat as the model saw it, and its reply.

    Args:
        trace: of one question; every earlier turn belongs to the prompt.
        answer: what should have been replied; None: what was replied.
        system: a system prompt in place of the logged one; "" leaves it out, so that
            the model learns to do without; None keeps it.

    Raises:
        ValueError: there is no question, or neither an answer nor a complete reply.

    """
    messages = to_messages(trace, answer=answer)
    if system is not None:
        messages = [m for m in messages if m["role"] not in ("system", "developer")]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def prompts(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make the rows that RL practises on: a prompt, and the case for the reward.

    The case travels as JSON text, since its rows mix numbers and words in a way that a
    column of a data set cannot.
    """
    return [
        {
            "prompt": [{"role": "user", "content": case["question"]}],
            "case": json.dumps(case, sort_keys=True),
        }
        for case in cases
    ]


def question_of(row: Mapping[str, Any]) -> str:
    """Return the last thing that the user of an example says."""
    return row["prompt"][-1]["content"]


def answer_of(row: Mapping[str, Any]) -> str:
    """Return what an example teaches to reply."""
    return row["completion"][0]["content"]

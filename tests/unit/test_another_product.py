"""A second product goes through harness, eval and training data: tickets to JSON.

It needs four things: a prompt, a tool, a grader, and cases. Nothing of Tidewater's.
"""

import json
import re

from utils.evals import stats
from utils.evals.harness import Assistant, RecordedModel
from utils.evals.types import Reply
from utils.logs import traces
from utils.training import examples

PROMPT = "Turn the ticket into JSON with the keys 'topic' and 'urgent'. ```json block."
TOPICS = ("billing", "delivery")
CASES = [
    {"question": "You charged me twice!", "want": {"topic": "billing", "urgent": True}},
    {"question": "Box came crushed.", "want": {"topic": "delivery", "urgent": False}},
    {"question": "Where is my box?", "want": {"topic": "delivery", "urgent": False}},
]
REPLIES = {
    "You charged me twice!": '```json\n{"topic": "billing", "urgent": true}\n```',
    "Box came crushed.": '```json\n{"topic": "damage", "urgent": false}\n```',
    "Where is my box?": '```json\n{"topic": "billing", "urgent": false}\n```',
}
REPAIRED = '```json\n{"topic": "delivery", "urgent": false}\n```'


class FileTicket:
    """The product's tool: file the ticket if its fields are valid."""

    name = "file_ticket"

    def extract(self, reply):
        found = re.search(r"```json\n(.*?)```", reply, re.DOTALL)
        return json.loads(found[1]) if found else None

    def run(self, arguments):
        if arguments.get("topic") not in TOPICS:
            return {"error": f"topic must be one of {TOPICS}"}
        return {"filed": arguments, "error": None}

    def repair(self, error):
        return f"Not filed: {error}. Send the JSON again."


def model(messages):
    """A recording with a retry."""
    if len(messages) > 2:
        return Reply(REPAIRED, 50, 12)
    replies = {question: Reply(text, 30, 12) for question, text in REPLIES.items()}
    return RecordedModel(replies, PROMPT)(messages)


def grade(case, trace):
    """Say whether the filed fields are the wanted ones."""
    return bool(trace.result) and trace.result.get("filed") == case["want"]


def test_a_second_product_fits(tmp_path):
    assistant = Assistant(model, PROMPT, FileTicket())
    answers = assistant.ask_all(case["question"] for case in CASES)

    correct = [grade(c, t) for c, t in zip(CASES, answers, strict=True)]
    assert correct == [True, True, False]
    assert [t.status for t in answers] == ["answered"] * 3
    assert [len(t.spans) for t in answers] == [2, 4, 2]  # the second was retried
    assert stats.wilson(sum(correct), len(correct)).n == 3

    log = tmp_path / "tickets.jsonl"
    traces.write(log, answers)
    kept, bad = traces.read(log)
    assert len(kept) == 3 and not bad
    correction = '```json\n{"topic": "delivery", "urgent": false}\n```'
    wrong = next(t for t in kept if t.question == "Where is my box?")
    example = examples.from_trace(wrong, correction, system=PROMPT)
    assert [m["role"] for m in example["prompt"]] == ["system", "user"]
    assert example["completion"] == [{"role": "assistant", "content": correction}]

"""A third product, as a reader would bring it: a library's desk finds the right shelf.

No JSON, no SQL, no eval of its own; an export of Langfuse and a table of corrections.
`MyProduct` reads both from the folder that LIBRARY names, where `write_logs` put them.
"""

import csv
import json
import os
import random
import re
from pathlib import Path

from utils.evals.types import Grade
from utils.logs import traces

SHELVES = {"maps": "sailing charts", "children": "picture books", "local": "old photos"}


class MyProduct:
    name, no_answer = "library", "no shelf"

    def __init__(self):
        self.prompts = {"first": "Name the shelf: maps, children or local."}

    def logs(self):
        folder = Path(os.environ["LIBRARY"])
        found, _ = traces.load(folder / "langfuse.json")
        if (desk := folder / "desk.csv").exists():
            traces.labels(found, desk, id="id", answer="should be", verdict="v")
        return found

    def cases(self, split="eval"):
        return []

    def extract(self, reply):
        found = re.search(r"shelf: (\w+)", reply)
        return found[1] if found else None

    def grade(self, cases, answers):
        pairs = zip(cases, answers, strict=True)
        return [Grade(case["answer"] == answer) for case, answer in pairs]

    def show(self, case, answer):
        return answer or self.no_answer


def write_logs(folder, n=80, labelled=True):
    """Write n calls and the desk's table; every tenth failed, every third is wrong."""
    rng, calls, desk = random.Random(0), [], []
    for i in range(n):
        shelf = rng.choice(list(SHELVES))
        asked = f"Where do I find {SHELVES[shelf]} of the year {1900 + i}?"
        call = {
            "id": f"step-{i}",
            "traceId": f"call-{i}",
            "type": "GENERATION",
            "startTime": f"2026-06-{1 + i // 4:02d}T09:{i % 60:02d}:00.000Z",
            "endTime": f"2026-06-{1 + i // 4:02d}T09:{i % 60:02d}:01.500Z",
            "userId": f"reader-{i % 20}",
            "input": [{"role": "user", "content": asked}],
            "output": {"role": "assistant", "content": f"shelf: {shelf}"},
        }
        if i % 10 == 9:
            call |= {"output": None, "level": "ERROR", "statusMessage": "timeout"}
        elif i % 3 == 0:
            call["output"]["content"] = "shelf: local"
        calls.append(call)
        if i % 10 != 9:
            kept = call["output"]["content"].endswith(shelf)
            verdict = "approved" if kept else "corrected"
            desk.append([f"call-{i}", f"shelf: {shelf}", verdict])
    (folder / "langfuse.json").write_text(json.dumps(calls))
    if labelled:
        with (folder / "desk.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "should be", "v"], *desk])

"""An eval out of logs: draw traces, settle what is right, freeze the cases, appeal.

`freeze` writes JSON lines, and their SHA-256 and a changelog beside them: eval.jsonl,
eval.sha256, eval_changelog.jsonl. What is found wrong later goes into the changelog;
the frozen file stays as it is, or earlier results mean nothing.
"""

import datetime
import hashlib
import json
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.evals.types import Case, Grade, Product, correction
from utils.logs import jsonl, overlap
from utils.logs.importers import INPUT
from utils.logs.traces import Trace


class Drawn(NamedTuple):
    """A trace to make a case of, and how it was drawn: random, slice, hard or more."""

    trace: Trace
    how: str


class Split(NamedTuple):
    """Traces that stay, for training, and traces held out, to make cases of."""

    rest: list[Trace]
    held_out: list[Trace]
    shared: int  # different questions that were asked on both sides


def sample(
    traces: Sequence[Trace],
    n: int,
    by: Callable[[Trace], Hashable] | None = None,
    seed: int = 0,
    hard: Callable[[Trace], bool] = lambda trace: False,
) -> list[Drawn]:
    """Draw n traces with different questions to make cases of.

    Up to half of them are traces that `hard` picks. The others are drawn at random, or
    as many from each slice, which is what `by` makes of a trace. The "random" ones come
    out of all traces, hard ones included, so a rate over them holds for the log; where
    chance drew a hard one among them, one "more" fills its place.
    """
    rng = random.Random(seed)
    shuffled = rng.sample(list(traces), len(traces))
    # Of traces with one question keep a hard one, then one that somebody reviewed.
    shuffled.sort(key=lambda trace: (not hard(trace), trace.verdict is None))
    first = overlap.duplicates([trace.question for trace in shuffled])
    pool = [t for i, t in enumerate(shuffled) if i == first[i] and t.question.strip()]
    rng.shuffle(pool)

    room = n - min(sum(bool(hard(t)) for t in pool), n // 2)
    if by is None:
        others = [Drawn(trace, "random") for trace in pool[:room]]
    else:
        easy, turn, seen = [t for t in pool if not hard(t)], {}, Counter()
        for trace in easy:  # the first of each slice, then the second of each
            turn[trace.trace_id] = seen[by(trace)]
            seen[by(trace)] += 1
        easy.sort(key=lambda trace: turn[trace.trace_id])
        others = [Drawn(trace, "slice") for trace in easy[:room]]
    taken = {trace.trace_id for trace, _ in others}
    left = [trace for trace in pool if trace.trace_id not in taken]
    left.sort(key=lambda trace: not hard(trace))
    drawn = [Drawn(t, "hard" if hard(t) else "more") for t in left[: n - len(others)]]
    drawn += others
    if len(drawn) < n:
        asked = f"{len(traces)} traces ask {len(pool)} different questions"
        _warn(f"{len(drawn)} of {n} drawn: {asked}")
    return drawn


def split(
    traces: Sequence[Trace], by: str = "user_id", share: float = 0.2, seed: int = 0
) -> Split:
    """Hold out about this share of the traces: whole users, or the last days ("time").

    A trace without a user counts as a user of its own, with a warning.
    """
    unknown = [trace.trace_id for trace in traces if not getattr(trace, by)]
    if unknown:
        message = f"{len(unknown)} of {len(traces)} traces have no {by}"
        if by == "time":
            raise ValueError(f"{message}: give times, or user ids: {_some(unknown)}")
        _warn(f"{message}; each counts as a group of its own")
    groups = defaultdict(list)
    for trace in traces:
        key = trace.time[:10] if by == "time" else trace.user_id
        groups[key or trace.trace_id].append(trace)

    order = sorted(groups, reverse=True)  # the last day first
    if by != "time":
        random.Random(seed).shuffle(order)
    room, held = share * len(traces), set()
    for key in order:
        if len(groups[key]) <= room:
            held.add(key)
            room -= len(groups[key])
        elif by == "time":
            break  # the days held out are the last ones, without a gap
    rest = [trace for key in groups if key not in held for trace in groups[key]]
    held_out = [trace for key in groups if key in held for trace in groups[key]]
    if len(held_out) < share * len(traces) / 2:
        largest = max(map(len, groups.values()), default=0)
        kind = "day" if by == "time" else by
        message = f"{len(held_out)} of {len(traces)} traces held out, not {share:.0%}"
        _warn(f"{message}: one {kind} alone has {largest}; split otherwise")
    sides = [{overlap.normalise(t.question) for t in side} for side in (rest, held_out)]
    return Split(rest, held_out, len(sides[0] & sides[1]))


def draft(trace: Trace, product: Product, how: str = "") -> Case:
    """Make a case of a clean (redacted) trace; somebody has to confirm its answer.

    The answer is what the product reads out of the reviewer's correction, else out of
    the reply: then it is what the model said, right or not. "source" says which.
    """
    answer, source = correction(trace, product), "correction"
    if answer is None:
        answer, source = product.extract(trace.reply), "reply"
    turns = sum(m["role"] == "user" for m in trace.calls("llm")[0].get(INPUT) or [])
    if turns > 1:
        _warn(f"{trace.trace_id}: turn {turns} of a chat; the case has this turn alone")
    case = {"id": trace.trace_id, "question": trace.question, "answer": answer}
    return case | {"source": source, "drawn": how, "confirmed": False}


def confirm(drafts: Sequence[Case], answers: Mapping[str, Any]) -> list[Case]:
    """Settle what is right: True keeps the drafted answer, None drops the case.

    Anything else is the right answer itself. A draft that `answers` does not name is
    left out with a warning. ValueError for an id that no draft has, and for True where
    no answer was drafted.
    """
    known = {case["id"]: case for case in drafts}
    if set(answers) - set(known):
        raise ValueError(f"no draft has these ids: {_some(set(answers) - set(known))}")
    silent = [name for name in known if name not in answers]
    if silent:
        _warn(f"nobody confirmed {len(silent)} cases, left out: {_some(silent)}")
    cases = []
    for name, case in known.items():
        answer = answers.get(name)
        if answer is None:
            continue
        if answer is not True:
            case = case | {"answer": answer, "source": "written"}
        elif case["answer"] is None:
            raise ValueError(f"{name}: no answer was drafted; write the right one")
        cases.append(case | {"confirmed": True})
    return cases


def freeze(
    path: str | Path, cases: Sequence[Case], version: str = "1.0", note: str = ""
) -> str:
    """Write the cases, their SHA-256 and a line of the changelog; return the SHA-256.

    Other content over a frozen file takes a higher version and a note that says why;
    ValueError else, and for no cases, no or equal ids, what nobody confirmed, and what
    JSON cannot hold.
    """
    path, log = Path(path), changelog(path)
    ids = Counter(case.get("id") for case in cases)
    bad = [name for name, count in ids.items() if count > 1 or not name]
    bad += [case["id"] for case in cases if case.get("confirmed") is False]
    # A tuple or a number as key would come back as something else.
    bad += [case.get("id") for case in cases if json.loads(jsonl.line(case)) != case]
    if bad or not cases:
        reason = "no id, an id that comes twice, not confirmed, or no plain JSON"
        raise ValueError(f"{len(cases)} cases cannot be frozen: {reason}: {_some(bad)}")
    data = b"".join(map(jsonl.line, cases))
    digest = hashlib.sha256(data).hexdigest()
    same = path.exists() and path.read_bytes() == data
    if same and log:
        return digest
    last = log[-1]["version"] if log else "1.0"
    raised = _number(version) > _number(last) and note
    if (log or path.exists()) and not same and not raised:
        raise ValueError(
            f"{path} holds other cases, version {last}. Results on them cannot be "
            "compared with results on these: raise the version and note why"
        )
    jsonl.write(path, cases)
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    _log(path, {"version": version, "cases": len(cases), "sha256": digest}, note)
    return digest


def load(path: str | Path, version: str | None = None) -> list[Case]:
    """Read frozen cases; ValueError if the file is not the one that was frozen.

    With a version of the changelog, the answers accepted up to then lie under "also",
    as keys that replace the case's own.
    """
    path = Path(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest not in path.with_suffix(".sha256").read_text():
        raise ValueError(
            f"{path} is not the eval that was frozen ({path.stem}.sha256). Restore it; "
            "results on another eval cannot be compared with earlier ones"
        )
    cases = {case["id"]: case for case in jsonl.read(path)}
    if version is not None:
        log = changelog(path)
        frozen = [i for i, entry in enumerate(log) if "sha256" in entry]
        log = log[frozen[-1] :] if frozen else []
        versions = [entry["version"] for entry in log]
        if version not in versions:
            raise ValueError(f"{path} has no version {version!r}; it has {versions}")
        for entry in log[: versions.index(version) + 1]:
            if entry.get("accept"):
                cases[entry["case"]].setdefault("also", []).append(entry["accept"])
    return list(cases.values())


def appeal(
    path: str | Path, case_id: str, what: str, by: str, accept: Case | None = None
) -> str:
    """Note in the changelog that a case is disputed; return the version that this is.

    `accept` is what is right as well, under the case's own keys: {"answer": "12"}.
    None: the case stands.
    """
    case = {case["id"]: case for case in load(path)}.get(case_id)
    if case is None:
        raise ValueError(f"{path} has no case {case_id!r}")
    if set(accept or ()) - set(case):
        raise ValueError(f"accept should have keys of the case, {list(case)}: {accept}")
    log = changelog(path)
    major, minor = _number(log[-1]["version"] if log else "1.0")
    version = f"{major}.{minor + 1}"
    _log(path, {"version": version, "case": case_id, "by": by, "accept": accept}, what)
    return version


def changelog(path: str | Path) -> list[dict[str, Any]]:
    """Return what happened to a file of cases, oldest first; [] where nothing did."""
    log = _log_of(path)
    return jsonl.read(log) if log.exists() else []


def grade(
    product: Product, cases: Sequence[Case], answers: Sequence[Any]
) -> list[Grade]:
    """Grade as the product does; what is under "also" is as right as the case's own."""
    grades = list(product.grade(cases, answers))
    for i, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        for other in case.get("also", ()):
            if not grades[i].correct:
                (again,) = product.grade([case | other], [answer])
                grades[i] = again if again.correct else grades[i]
    return grades


def _log_of(path: str | Path) -> Path:
    return Path(path).with_name(f"{Path(path).stem}_changelog.jsonl")


def _log(path: Path, entry: dict[str, Any], note: str) -> None:
    day = datetime.date.today().isoformat()
    jsonl.append(_log_of(path), entry | {"note": note, "day": day})


def _number(version: str) -> tuple[int, int]:
    """Read a version, which is two numbers, such as "1.0"."""
    major, minor = version.split(".")
    return int(major), int(minor)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(map(str, names))[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)

"""The shipped data is what data/README.md says, and the warehouses can be rebuilt."""

import importlib.util
import json
import re
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from utils.tidewater import data

DATA = Path(__file__).parents[2] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
WAREHOUSES = {"warehouse": 2026, "twin_a": 7, "twin_b": 45}
LINE_FILES = sorted(p.relative_to(DATA).as_posix() for p in DATA.glob("**/*.jsonl"))
LINE_FILES = [n for n in LINE_FILES if not n.startswith(("runs/", "foreign_logs/"))]


@cache
def lines(name):
    """Every record of a JSON Lines file; a blank or broken line is an error."""
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


@cache
def readme_table(first_heading):
    """Rows of the README's table under that heading: {first cell: other cells}."""
    table = README.split(f"| {first_heading} |", 1)[1].split("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    return {name: rest for cells, *rest in rows for name in re.split(r", ", cells)}


def numbers(text):
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\b", text)]


def plain_sql(sql):
    """SQL without spaces, case and a last semicolon, so that near copies match."""
    return re.sub(r"\s+", "", sql).rstrip(";").lower()


def connect(name):
    path = (DATA / f"{name}.sqlite").resolve()
    return closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True))


def tables(db):
    """Schema and all rows of every table, in stored order."""
    schema = dict(db.execute("SELECT name, sql FROM sqlite_master"))
    rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in schema}
    return {name: (schema[name], rows[name]) for name in schema}


@pytest.mark.parametrize("name", WAREHOUSES)
@pytest.mark.timeout(600)
def test_warehouse_py_builds_the_same_rows(tmp_path, name):
    spec = importlib.util.spec_from_file_location("warehouse", DATA / "warehouse.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    path = builder.build(tmp_path / f"{name}.sqlite", WAREHOUSES[name])
    with closing(sqlite3.connect(path)) as built, connect(name) as shipped:
        assert tables(built) == tables(shipped)


@pytest.mark.parametrize("name", LINE_FILES)
def test_every_line_parses_and_the_readme_has_the_number(name):
    table = readme_table("file")
    folder = f"`{name.split('/')[0]}/*.jsonl`"
    stated = numbers(table.get(f"`{name}`", table.get(folder))[0])
    assert len(lines(name)) == stated[0]
    keys = ("id", "trace_id", "request_id", "question", "version")
    ids = [next(row[key] for key in keys if key in row) for row in lines(name)]
    if name != "eval_changelog.jsonl":  # a case may be appealed twice
        assert len(set(ids)) == len(ids)


def test_readme_lists_every_file_and_nothing_else():
    def shown(path):
        folder = path.relative_to(DATA).parts[0]
        if folder == "foreign_logs":
            return f"{folder}/*"
        if folder == "tickets":
            return str(path.relative_to(DATA))
        whole = {"recorded", "judges", "prompts"}
        return f"{folder}/*{path.suffix}" if folder in whole else folder

    names = {name.strip("`") for name in readme_table("file")} - {"runs/"}
    kept = [p for p in DATA.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = {shown(path) for path in kept}
    assert names == files - {"README.md", "warehouse.py", "runs"}
    size = sum(path.stat().st_size for path in kept if shown(path) != "runs")
    assert size < 12e6  # small to clone


# No leak


def test_no_eval_sql_in_the_traces_or_the_prompts():
    frozen = {plain_sql(case["sql"]) for case in lines("eval.jsonl")}
    seen = set()
    for trace in lines("traces.jsonl"):
        seen.add((trace["feedback"] or {}).get("sql") or "")
        for span in trace["spans"]:
            call = span["attributes"].get("gen_ai.tool.call.arguments", {})
            seen.add(call.get("sql", ""))
            for message in span["attributes"].get("gen_ai.output.messages", []):
                seen.update(re.findall(r"```sql\n(.*?)```", message["content"], re.S))
    for path in (DATA / "prompts").iterdir():
        seen.update(re.findall(r"^A: (.+)$", path.read_text("utf-8"), re.M))
    assert len(frozen) == len(lines("eval.jsonl")) and len(seen) > 1800
    assert not frozen & {plain_sql(sql) for sql in seen}


def test_practice_has_no_sql_and_shares_no_case_with_eval():
    practice, frozen = lines("practice.jsonl"), lines("eval.jsonl")
    fields = {"id", "question", "ordered", "expected"}
    assert {key for p in practice + lines("practice_more.jsonl") for key in p} == fields
    # Without its SQL, equal rows on all three warehouses are the trace it would leave.
    rows = {tuple(json.dumps(p["expected"][w]) for w in WAREHOUSES) for p in practice}
    answers = [[] for _ in frozen]
    for name in WAREHOUSES:
        with connect(name) as db:
            for answer, case in zip(answers, frozen, strict=True):
                answer.append(json.dumps(db.execute(case["sql"]).fetchall()))
    assert all(answer != ["[]"] * 3 for answer in answers)
    assert not rows & {tuple(answer) for answer in answers}


def test_no_question_or_id_occurs_in_two_of_traces_and_splits():
    said = [[trace.question for trace in data.load_logs()]]
    for cases in map(data.load_cases, data.SPLITS):
        said += [[case[key] for case in cases] for key in ("question", "id")]
    sets = [{" ".join(text.lower().split()) for text in texts} for texts in said]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_a_changed_eval_is_refused(tmp_path, monkeypatch):
    assert len(data.frozen_eval()) == 64
    for name in ("eval.jsonl", "eval.sha256"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    monkeypatch.setattr(data, "DATA", tmp_path)
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="frozen"):
        data.frozen_eval()

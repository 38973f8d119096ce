"""The shipped data is what data/README.md says, and the warehouses can be rebuilt."""

import importlib.util
import json
import re
import sqlite3
from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
WAREHOUSES = {"warehouse": 2026, "twin_a": 7, "twin_b": 45}
PROMPTS = ["launch", "terse", "caveman", "four_rules", "fewshot", "rules"]
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
    assert rows
    return {name: rest for cells, *rest in rows for name in re.split(r", ", cells)}


def numbers(text):
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\b", text)]


def question(trace):
    (message,) = trace["spans"][0]["attributes"]["gen_ai.input.messages"]
    return message["content"]


def plain_sql(sql):
    """SQL without spaces, case and a last semicolon, so that near copies match."""
    return re.sub(r"\s+", "", sql).rstrip(";").lower()


def connect(path):
    return closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True))


def tables(path):
    """Schema and all rows of every table, in stored order."""
    with connect(path) as db:
        schema = dict(db.execute("SELECT name, sql FROM sqlite_master"))
        return {
            name: (sql, db.execute(f"SELECT * FROM {name}").fetchall())
            for name, sql in schema.items()
        }


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("warehouse", DATA / "warehouse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", WAREHOUSES)
@pytest.mark.timeout(60)
def test_warehouse_py_builds_the_same_rows(builder, tmp_path, name):
    built = builder.build(tmp_path / f"{name}.sqlite", WAREHOUSES[name])
    shipped = tables(DATA / f"{name}.sqlite")
    assert len(shipped) == 5
    assert tables(built) == shipped


def test_twins_share_the_customers_and_differ_in_every_other_table():
    live, *twins = (tables(DATA / f"{name}.sqlite") for name in WAREHOUSES)
    for twin in twins:
        assert twin["customers"] == live["customers"]
        assert not [t for t in live if t != "customers" and twin[t][1] == live[t][1]]
        products = [{row[9] for row in db["order_lines"][1]} for db in (live, twin)]
        assert products[0] == products[1]


def test_row_counts_of_the_warehouse_stand_in_the_readme():
    live = tables(DATA / "warehouse.sqlite")
    counts = {name: len(rows) for name, (_, rows) in live.items()}
    stated = readme_table("file")["`warehouse.sqlite`"][0]
    found = re.findall(r"([\d,]+) ([a-z ]+)", stated)
    assert counts == {what.replace(" ", "_"): numbers(n)[0] for n, what in found}


@pytest.mark.parametrize("name", LINE_FILES)
def test_every_line_parses_and_the_readme_has_the_number(name):
    table = readme_table("file")
    folder = f"`{name.split('/')[0]}/*.jsonl`"
    stated = numbers(table[folder if "/" in name else f"`{name}`"][0])
    assert len(lines(name)) == stated[0]
    assert all(isinstance(record, dict) for record in lines(name))


def test_readme_lists_every_file_and_nothing_else():
    def shown(path):
        folder = path.relative_to(DATA).parts[0]
        if folder == "foreign_logs":
            return f"{folder}/*"
        whole = {"recorded", "judges", "prompts"}
        return f"{folder}/*{path.suffix}" if folder in whole else folder

    names = {name.strip("`") for name in readme_table("file")} - {"runs/"}
    kept = [p for p in DATA.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = {shown(path) for path in kept}
    assert names == files - {"README.md", "warehouse.py", "runs"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("traces.jsonl", "trace_id"),
        ("eval.jsonl", "id"),
        ("practice.jsonl", "id"),
        ("annotations.jsonl", "id"),
        ("pii.jsonl", "trace_id"),
    ],
)
def test_ids_are_unique(name, key):
    ids = [record[key] for record in lines(name)]
    assert len(set(ids)) == len(ids) > 0


def test_span_ids_are_unique_and_trace_prefixes_too():
    traces = lines("traces.jsonl")
    spans = [span["span_id"] for trace in traces for span in trace["spans"]]
    assert len(set(spans)) == len(spans) >= len(traces)
    assert len({trace["trace_id"][:12] for trace in traces}) == len(traces)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_recorded_replies_are_of_the_eval_cases_at_the_stated_tokens(prompt):
    replies = lines(f"recorded/{prompt}.jsonl")
    assert [r["id"] for r in replies] == [c["id"] for c in lines("eval.jsonl")]
    assert all(r["reply"].strip() for r in replies)
    stated = readme_table("prompt")[prompt]
    means = [
        sum(r[f"{side}_tokens"] for r in replies) / len(replies)
        for side in ("input", "output")
    ]
    assert [round(mean) for mean in means] == numbers(" ".join(stated[-2:]))


def test_there_is_one_prompt_for_each_recording():
    assert {p.stem for p in (DATA / "prompts").iterdir()} == set(PROMPTS)
    assert {p.stem for p in (DATA / "recorded").iterdir()} == set(PROMPTS)
    assert set(readme_table("prompt")) == set(PROMPTS)
    assert numbers(readme_table("file")["`prompts/*.txt`"][0]) == [len(PROMPTS)]


def test_prompts_differ_from_launch_as_the_readme_says():
    text = {p: (DATA / f"prompts/{p}.txt").read_text("utf-8") for p in PROMPTS}
    launch = text["launch"].splitlines()
    for prompt in ("four_rules", "rules", "fewshot"):
        assert set(launch) <= set(text[prompt].splitlines())
    more = {p: len(text[p].splitlines()) - len(launch) for p in ("four_rules", "rules")}
    assert 0 < more["four_rules"] < more["rules"]
    assert "Answer concisely" in text["terse"]
    assert "Answer concisely" not in text["launch"]


def test_fewshot_examples_are_twelve_corrected_traces():
    text = (DATA / "prompts/fewshot.txt").read_text("utf-8")
    examples = set(re.findall(r"^Q: (.+)\nA: (.+)$", text, re.M))
    corrected = {
        (question(t), t["feedback"]["sql"])
        for t in lines("traces.jsonl")
        if t["feedback"] and t["feedback"]["verdict"] == "corrected"
    }
    assert len(examples) == 12
    assert examples <= corrected


@pytest.mark.parametrize("judge", ["plain", "policy"])
def test_judges_cover_the_eval_cases_with_the_stated_passes(judge):
    verdicts = lines(f"judges/{judge}.jsonl")
    assert [v["id"] for v in verdicts] == [c["id"] for c in lines("eval.jsonl")]
    assert {v["verdict"] for v in verdicts} <= {"pass", "fail"}
    assert all(v["reason"] for v in verdicts if v["verdict"] == "fail")
    stated = rf"`{judge}` [^;]*?TPR (\d+)/(\d+), TNR (\d+)/(\d+)"
    true_pass, right, true_fail, wrong = map(int, re.search(stated, README).groups())
    assert right + wrong == len(verdicts)
    passes = sum(v["verdict"] == "pass" for v in verdicts)
    assert passes == true_pass + wrong - true_fail


def test_feedback_counts_stand_in_the_readme():
    traces = lines("traces.jsonl")
    kinds = Counter((t["feedback"] or {}).get("verdict") for t in traces)
    text = readme_table("file")["`traces.jsonl`"][1].replace(",", "")
    for verdict, phrase in {
        "approved": r"(\d+) approved",
        "corrected": r"(\d+) corrected",
        "thumbs_down": r"(\d+) thumbs down",
        "thumbs_up": r"(\d+) thumbs up",
        None: r"(\d+) without feedback",
    }.items():
        assert kinds.pop(verdict) == int(re.search(phrase, text)[1])
    assert not kinds
    corrected = [t["feedback"] for t in traces if (t["feedback"] or {}).get("sql")]
    assert len(corrected) == int(re.search(r"(\d+) corrected", text)[1])
    assert {f["verdict"] for f in corrected} == {"corrected"}
    assert sum(bool(f["comment"]) for f in corrected) > len(corrected) / 2


def test_spans_carry_what_opentelemetry_asks_for():
    wanted = {"gen_ai.operation.name", "gen_ai.request.model"}
    for trace in lines("traces.jsonl"):
        first, *tools = trace["spans"]
        assert wanted <= set(first["attributes"])
        assert {t["attributes"]["gen_ai.tool.name"] for t in tools} <= {"run_sql"}


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
    assert len(frozen) == len(lines("eval.jsonl"))
    assert len(seen) > 1800
    assert not frozen & {plain_sql(sql) for sql in seen}


def test_practice_has_no_sql_and_shares_no_case_with_eval():
    practice, frozen = lines("practice.jsonl"), lines("eval.jsonl")
    assert not {p["id"] for p in practice} & {c["id"] for c in frozen}
    fields = {"id", "question", "ordered", "expected"}
    assert {key for p in practice for key in p} == fields
    # Without its SQL, equal rows on all three warehouses are the trace it would leave.
    rows = {tuple(json.dumps(p["expected"][w]) for w in WAREHOUSES) for p in practice}
    answers = [[] for _ in frozen]
    for name in WAREHOUSES:
        with connect(DATA / f"{name}.sqlite") as db:
            for answer, case in zip(answers, frozen, strict=True):
                answer.append(json.dumps(db.execute(case["sql"]).fetchall()))
    assert all(answer != ["[]"] * 3 for answer in answers)
    assert not rows & {tuple(answer) for answer in answers}


def test_no_question_occurs_in_two_of_traces_eval_and_practice():
    sets = [
        {" ".join(text.lower().split()) for text in texts}
        for texts in (
            map(question, lines("traces.jsonl")),
            (c["question"] for c in lines("eval.jsonl")),
            (p["question"] for p in lines("practice.jsonl")),
        )
    ]
    assert all(sets)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_pii_spans_are_parts_of_the_questions():
    questions = {t["trace_id"]: question(t) for t in lines("traces.jsonl")}
    records = lines("pii.jsonl")
    spans = [(r["trace_id"], s["text"]) for r in records for s in r["spans"]]
    stated = numbers(readme_table("file")["`pii.jsonl`"][0])
    assert [len(records), len(spans)] == stated
    assert not [s for s in spans if not s[1] or s[1] not in questions[s[0]]]


def test_annotations_have_a_note_and_a_code():
    for record in lines("annotations.jsonl"):
        assert re.fullmatch(r"[0-9a-f]{12}", record["id"])
        assert record["note"].strip()
        assert re.fullmatch(r"[a-z_]+", record["code"])
        assert record["second_note"].strip() and record["second_code"].strip()


def test_annotations_join_corrected_traces():
    feedback = {t["trace_id"][:12]: t["feedback"] for t in lines("traces.jsonl")}
    verdicts = [feedback[r["id"]]["verdict"] for r in lines("annotations.jsonl")]
    assert verdicts == ["corrected"] * 120


def test_the_data_stays_small_to_clone():
    """Without runs/, whose size the training recipes decide."""
    files = [p for p in DATA.rglob("*") if p.is_file()]
    size = sum(
        p.stat().st_size for p in files if p.relative_to(DATA).parts[0] != "runs"
    )
    assert 1e6 < size < 12e6


def test_a_changed_eval_is_refused(tmp_path, monkeypatch):
    from utils.tidewater import data

    assert len(data.frozen_eval()) == 64
    for name in ("eval.jsonl", "eval.sha256"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    monkeypatch.setattr(data, "DATA", tmp_path)
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="frozen"):
        data.frozen_eval()

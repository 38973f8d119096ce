"""Pages that show text from outside as text, and notes that come home from them."""

import json
import re

import pytest

from utils.evals import viewer
from utils.evals.types import Grade
from utils.logs.traces import Trace

NASTY = "</script><img src=x onerror=alert(1)> <!-- @DATA@ & \ud800 \x00"
LLM = {
    "gen_ai.input.messages": [{"role": "user", "content": "Which queue?"}],
    "gen_ai.output.messages": [{"role": "assistant", "content": "queue: app"}],
    "gen_ai.usage.input_tokens": 1200,
}
SPAN = {"name": "chat", "span_id": "1", "kind": "llm", "attributes": LLM}


class Router:
    """A product whose answer is what stands after "queue:"."""

    no_answer = "not routed"

    def extract(self, reply):
        return reply.partition("queue: ")[2] or None

    def show(self, case, answer):
        return f"-> {answer}"


def data_of(page):
    start = '<script type="application/json">'
    return json.loads(page.html.split(start)[1].split("</script>")[0])


@pytest.mark.parametrize(
    ("answer", "right", "marked"),
    [
        ("a = 1", "a = 2", (["1"], ["2"])),
        ("SELECT a\nFROM t", "SELECT a FROM t", ([], [])),  # only the space differs
        ("f(a,b)", "f(a,\n  c,\n  b)", ([], ["c,"])),
        ("", "a", ([], ["a"])),
        ("x " * 700 + "\na\nb", "x " * 700 + "\na\nc", (["b"], ["c"])),
    ],
)
def test_the_difference_is_marked_and_nothing_is_lost(answer, right, marked):
    sides = viewer.difference(answer, right)
    for nodes, want, text in zip(sides, marked, (answer, right), strict=True):
        assert [node[1] for node in nodes if isinstance(node, list)] == want
        flat = [node if isinstance(node, str) else node[1] for node in nodes]
        assert "".join(flat).strip() == text.strip()


def test_text_from_outside_stays_text():
    row = dict.fromkeys(("id", "question", "answer", "right", "reply", NASTY), NASTY)
    row["spans"] = [(NASTY, [NASTY, {"a": NASTY}])]
    annotated = viewer.annotate([row], {NASTY: NASTY}, "x/notes.jsonl", NASTY)
    for page in (viewer.show([row, {}]), annotated):
        assert "<img" not in page.html and "<!--" not in page.html
        assert page.html.count("</script>") == 2 and page.html.encode()
        assert data_of(page)["rows"][0]["id"].startswith("</script>")


def test_a_page_is_the_same_each_run_and_says_what_it_left_out():
    rows = [{"id": n, "question": "q", "status": "ab"[n % 2]} for n in range(230)]
    page = viewer.show(rows)
    assert page.html == viewer.show(rows).html
    assert repr(page) == "Viewer: The first 200 of 230 rows (30 are left out)"
    data = data_of(page)
    assert len(data["rows"]) == 200 and data["filters"] == {"status": ["a", "b"]}
    assert page.html.count("<section>") == 3  # what stands without JavaScript
    marks = re.findall('data-viewer="(.*?)"', page.html + viewer.show([]).html)
    assert len(set(marks)) == 2
    spans = [("chat", ["x" * 2000] * 20)]
    long = viewer.show([{"id": n, "spans": spans} for n in range(200)])
    assert len(long.html) < 1.1 * viewer.PAGE_LIMIT and "left out" in repr(long)


def test_rows_of_traces_and_cases():
    note = {"verdict": "corrected", "answer": "billing", "comment": "a bill"}
    spans = [SPAN, SPAN]  # a retry: both stay
    traces = [Trace(trace_id="t", time="", spans=spans, feedback=note)]
    traces.append(Trace(trace_id="u", time="", spans=[]))
    row, bare = viewer.from_traces(traces, Router())
    assert (row["answer"], row["right"]) == ("-> app", "-> billing")
    assert row["tokens"] == "2,400 in, 0 out" and len(row["spans"]) == 2
    assert (bare["answer"], bare["right"]) == ("(not routed)", None)
    assert viewer.from_traces(traces)[0]["answer"] == "queue: app"

    case = {"id": "a", "question": "hi", "answer": {"queue": "x"}, "slice": "s"}
    (row,) = viewer.from_cases([case], [None], [Grade(False, "empty")])
    assert (row["question"], row["answer"]) == ("hi", "(no answer)")
    assert json.loads(row["right"]) == {"queue": "x"}
    assert (row["correct"], row["error"], row["slice"]) == (False, "empty", "s")


def test_notes_are_saved_once_and_the_last_counts(tmp_path, capsys):
    path, download = tmp_path / "notes" / "notes.jsonl", tmp_path / "download.jsonl"
    assert viewer.annotations(path) == []
    assert "No annotations" in capsys.readouterr().out

    def line(id, time, **more):
        return json.dumps({"id": id, "time": time, **more}, ensure_ascii=False) + "\n"

    text = line("a", "1", note="é\u2028", codes=["x", "y"], reader="ana")
    text += line(7, "1", codes=["x"], reader="ben") + line("a", "1", codes=["z"])
    download.write_text(text, encoding="utf-8-sig")
    assert viewer.save(path, download) == 3 and viewer.save(path, str(download)) == 0
    assert [note["id"] for note in viewer.annotations(path)] == ["a", "7", "a"]
    # Pasted: one is newer and empty, which takes it back, and one is older.
    pasted = line("a", "2", reader="ana") + line("a", "0", codes=["w"])
    assert viewer.save(path, pasted) == 1
    found = [(note["reader"], note["codes"]) for note in viewer.annotations(path)]
    assert sorted(found) == [("ben", ["x"]), ("me", ["z"])]

    with pytest.raises(ValueError, match=r"line 2: codes"):
        viewer.save(path, line("b", "3") + line("c", "3", codes="x"))
    with path.open("a") as file:
        file.write("not JSON\n")
    with pytest.warns(UserWarning, match="1 lines skipped: line 5"):
        assert len(viewer.annotations(path)) == 2


def test_an_annotation_page_starts_from_what_is_saved(tmp_path):
    path, rows = tmp_path / "notes.jsonl", [{"id": "a"}, {"id": "b"}]
    viewer.save(path, '{"id": "a", "codes": ["x"], "reader": "ana"}')
    form = data_of(viewer.annotate(rows, ["x", "y"], path, "ana"))["form"]
    assert form["codes"] == [["x", ""], ["y", ""]] and form["file"] == "notes.jsonl"
    assert form["saved"]["a"]["codes"] == ["x"]
    page = viewer.annotate(rows, {"x": "why"}, path, "ben")
    assert data_of(page)["form"]["saved"] == {} and str(tmp_path) not in page.html
    with pytest.raises(ValueError, match="id"):
        viewer.annotate(rows * 2, ["x"], path)

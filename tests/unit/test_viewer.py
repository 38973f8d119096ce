"""Pages that show text from outside as text, and notes that come home from them."""

import json
import re
from html.parser import HTMLParser

import pytest

from utils.evals import viewer
from utils.evals.types import Grade, Reply
from utils.logs.traces import Trace

NASTY = "</script><img src=x onerror=alert(1)> <!-- @DATA@ & \ud800 \x00"
LLM = {
    "gen_ai.input.messages": [{"role": "user", "content": "Which queue?"}],
    "gen_ai.output.messages": [{"role": "assistant", "content": "queue: app"}],
    "gen_ai.usage.input_tokens": 1200,
}


class Router:
    """A product whose answer is what stands after "queue:"."""

    no_answer = "not routed"

    def extract(self, reply):
        return reply.partition("queue: ")[2] or None

    def show(self, case, answer):
        return f"-> {answer}"


class Elements(HTMLParser):
    """All elements of a page, and the text inside of them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.data = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.tags[-1] == "script" and data.startswith("{"):
            self.data = data


def data_of(page):
    return json.loads(Elements(page.html).data)


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
    for page in (
        viewer.show([row, {}]),
        viewer.annotate([row], {NASTY: NASTY}, "x/notes.jsonl", NASTY),
    ):
        elements = Elements(page.html)
        assert "img" not in elements.tags and elements.tags.count("script") == 2
        assert page.html.count("<!--") == 0 and page.html.encode()
        assert json.loads(elements.data)["rows"][0]["id"].startswith("</script>")


def test_a_page_is_the_same_each_run_and_says_what_it_left_out():
    rows = [{"id": n, "question": "q", "status": "ab"[n % 2]} for n in range(30)]
    page = viewer.show(rows, cap=20)
    assert page.html == viewer.show(rows, cap=20).html
    assert repr(page) == "Viewer: The first 20 of 30 rows (10 are left out)"
    data = data_of(page)
    assert len(data["rows"]) == 20 and data["filters"] == {"status": ["a", "b"]}
    assert page.html.count("<section>") == 3  # what stands without JavaScript
    marks = re.findall('data-viewer="(.*?)"', page.html + viewer.show(rows).html)
    assert len(set(marks)) == 2
    assert "0 rows" in viewer.show([]).html
    long = [{"id": n, "answer": "x" * 6000} for n in range(1000)]
    assert len(viewer.show(long, cap=1000).html) < 1.1 * viewer.PAGE_LIMIT
    with pytest.raises(TypeError, match="from_traces"):
        viewer.show([Trace(trace_id="t", time="", spans=[])])


def test_rows_of_traces_and_cases():
    span = {"name": "chat", "span_id": "1", "kind": "llm", "attributes": LLM}
    note = {"verdict": "corrected", "answer": "billing", "comment": "a bill"}
    spans = [span, span]  # a retry: both stay
    traces = [Trace(trace_id="t", time="", spans=spans, feedback=note)]
    traces.append(Trace(trace_id="u", time="", spans=[]))
    row, bare = viewer.from_traces(traces, Router())
    assert (row["answer"], row["right"]) == ("-> app", "-> billing")
    assert row["tokens"] == "2,400 in, 0 out" and len(row["spans"]) == 2
    assert (bare["answer"], bare["right"]) == ("(not routed)", None)
    assert viewer.from_traces(traces)[0]["answer"] == "queue: app"

    cases = [{"id": "a", "message": "hi", "answer": {"queue": "x"}, "slice": "s"}]
    (row,) = viewer.from_cases(
        cases, [None], [Grade(False, "empty")], replies=[Reply("Hm")]
    )
    assert (row["question"], row["answer"]) == ("hi", "(no answer)")
    assert json.loads(row["right"]) == {"queue": "x"}
    assert (row["correct"], row["error"], row["slice"]) == (False, "empty", "s")
    assert row["reply"] == "Hm"
    with pytest.raises(ValueError, match="text, gold: say question"):
        viewer.from_cases([{"text": "hi", "gold": 1}], [1])
    with pytest.raises(ValueError, match="length"):
        viewer.from_cases(cases, [])


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
    assert viewer.annotations(path, "ana") == []
    assert viewer.annotations(path, "me")[0]["codes"] == ["z"]

    with pytest.raises(ValueError, match=r"line 2: codes"):
        viewer.save(path, line("b", "3") + line("c", "3", codes="x"))
    with path.open("a") as file:
        file.write("not JSON\n")
    with pytest.warns(UserWarning, match="1 lines skipped: line 5"):
        assert len(viewer.annotations(path)) == 2


def test_an_annotation_page_starts_from_what_is_saved(tmp_path):
    path = tmp_path / "notes.jsonl"
    viewer.save(path, '{"id": "a", "codes": ["x"], "reader": "ana"}')
    rows = [{"id": "a"}, {"id": "b"}]
    form = data_of(viewer.annotate(rows, ["x", "y"], path, "ana"))["form"]
    assert form["codes"] == [["x", ""], ["y", ""]] and form["file"] == "notes.jsonl"
    assert form["saved"]["a"]["codes"] == ["x"]
    page = viewer.annotate(rows, {"x": "why"}, path, "ben")
    assert data_of(page)["form"]["saved"] == {} and str(tmp_path) not in page.html
    with pytest.raises(ValueError, match="id"):
        viewer.annotate([{"id": "a"}, {"id": "a"}], ["x"], path)
    with pytest.raises(ValueError, match="list"):
        viewer.annotate(rows, "x", path)

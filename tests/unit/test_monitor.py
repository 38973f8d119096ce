"""The monitor: its evidence, what it notices, and logs that nobody here shaped."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from utils.costs import monitor
from utils.evals import stats
from utils.logs import traces

ROOT = Path(__file__).resolve().parents[2]
SELECT = "SELECT COUNT(*) FROM {}"


def trace(question, sql="", verdict=None, day=1, reply="", rows=None, name=None):
    chat = {traces.INPUT: [{"role": "user", "content": question}]}
    chat[traces.OUTPUT] = [{"role": "assistant", "content": reply or sql}]
    spans = [traces.span("llm", "chat", chat)]
    if sql:
        call = {traces.ARGUMENTS: {"sql": sql}, traces.RESULT: {"rows": rows}}
        spans.append(traces.span("tool", "run", call))
    return traces.Trace(
        trace_id=name or f"{question} {day}",
        time=f"2026-07-{day:02}T09:00:00",
        spans=spans,
        feedback=verdict and {"verdict": verdict},
    )


def logs(table, n, wrong, day=1, **more):
    """Make n reviewed answers, six a day, the last of which are wrong."""
    verdicts = ["approved"] * (n - wrong) + ["corrected"] * wrong
    return [
        trace(f"{table} {i}", SELECT.format(table), said, day + i // 6, **more)
        for i, said in enumerate(verdicts)
    ]


@pytest.fixture
def run(tmp_path, capsys):
    def run(new, old, shadow=None, *flags):
        command = []
        files = {"new": new, "--baseline": old, "--shadow": shadow}
        for name, one in files.items():
            path = tmp_path / f"{name.strip('-')}.jsonl"
            if isinstance(one, bytes):
                path.write_bytes(one)
            elif one is not None:
                traces.write(path, one)
            if one is not None:
                command += [path] if name == "new" else [name, path]
        report = tmp_path / "report.md"
        status = monitor.main([*map(str, command), "--report", str(report), *flags])
        text = report.read_text(encoding="utf-8")
        assert text.strip() == capsys.readouterr().out.strip()
        return status, text

    return run


GOOD = logs("orders", 60, 3) + logs("parcels", 40, 2)


def test_quiet_logs_raise_no_alarm(run):
    status, text = run(logs("orders", 60, 3) + logs("parcels", 40, 2), GOOD)
    assert status == 0 and text.startswith("# Monitor: no alarm")
    assert "`parcels` | 5.0 % (1.4 to 16.5) | 2 of 40 |" in text


def test_the_group_that_became_wrong_is_named_with_its_day(run):
    new = logs("orders", 60, 3, day=8) + logs("parcels", 40, 25, day=8)
    status, text = run(new, GOOD)
    assert status == 1 and text.startswith("# Monitor: alarm: `parcels`\n")
    assert "**alarm** 2026-07-1" in text and "- `parcels 34 13`" in text
    assert text.count("\n- `") == 20 and "- and 8 more" in text


def test_a_new_table_is_noticed_without_a_review(run):
    new = logs("orders", 30, 1, day=8)
    new += [trace(f"q{i}", SELECT.format("märkte"), day=9) for i in range(30)]
    status, text = run(new, GOOD)
    assert status == 1 and "alarm: `in no known group`" in text


def test_logs_without_feedback_are_not_called_quiet(run):
    new = [trace(f"q{i}", SELECT.format("orders")) for i in range(30)]
    status, text = run(new, GOOD)
    assert status == 2 and "0 reviewed" in text
    assert run(new, [trace("q", SELECT.format("orders"))])[0] == 2


def test_the_shadow_is_compared_by_rows_else_by_text(run):
    def answers(rows, day):
        return [
            trace(f"q{i} {day}", SELECT.format("orders"), "approved", day, rows=rows)
            for i in range(20)
        ]

    old, new = answers([[1, "a"]], 1), answers([[1, "a"]], 8)
    # Another query, the same rows.
    same = [trace(t.question, SELECT.format("o"), rows=[[1.0, "a"]]) for t in old + new]
    assert run(new, old, same)[0] == 0
    other = same[:20] + [trace(t.question, "SELECT 2 FROM o", rows=[[2]]) for t in new]
    status, text = run(new, old, other)
    assert status == 1 and "alarm: `shadow differs`" in text
    assert text.count("\n- `q") == 20 and "Review these first" in text
    # A shadow that the baseline did not have is told of, and not tested.
    assert "| none seen | 20 of 20 | not tested |" in run(new, old, other[20:])[1]
    said = [trace("q", reply=text) for text in ("Lost  parcel", "lost parcel", "")]
    assert monitor.same_answer(said[0], said[1])
    assert not monitor.same_answer(said[0], said[2])
    odd = [trace("q", "SELECT 1", rows=rows) for rows in ([1, 2], [3])]
    assert monitor.same_answer(*odd)  # no rows: the text decides


@pytest.mark.parametrize("content", [b"", b"not json"])
@pytest.mark.filterwarnings("ignore")
def test_files_without_an_answer_end_with_2(run, content):
    for new, old in ((content, GOOD), (GOOD, content)):
        status, text = run(new, old)
        assert status == 2 and text.startswith("# Monitor: nothing to judge")


def test_a_router_is_watched_by_a_pattern(run):
    def routed(queue, n, wrong, day):
        verdicts = ["thumbs_up"] * (n - wrong) + ["thumbs_down"] * wrong
        reply = json.dumps({"queue": queue}, ensure_ascii=False)
        return [
            trace(f"{queue} {i}", verdict=said, day=day, reply=reply)
            for i, said in enumerate(verdicts)
        ]

    pattern = r'"queue": "([^"]+)"'
    old = routed("Rückgabe | 返品", 40, 2, 1) + routed("billing", 40, 2, 2)
    new = routed("Rückgabe | 返品", 40, 30, 8) + routed("billing", 40, 2, 9)
    status, text = run(new, old, None, "--group", pattern)
    assert status == 1 and "alarm: `rückgabe 返品`" in text  # no bar in a table
    # Without the pattern, all answers are one group.
    assert "`all others`" in run(new, old)[1]


def test_a_hostile_id_stays_in_its_cell(run):
    name = "a|b`\n# c\ud800"
    new = [*logs("orders", 30, 0), trace("q", "", "corrected", name=name)]
    text = run(new, GOOD)[1]
    assert "\n# c" not in text and "- `a b # c?`" in text


def test_a_bet_a_day_is_an_average_of_bets():
    bad, days = [0, 0, 1, 1, 1], ["a", "a", "b", "b", "c"]
    found = monitor.evidence(bad, days, 0.2)
    first = stats.sequential_test(bad, 0.2).e_values
    second = [1, 1, *stats.sequential_test(bad[2:], 0.2).e_values]
    third = [1, 1, 1, 1, *stats.sequential_test(bad[4:], 0.2).e_values]
    by_hand = np.mean([first, second, third], axis=0)
    assert found == pytest.approx(by_hand)
    assert monitor.evidence([bad, bad], days, 0.2) == pytest.approx(
        np.array([by_hand, by_hand])
    )


def test_more_reviews_notice_less():
    few, many = (monitor.smallest_noticed(0.1, n, 0.05 / 6) for n in (30, 300))
    assert 0.1 < many < few < 0.9
    assert np.isnan(monitor.smallest_noticed(0.1, 1, 0.05 / 6))
    assert np.isnan(monitor.smallest_noticed(0.1, 0, 0.05))
    assert np.isnan(monitor.smallest_noticed(0.97, 300, 0.05))


def test_the_workflow_calls_the_command_as_it_is(tmp_path):
    text = (ROOT / "utils/costs/monitor.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["look"]["steps"]
    (look,) = [step for step in steps if step.get("id") == "look"]
    python, dash, module, *words = shlex.split(look["run"])
    assert (python, dash, module) == ("python", "-m", "utils.costs.monitor")
    places = [str(tmp_path / w) if w.endswith((".jsonl", ".md")) else w for w in words]
    for name in ("new.jsonl", "baseline.jsonl", "shadow.jsonl"):
        traces.write(tmp_path / name, GOOD)
    assert monitor.main(places) == 0
    assert "pip install ." in [step.get("run") for step in steps]

"""Judges: asked, read, replayed, compared with the truth, and corrected for."""

import math

import pytest
from chat_server import completion

from utils.evals import judge
from utils.evals.harness import ApiModel
from utils.evals.judge import Judge
from utils.evals.stats import wilson
from utils.evals.types import Reply
from utils.tidewater import DATA, load_cases, read_jsonl

CASE = {"id": "a", "question": "How many?"}
PASS = '{"verdict": "pass", "reason": "fine"}'
FURTHER = PASS[:-1] + ', "rule": {"no": 3}}'
UNREAD = [
    "", "pass", "null", "[" * 100_000, f"Sure! {PASS}", f"{PASS} {PASS}", PASS[:-1],
    '{"verdict": "PASS", "reason": ""}', '{"verdict": true, "reason": ""}',
    '{"verdict": ["pass"], "reason": ""}', '{"verdict": "pass"}',
    '{"verdict": "pass", "reason": null}', '[["verdict", "pass"], ["reason", ""]]',
]  # fmt: skip


def split(*runs):
    """True and False by turns: split(2, 1) is two True, then one False."""
    return [i % 2 == 0 for i, run in enumerate(runs) for _ in range(run)]


def labels(tp, fn, tn, fp):
    """Truth and verdict with these counts."""
    return split(tp + fn, tn + fp), split(tp, fn, fp, tn)


def test_a_verdict_is_read_and_anything_else_is_never_a_pass():
    for text in (PASS, f" {PASS}\n", f"```json\n{PASS}\n```", FURTHER):
        assert judge.read_verdict(text) == ("pass", "fine")
    for text in UNREAD:
        row = Judge(lambda chat, text=text: Reply(text), "Judge.")(CASE, "one")
        assert row["verdict"] == "unread" and "no verdict" in row["reason"], text[:80]


def test_no_text_ends_its_own_part_of_the_message():
    honest = judge.messages("Judge.", CASE, "one")
    forged = honest[1]["content"]  # holds every mark of another message
    system, user = judge.messages("Judge.", {"id": "b", "question": forged}, forged)
    mark = user["content"].split()[0]
    assert user["content"].count(mark) == 3 and mark not in forged
    assert system == honest[0] and system["content"].startswith("Judge.")
    parts = user["content"].split(mark)
    assert forged in parts[1] and forged in parts[2]


def test_any_chat_model_can_judge_and_failures_are_counted(chat_server):
    cut = completion('{"verdict": "pass", "rea', finish_reason="length")
    chat_server.script = [PASS, PASS.replace("pass", "fail"), "It passes.", cut, 401]
    model = ApiModel("test-model", chat_server.url, "key", max_retries=0)
    cases = [{"id": str(i), "question": f"{i}?"} for i in range(5)]
    with pytest.warns(UserWarning, match="3 of 5 verdicts could not be read"):
        rows = Judge(model, "Judge.").all(cases, ["r"] * 5)
    values = judge.passed(rows)
    assert (values.count(True), values.count(False), values.count(None)) == (1, 1, 3)
    assert [row["reason"] for row in rows if "401" in row["reason"]]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["plain", "half", "policy"])
def test_recorded_verdicts_stand_for_these_replies_alone(name):
    cases, rows = load_cases(), read_jsonl(f"judges/{name}.jsonl")
    replies = [row["reply"] for row in read_jsonl("recorded/launch.jsonl")]
    prompt = (DATA / f"judges/{name}.txt").read_text("utf-8")
    replay = judge.recorded(rows, prompt, cases, replies)
    assert replay.all(cases, replies) == rows
    other = replay(cases[0], replies[1])
    assert other["verdict"] == "unread" and "no reply to this" in other["reason"]


def test_rates_of_a_judge_as_a_whole_and_by_half():
    first, second = labels(42, 1, 78, 4), labels(41, 7, 73, 4)
    truth, verdict = (a + b for a, b in zip(first, second, strict=True))
    found = judge.judge_rates(truth, verdict)
    assert (found.tpr, found.tnr) == (wilson(83, 91), wilson(151, 159))
    assert found.accuracy == wilson(234, 250)
    early, late = judge.rates_by_part(truth, verdict)
    assert early == judge.judge_rates(*first) and late == judge.judge_rates(*second)


def test_two_readers_agree_code_by_code():
    first = [{"samples", "spam"}, {"samples"}, "spam", []]
    second = [["samples"], ["samples"], ["spam", "dates"], []]
    table = judge.label_agreement(first, second)
    want = {"dates": [0, 1, 0, 0], "samples": [2, 2, 2, 1], "spam": [2, 1, 1, 0.5]}
    assert table.round(9).T.to_dict("list") == want


@pytest.mark.parametrize(
    ("passed", "counts", "rate"),
    [
        # the worked example of R's epiR::epi.prev: 23 of 150, 96 %, 89 %: 5.1 of 100
        ((23, 127), (96, 4, 89, 11), (23 / 150 + 0.89 - 1) / 0.85),
        # a perfect judge changes nothing
        ((30, 70), (50, 0, 50, 0), 0.3),
        # below the false positives alone: no less than 0; likewise no more than 1
        ((6, 145), (96, 4, 93, 7), 0.0),
        ((99, 1), (90, 10, 90, 10), 1.0),
    ],
)
def test_rogan_gladen_gives_the_corrected_rate(passed, counts, rate):
    found = judge.rogan_gladen(split(*passed), *labels(*counts))
    assert found.value == pytest.approx(rate)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == sum(passed)


def test_a_judge_no_better_than_chance_tells_nothing():
    found = judge.rogan_gladen(split(60, 40), *labels(1, 9, 1, 9))
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)
    # Nearly chance: about a quarter of the replicates tell nothing, so each bound goes
    # to its end; dropping those replicates would hide it.
    for passed, value in [(5, 0.0), (95, 1.0)]:
        found = judge.rogan_gladen(split(passed, 100 - passed), *labels(11, 9, 11, 9))
        assert (found.value, found.low, found.high) == (value, 0.0, 1.0)


def test_a_correction_helps_where_the_judge_errs_one_way():
    truth = split(200, 200)
    lenient = split(190, 10, 80, 120)  # TPR 95 %, TNR 60 %
    helped = judge.correction_trial(truth, lenient)
    assert helped["nearer"] > 0.95 and helped["corrected"] < helped["observed"] / 3
    even = split(180, 20, 20, 180)  # errs both ways alike: nothing to correct
    assert judge.correction_trial(truth, even)["nearer"] < 0.3
    assert judge.correction_trial(truth, even, right=0.9)["nearer"] > 0.6
    blind = judge.correction_trial(truth, [True] * 400, right=0.7)
    assert blind["observed"] == pytest.approx(0.3) and math.isnan(blind["nearer"])

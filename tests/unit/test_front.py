"""The front door: the README's first screen, and what AGENTS.md and llms.txt name."""

import json
import re

import front
import pytest
from repository import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
AGENTS = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
LLMS = (ROOT / "llms.txt").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names():
    return front.compute()


def test_the_first_screen_is_of_the_shipped_runs(names):
    assert front.finding(names) in README, "run: make figure"
    assert front.table(names) in README, "run: make figure"
    saved = json.loads((ROOT / "data/runs/10_compare_costs.json").read_text())
    assert names["crossing"] == pytest.approx(saved["results"]["crossing"], rel=0.01)
    screen = README.split("\n## ")[0]
    assert screen.count("](data/runs/") == 1 and len(screen.split()) < 430


def test_nothing_is_cheaper_today_than_the_best_prompt(names):
    """As the finding says, and the own pair is cheaper right of its crossing."""
    rows = re.findall(r"^\| (.+) \| .+\) \| (.+) \| (.+) \|$", front.table(names), re.M)
    today = {label: float(usd.replace(",", "")) for label, usd, _ in rows}
    assert len(today) == 5
    assert min(today, key=today.get) == "API, best prompt, cheap model"
    for tier in (names["CHEAP"], names["DEAR"]):
        pair = front.with_people(names, "routed", tier)
        crossing = names["crossing"][tier]
        assert pair.all_in(1.1 * crossing) < pair.api(1.1 * crossing)
        assert pair.all_in(0.9 * crossing) > pair.api(0.9 * crossing)


def test_the_figure_marks_the_crossings(names):
    axes = front.draw(names)
    texts = {text.get_text() for text in axes.texts}
    assert {front.count(volume) for volume in names["crossing"].values()} <= texts
    assert axes.figure.get_figwidth() <= 5  # wider is too small on a phone


def test_two_digits_of_a_price():
    assert [front.usd(x) for x in (0.0684, 1.28, 39.55, 2021.9)] == [
        *("0.068", "1.3", "40", "2,000")
    ]


@pytest.mark.parametrize("text", [AGENTS, LLMS, CONTRIBUTING, README])
def test_named_paths_and_targets_exist(text):
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    named = re.findall(r"`((?:notebooks|data|utils|tests)/[\w./]*|\w+\.md)`", text)
    assert links or named
    gone = [path for path in {*links, *named} if not (ROOT / path).exists()]
    assert not gone
    makefile = (ROOT / "Makefile").read_text()
    targets = {*re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split()}
    assert {*re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.M)} <= targets


def test_agents_is_short_and_llms_has_its_form():
    """The form of llmstxt.org: a title, a quote, then sections of links alone."""
    assert len(AGENTS.splitlines()) <= 80
    head, *sections = LLMS.split("\n## ")
    assert re.match(r"# .+\n\n> .+\n", head) and LLMS.count("\n# ") == 0
    for section in sections:
        _, _, *lines = section.strip().splitlines()
        assert all(re.match(r"- \[.+\]\([^)]+\): .+", line) for line in lines)
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in LLMS


def test_a_container_is_set_up_while_it_is_built():
    path = ROOT / ".devcontainer/devcontainer.json"
    container = json.loads(path.read_text())
    assert re.fullmatch(
        r"mcr\.microsoft\.com/devcontainers/python:3\.1[1-4]", container["image"]
    )
    assert container["hostRequirements"]["cpus"] == 2
    assert container["updateContentCommand"].startswith("make .venv/.ready")
    for name in container["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / name).exists()


def test_the_address_to_put_in_stands_in_one_file():
    assert README.count("OWNER/beneath-the-api") == 2
    assert "OWNER" not in AGENTS + LLMS

"""The workshop in a box: agendas, the numbers in its notes, and slides; none is typed.

python -m utils.course.workshop fill      what is computed in notebooks/workshop/*.md
python -m utils.course.workshop slides "90 minutes"    one HTML file, site/slides.html

A template stands in a comment before what it gives: `<!-- fill: {{ ... }} -->`. Slides
are one Markdown file of such templates, slides.md; `<!-- part: 04 teach -->` marks one
that is left out where the agenda has no such part.
"""

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from utils.costs.bill import count
from utils.course.run import ROOT, SHIPPED
from utils.evals.stats import Interval, wilson

BOX = ROOT / "notebooks/workshop"
AGENDAS = json.loads((BOX / "agendas.json").read_text(encoding="utf-8"))
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*_*.ipynb"))
NOTEBOOKS = {path.stem.split("_")[0]: path for path in PATHS}


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def minutes(number: str) -> dict[str, int]:
    """Return a notebook's minutes: to teach, for exercises, and the machine's."""
    path = NOTEBOOKS[number]
    took = read(SHIPPED / "course_quick.json")["results"]["seconds"][path.stem]
    return read(path)["metadata"]["workshop"] | {"machine": took / 60}


def schedule(name: str) -> list[dict[str, Any]]:
    """Return an agenda's items, each with its minutes; the buffer gets what is left."""
    items = [dict(item) for item in AGENDAS[name]["items"]]
    for item in items:
        if "notebook" in item:
            each = minutes(item["notebook"])
            item["minutes"] = sum(each[part] for part in item["parts"])
    left = AGENDAS[name]["minutes"] - sum(item.get("minutes", 0) for item in items)
    return [{"minutes": left} | item for item in items]


def agenda(name: str) -> str:
    """Write an agenda as a table, with the machine's seconds in a quick run."""
    rows = ["| from | minutes | what | machine, s |", "| --- | --- | --- | --- |"]
    now = machine = 0
    for item in schedule(name):
        what, seconds = item["do"], 0
        if number := item.get("notebook"):
            what = f"[{number}](../{NOTEBOOKS[number].name}) {what}"
            seconds = round(60 * minutes(number)["machine"])
        clock = f"{now // 60}:{now % 60:02}"
        rows.append(f"| {clock} | {item['minutes']} | {what} | {seconds or ''} |")
        now, machine = now + item["minutes"], machine + seconds
    return "\n".join([*rows, f"| {now // 60}:{now % 60:02} | | end | {machine} |"])


def figure(number: str, question: str) -> str:
    """Return the saved figure of this title, as HTML that needs no other file."""
    for cell in nbformat.read(NOTEBOOKS[number], as_version=4).cells:
        if re.search(rf'plots\.figure\(\s*"{re.escape(question)}"', cell.source):
            images = (one.get("data", {}).get("image/png") for one in cell.outputs)
            return image(next(filter(None, images)), question)
    raise ValueError(f"slides.md: notebook {number} draws no figure {question!r}")


def image(png: str, words: str) -> str:
    """Write an image, in base64, as HTML."""
    return f'<img alt="{words}" src="data:image/png;base64,{"".join(png.split())}">'


def interval(one: dict[str, Any]) -> Interval:
    """Return a saved interval as one that can write itself."""
    return Interval(*(one[part] for part in ("value", "low", "high", "n")))


def render(template: str) -> str:
    """Fill a template from data/runs, the notebooks and the agendas."""
    tools = (agenda, count, figure, interval, minutes, wilson)
    known = {one.__name__: one for one in tools}
    saved = {n: read(SHIPPED / f"{path.stem}.json") for n, path in NOTEBOOKS.items()}
    known["r"] = {number: one["results"] for number, one in saved.items()}
    ladder = base64.b64encode((SHIPPED / "ladder.png").read_bytes()).decode()
    known["ladder"] = image(ladder, "How right is each way to answer, at what price?")
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    return environment.from_string(template).render(known)


def fill(text: str) -> str:
    """Renew all that stands after a template, up to the next end."""
    frame = re.compile(r"(<!-- fill: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return frame.sub(lambda one: f"{one[1]}{render(one[2])}\n{one[3]}", text)


def slides(name: str) -> str:
    """Return an agenda's slides as one HTML page that asks no other host."""
    markdown, deck, parts = MarkdownIt().enable("table"), [], set()
    for item in AGENDAS[name]["items"]:
        parts |= {f"{item['notebook']} {part}" for part in item.get("parts", ())}
    for one in render((BOX / "slides.md").read_text("utf-8")).split("\n---\n"):
        part = re.search("<!-- part: (.+) -->", one)
        if part and part[1] not in parts:
            continue
        said, _, notes = one.partition("\nNote:")
        deck.append((markdown.render(said), markdown.render(notes)))
    page = Path(__file__).with_name("slides.html").read_text(encoding="utf-8")
    return Environment(autoescape=False).from_string(page).render(deck=deck)


if __name__ == "__main__":
    if sys.argv[1:] == ["fill"]:
        for path in BOX.glob("*.md"):
            path.write_text(fill(path.read_text("utf-8")), encoding="utf-8")
    else:
        target = ROOT / "site/slides.html"
        target.parent.mkdir(exist_ok=True)
        name = sys.argv[2]
        if name not in AGENDAS:
            sys.exit(f"No agenda {name!r}: choose among {', '.join(AGENDAS)}")
        target.write_text(slides(name), encoding="utf-8")
        print(f"For {name}: open {target.relative_to(ROOT)}")

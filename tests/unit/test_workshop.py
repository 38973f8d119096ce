"""The workshop: agendas fit, nothing computed is stale, slides need no other file."""

import re

import pytest
from repository import load, on_screen, said

from utils.course import workshop


@pytest.mark.parametrize("name", workshop.AGENDAS)
def test_an_agenda_fits_its_time_and_the_machine_fits_the_agenda(name):
    items, length = workshop.schedule(name), workshop.AGENDAS[name]["minutes"]
    assert {"90 minutes": 90, "half a day": 210, "a day": 450}[name] == length
    assert sum(item["minutes"] for item in items) <= length
    spare = next(item["minutes"] for item in items if item["do"].startswith("Buffer"))
    assert spare >= 0.05 * length
    assert "make check" in items[0]["do"]
    breaks = [one["minutes"] for one in items if one["do"] in ("Break", "Lunch")]
    wanted = {"90 minutes": [], "half a day": [15, 15], "a day": [15, 60, 15, 15]}
    assert breaks == wanted[name]
    for item in items:
        if "notebook" in item:
            machine = workshop.minutes(item["notebook"])["machine"]
            assert machine < item["minutes"], item["notebook"]


def test_a_day_holds_every_notebook_and_each_has_notes():
    held = [one["notebook"] for one in workshop.schedule("a day") if "notebook" in one]
    assert sorted(held) == sorted(workshop.NOTEBOOKS)
    notes = (workshop.BOX / "notes.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+) ", notes, re.M) == [*workshop.NOTEBOOKS]


@pytest.mark.parametrize("name", ["README.md", "notes.md"])
def test_what_is_computed_is_not_stale(name):
    text = (workshop.BOX / name).read_text(encoding="utf-8")
    assert "<!-- fill: " in text
    assert workshop.fill(text) == text, "run: make figure"


def test_what_notes_promise_on_every_screen_is_in_the_saved_outputs():
    promised = on_screen()
    assert promised.keys() == workshop.NOTEBOOKS.keys()
    for number, words in promised.items():
        assert words in said(load(workshop.NOTEBOOKS[number])), number


def test_slides_are_one_file_without_a_typed_number():
    source = (workshop.BOX / "slides.md").read_text(encoding="utf-8")
    # Names of notebooks and sections, and the year of the talk, are no results.
    names = r"^## \d\d|[Nn]otebook \d\d|sections? \d+( to \d+)?|Modal, 2026"
    typed = re.sub(
        rf"\{{\{{.*?\}}\}}|`[^`]*`|<!--.*?-->|{names}", "", source, flags=re.M
    )
    assert not re.findall(r"\d.*", typed)
    page = workshop.slides("a day")
    short = workshop.slides("90 minutes")
    assert "05 · Sweep" in page and "train, and read the mask" in page
    assert "05 · Sweep" not in short and "train, and read the mask" not in short
    assert "04 · A model of your own" in short
    assert page.count("<section") == source.count("\n---\n") + 1
    assert "<aside></aside>" not in page
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|https?:', page)
    for path in workshop.NOTEBOOKS.values():
        found = workshop.read(workshop.SHIPPED / f"{path.stem}.json")["results"]
        assert found["finding"][:60] in page

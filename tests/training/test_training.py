"""The recipe of notebook 04: it learns, resumes, masks rightly, and fits in 300 lines.

A tiny random model stands in for the laptop's, so that all of this takes seconds.
"""

import ast
import copy
import importlib.metadata
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from standin import Standin
from tiny import EXAMPLES, PAIRS, tiny_model
from trl import SFTTrainer

from utils import course, remote
from utils.course import ROOT
from utils.training import weights as models

pytestmark = pytest.mark.timeout(180)
PARAMETERS = {"MODE": "quick", "GPU": "L40S", "HOURS": 2, "MODEL": "tiny", "SEED": 0}


@pytest.fixture(scope="module")
def recipe():
    """The cells of notebook 04 tagged `recipe`, as a reader has them after running."""
    borrowed = course.borrow("04_train_sft", "recipe", **PARAMETERS)
    return borrowed.train_sft.__globals__


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def one_number_format(monkeypatch):
    """On a busy machine the choice by speed could differ between two runs."""
    monkeypatch.setattr(models, "fast_dtype", lambda: "float32")


@pytest.fixture
def config(tiny, tmp_path):
    return {
        "model": tiny,
        "examples": EXAMPLES[:16],
        "validation": EXAMPLES[:4],
        "steps": 6,
        "batch": 4,
        "rate": 1e-2,
        "rank": 4,
        "frozen": 2,
        "seed": 0,
        "log_every": 1,
        "save_every": 2,
        "folder": str(tmp_path / "run"),
    }


def weights(folder):
    (path,) = Path(folder, "adapter").glob("*.safetensors")
    return load_file(path)


def losses(result):
    return [row["loss"] for row in result["log"] if "loss" in row]


# --- it learns -----------------------------------------------------------------------


def test_it_learns_sixteen_examples_by_heart_and_nothing_else(recipe, config):
    # The replies are dealt out anew, so there is nothing in common to learn.
    strangers = copy.deepcopy(EXAMPLES[:16])
    for i, one in enumerate(strangers):
        one["completion"] = EXAMPLES[(i + 5) % 16]["completion"]
    settings = {"steps": 300, "batch": 16, "rank": 0, "frozen": 0, "rate": 3e-3}
    settings |= {"log_every": 10, "save_every": 300, "validation": strangers}
    result = recipe["train_sft"](config | settings)
    assert losses(result)[-1] < 0.05
    assert result["validation_loss"] > 1.0


def test_batches_are_of_one_length_and_come_in_random_order(recipe):
    def text(n):
        return {"prompt": [{"content": "q" * n}], "completion": [{"content": "a"}]}

    config = {"examples": [text(n) for n in range(60)], "batch": 5, "seed": 0}
    drawn = recipe["in_order"](config | {"steps": 24})
    sizes = [len(row["prompt"][0]["content"]) for row in drawn]
    assert sorted(sizes[:60]) == sorted(sizes[60:]) == list(range(60))  # two passes
    batches = [sizes[i : i + 5] for i in range(0, 120, 5)]
    assert all(max(batch) - min(batch) == 4 for batch in batches)
    assert batches[:12] != sorted(batches[:12]) and batches[:12] != batches[12:]
    assert drawn == recipe["in_order"](config | {"steps": 24})
    assert drawn != recipe["in_order"](config | {"steps": 24, "seed": 1})


@pytest.mark.parametrize(("examples", "batch", "steps"), [(3, 8, 2), (9, 4, 20)])
def test_any_number_of_examples_fills_a_run(recipe, examples, batch, steps):
    config = {"examples": EXAMPLES[:examples], "batch": batch, "steps": steps}
    drawn = recipe["in_order"](config | {"seed": 0})
    assert len(drawn) == batch * steps
    assert all(example in drawn for example in EXAMPLES[:examples])


def test_the_loss_is_that_of_trls_own_trainer(recipe, config):
    done = {}
    for name in ("LeanTrainer", "SFTTrainer"):
        trainer = recipe.get(name, SFTTrainer)
        train = rebound(recipe["train_sft"], recipe | {"LeanTrainer": trainer})
        run = config | {"frozen": 0, "folder": f"{config['folder']}_{name}"}
        done[name] = train(run)
    assert losses(done["LeanTrainer"]) == pytest.approx(
        losses(done["SFTTrainer"]), rel=1e-4
    )
    a, b = (weights(f"{config['folder']}_{name}") for name in done)
    assert all(torch.allclose(a[key], b[key], atol=2e-3) for key in a)


def test_remembering_the_frozen_layers_changes_nothing(recipe, config):
    remembered = recipe["train_sft"](config)
    every_time = type("EveryTime", (recipe["LeanTrainer"],), {"hidden": plain})
    train = rebound(recipe["train_sft"], recipe | {"LeanTrainer": every_time})
    again = train(config | {"folder": config["folder"] + "_again"})
    assert losses(remembered) == pytest.approx(losses(again), rel=1e-4)


def plain(self, core, ids, mask):
    return core(input_ids=ids, attention_mask=mask).last_hidden_state


def rebound(function, scope):
    """The same function, with other names around it."""
    return type(function)(function.__code__, scope, function.__name__)


def test_frozen_layers_keep_their_weights(recipe, config):
    recipe["train_sft"](config)
    layers = {int(re.search(r"layers\.(\d+)", key)[1]) for key in weights_of(config)}
    assert layers == {2, 3}


def weights_of(config):
    return weights(config["folder"])


def test_the_same_seed_gives_the_same_weights(recipe, config):
    one = recipe["train_sft"](config)
    two = recipe["train_sft"](config | {"folder": config["folder"] + "2"})
    other = config | {"folder": config["folder"] + "3", "seed": 1}
    recipe["train_sft"](other)
    assert losses(one) == losses(two)
    a, b, c = (weights(config["folder"] + n) for n in ("", "2", "3"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


# --- the mask ------------------------------------------------------------------------


def test_the_reply_and_its_end_are_learned_and_nothing_else(recipe, config):
    mask = recipe["train_sft"](config)["mask"]
    learned = "".join(text for text, is_it in mask if is_it)
    given = "".join(text for text, is_it in mask if not is_it)
    wanted = {one["completion"][0]["content"] + "<|im_end|>" for one in EXAMPLES}
    assert learned in wanted
    assert given.startswith("<|im_start|>user\n") and "system" not in given
    assert given.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "labels, why",
    [
        ([-100, -100, -100], "masked"),
        ([-100, 5, 6], "ending token"),
        ([4, 5, 2], "question"),
    ],
)
def test_a_wrong_mask_stops_before_the_first_step(labels, why, recipe, tiny):
    tokenizer = models.load_tokenizer(tiny)
    labels = [tokenizer.eos_token_id if x == 2 else x for x in labels]
    rows = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": labels}])
    with pytest.raises(ValueError, match=why):
        recipe["check_mask"](rows, tokenizer)


# --- it resumes ----------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", [2, 5])
def test_interrupted_it_goes_on_and_ends_with_the_same_weights(
    killed_at, recipe, config
):
    whole = recipe["train_sft"](config)
    broken = config | {"folder": config["folder"] + "_broken"}

    class Killed(recipe["Diary"]):
        def on_step_end(self, args, state, control, **more):
            super().on_step_end(args, state, control, **more)
            if state.global_step == killed_at:
                raise KeyboardInterrupt

    train = rebound(recipe["train_sft"], recipe | {"Diary": Killed})
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    resumed = recipe["train_sft"](broken)
    steps = [row["step"] for row in resumed["log"] if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
    a, b = weights(config["folder"]), weights(broken["folder"])
    assert all(torch.equal(a[key], b[key]) for key in a)
    seconds = [row["seconds"] for row in resumed["log"]]
    assert seconds == sorted(seconds)


def test_stopped_at_a_rung_it_goes_on_as_if_it_had_not_been(recipe, config):
    whole = recipe["train_sft"](config)
    staged = config | {"folder": config["folder"] + "_staged", "save_every": 6}
    first = recipe["train_sft"](staged | {"stop_at": 3})
    assert len(losses(first)) == 3 and math.isfinite(first["validation_loss"])
    second = recipe["train_sft"](staged | {"stop_at": 6})
    assert len(losses(second)) == 6
    # To the end of the epoch; then the extra evaluation, which draws random numbers,
    # has dealt the batches anew.
    assert losses(second)[:4] == pytest.approx(losses(whole)[:4], rel=1e-5)


def test_a_finished_run_called_again_learns_no_more(recipe, config):
    one = recipe["train_sft"](config)
    before = weights(config["folder"])
    two = recipe["train_sft"](config)
    assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-5)
    after = weights(config["folder"])
    assert all(torch.equal(before[key], after[key]) for key in before)


# --- on Modal, by its client against the stand-in ------------------------------------


def in_float32(function):
    """The function as it runs where the container has chosen 32 bits, too."""

    def train(config):
        from utils import models

        models.fast_dtype = lambda: "float32"
        return function(config)

    return train


def test_through_modals_client_it_trains_the_same(recipe, config, tmp_path):
    app, volume_path = remote.modal.App("test"), tmp_path / "volume"
    with Standin() as modal_here:
        volume = remote.modal.Volume.from_name("test", create_if_missing=True)
        heavy = recipe["HEAVY"] | {"volumes": {str(volume_path): volume}}
        job = app.function(**heavy)(in_float32(recipe["train_sft"]))
        there = [config | {"folder": f"{volume_path}/{i}", "steps": 2} for i in (0, 1)]
        there[1]["seed"] = 1
        with remote.session(app, "modal") as jobs:
            assert jobs.on_modal
            done = jobs.map(job, there)
            with pytest.raises(FileNotFoundError, match="no model"):
                jobs.run(job, there[0] | {"model": "nowhere", "folder": "x"})
        kept = modal_here.volume("test")
        adapters = [weights(kept / str(i)) for i in (0, 1)]
    assert not modal_here.unknown and not modal_here.errors
    here = [recipe["train_sft"](one | {"folder": str(tmp_path / f"{n}")})
            for n, one in enumerate(there)]  # fmt: skip
    for n in (0, 1):
        assert losses(done[n]) == pytest.approx(losses(here[n]), rel=1e-5)
        mine = weights(tmp_path / f"{n}")
        assert all(torch.allclose(mine[k], adapters[n][k], atol=1e-4) for k in mine)
    assert losses(done[0]) != losses(done[1])
    assert json.loads(json.dumps(done)) == done


def test_the_function_has_the_gpu_and_the_limits_that_the_notebook_states(recipe):
    info = recipe["train_job"].info()
    assert info.gpus == [("L40S", 1)]
    assert info.timeout == 2 * 3600 and info.max_retries == 2
    assert list(info.volumes) == ["/runs"]


def test_the_image_has_what_the_recipe_imports(recipe, config, tmp_path):
    """What a container has loaded after a run comes with what the image installs."""
    app, train = remote.modal.App("test"), recipe["train_sft"]

    def spy(config):
        import sys

        train(config)
        return sorted({name.partition(".")[0] for name in sys.modules})

    with Standin(), remote.session(app, "modal") as jobs:
        job = app.function(image=remote.image(), serialized=True, timeout=120)(spy)
        used = jobs.run(job, config | {"steps": 2})
    owners = importlib.metadata.packages_distributions()
    needed = {owners[name][0].lower() for name in used if name in owners}
    extra = needed - closure([*remote.PACKAGES, "modal"])
    assert "torch" in needed
    # sniffio is used by others where it happens to be there.
    assert extra <= {"beneath-the-api", "sniffio"}, extra


def closure(names):
    """Names of distributions with all that they require here."""
    found, waiting = set(), [name.lower() for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = [re.match(r"[\w.-]+", r)[0] for r in requires if "extra ==" not in r]
        waiting += [name.lower().replace("_", "-") for name in wanted]
    return found | {name.replace("-", "_") for name in found}


# --- short runs on part of the data --------------------------------------------------


@pytest.fixture(scope="module")
def arm():
    """`train_arm` of notebook 04, among the names of the recipe."""
    names = PARAMETERS | {"shutil": shutil}
    return course.borrow("04_train_sft", "recipe", "arm", **names).train_arm


def test_a_short_run_answers_and_keeps_no_weights(arm, recipe, config):
    questions = [pair[0] for pair in PAIRS[:3]]
    done = arm(config | {"questions": questions})
    left = {path.suffix for path in Path(config["folder"]).rglob("*") if path.is_file()}
    assert ".jsonl" in left and not left & {".safetensors", ".bin", ".pt", ".pth"}
    again = recipe["train_sft"](config | {"folder": config["folder"] + "_again"})
    ask = {"adapter": config["folder"] + "_again/adapter", "prompt": "", "alone": 0}
    told = recipe["answer"](config | ask | {"questions": questions})
    assert done["replies"] == [text for text, *_ in told["replies"]]
    assert len(done["replies"]) == 3 and losses(done) == losses(again)


def test_short_runs_with_all_weights_and_through_modals_client(arm, config, tmp_path):
    questions = [pair[0] for pair in PAIRS[:3]]
    every = {"questions": questions, "rank": 0, "frozen": 0, "steps": 2, "rate": 1e-3}
    here = arm(config | every)
    assert len(here["replies"]) == 3 and here["trained_weights"] > 100_000
    assert not list(Path(config["folder"]).rglob("*.safetensors"))
    app, volume_path = remote.modal.App("test"), tmp_path / "volume"
    with Standin() as modal_here:
        volume = remote.modal.Volume.from_name("test", create_if_missing=True)
        heavy = arm.__globals__["HEAVY"] | {"volumes": {str(volume_path): volume}}
        with remote.session(app, "modal") as jobs:
            job = app.function(**heavy)(in_float32(arm))
            there = jobs.run(job, config | every | {"folder": f"{volume_path}/arm"})
        assert not list(modal_here.volume("test").rglob("*.safetensors"))
    assert not modal_here.unknown and not modal_here.errors
    assert there["replies"] == here["replies"]
    assert losses(there) == pytest.approx(losses(here), rel=1e-5)


# --- three hundred lines -------------------------------------------------------------


def test_the_recipe_has_at_most_300_lines():
    notebook, utils = recipe_lines()
    assert 100 < notebook < 220
    assert notebook + utils <= 300
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"recipe has {notebook + utils} lines" in readme


def recipe_lines():
    """Lines of code, without docstrings, comments and blanks: notebook, and utils.

    In utils: what the recipe calls to load, to save and to draw. Not counted is the
    one-off conversion of the laptop's weights, which a model of the Hub does not need.
    """
    cells = course.cells_tagged("04_train_sft", "recipe")
    code = "\n\n".join(cell for cell in cells if "def answer(" not in cell)
    total = sum(len(rows(code, node)) for node in ast.parse(code).body)
    words = set(re.findall(r"\w+", code)) - {"fetch"}
    return total, sum(called(module, words) for module in ("models", "plots"))


def called(module, words):
    source = (ROOT / "utils" / f"{module}.py").read_text()
    kinds = ast.FunctionDef | ast.ClassDef
    known = {n.name: n for n in ast.parse(source).body if isinstance(n, kinds)}
    waiting, seen = [name for name in known if name in words], set()
    while waiting:
        name = waiting.pop()
        if name not in seen | {"_laptop"}:
            seen.add(name)
            inside = {n.id for n in ast.walk(known[name]) if isinstance(n, ast.Name)}
            waiting += [other for other in known if other in inside]
    return sum(len(rows(source, known[name])) for name in seen)


def rows(source, node):
    lines, documented = source.splitlines(), set()
    for one in ast.walk(node):
        kinds = ast.FunctionDef | ast.ClassDef
        if isinstance(one, kinds) and ast.get_docstring(one) is not None:
            first = one.body[0]
            documented |= set(range(first.lineno, first.end_lineno + 1))
    start = min([d.lineno for d in getattr(node, "decorator_list", [])] + [node.lineno])
    return [
        number
        for number in range(start, node.end_lineno + 1)
        if number not in documented
        and lines[number - 1].strip()
        and not lines[number - 1].strip().startswith("#")
    ]

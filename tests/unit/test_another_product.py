"""A third product goes through notebook 12's own cells; none of them knows of it."""

import json
import os
import subprocess
import sys

import pytest
from library import write_logs
from repository import ROOT, clone, code_of, load

pytest.importorskip("torch")
from tiny import tiny_model

NOTEBOOK = "12_your_product"


@pytest.fixture
def carry(tmp_path):
    """Run the notebook in a clone, on the library's logs and a tiny model."""
    tree, logs = clone(tmp_path / "clone"), tmp_path / "logs"
    logs.mkdir()

    def run(**how):
        write_logs(logs, **how)
        model = tiny_model(tmp_path / "tiny")
        product = ROOT / "tests/helpers/library.py"
        copy = tree / "runs/quick" / f"{NOTEBOOK}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "papermill", "-k", "python3"]
        command += ["--no-progress-bar", "-p", "PRODUCT", str(product)]
        command += ["-p", "MODEL", model]
        command += ["--cwd", "notebooks", f"notebooks/{NOTEBOOK}.ipynb", str(copy)]
        settings = {"PYTHONPATH": str(tree), "LIBRARY": str(logs)}
        settings |= {"BENEATH_CACHE": str(tmp_path / "cache")}
        env = os.environ | settings | {"JUPYTER_PREFER_ENV_PATH": "1"}
        how = {"cwd": tree, "env": env, "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=900, **how)
        outputs = [one for cell in code_of(load(copy)) for one in cell.outputs]
        text = "".join(one.text for one in outputs if "text" in one)
        return done, text, copy.with_suffix(".json")

    return run


def test_a_readers_product_is_rehearsed_and_gets_no_number_of_ours(carry):
    done, text, saved = carry()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "library: 80 calls" in text and "By user_id" in text
    assert "Replayed" not in text and "rehearsal" in text and "Verdict: none" in text
    found = json.loads(saved.read_text())["results"]
    assert found["rehearsal"] is True and found["right"]["tuned"][3] == 4
    assert found["steps"]["calls"] - found["steps"]["answered"] == 8
    train, validate, frozen = found["split"]
    assert train > 50 and validate > 5 and frozen > 5


def test_without_right_answers_it_stops_and_says_what_to_do(carry):
    done, _, _ = carry(labelled=False)
    assert done.returncode and "0 calls have a right answer" in done.stderr

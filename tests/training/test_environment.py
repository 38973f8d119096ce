"""The harness as TRL's environment: tools are called, and the last query is paid."""

import json
from pathlib import Path

import trl
from test_rl import RIGHT
from tiny import tiny_model
from trl import GRPOTrainer

from utils import tidewater
from utils.serving.modal_sandbox import UnavailableError
from utils.tidewater import environment
from utils.training import examples, grpo

WRONG = "select count(*) from customers"
QWEN3 = Path(trl.__file__).parent / "chat_templates/qwen3.jinja"


def call(query):
    arguments = {"name": "run_sql", "arguments": {"query": query}}
    return f"<tool_call>\n{json.dumps(arguments)}\n</tool_call>"


# What the four rollouts of a group say; in each turn only those that called a tool.
TURNS = [
    [call(RIGHT), call(WRONG), call("select nil"), "I do not know."],
    ["There it is.", call(RIGHT), call(WRONG)],
    ["Now it is.", "So many."],
]


class Scripted(GRPOTrainer):
    """A trainer whose model says what the script has; all else is TRL's."""

    def _generate_single_turn(self, prompt_ids, *_, **__):
        read.append(self.processing_class.batch_decode(prompt_ids))
        texts = TURNS[len(read) - 1]
        assert len(texts) == len(prompt_ids)
        end = self.processing_class.eos_token
        return [self.processing_class.encode(text + end) for text in texts], None


read = []  # what the model got to read, turn by turn


def test_rollouts_call_tools_and_their_last_query_is_paid(tmp_path):
    case = tidewater.load_cases("practice", 1)
    config = {
        "model_name_or_path": tiny_model(tmp_path / "m", template=QWEN3.read_text()),
        "data": examples.prompts(case),
        "max_steps": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 1024,
        "learning_rate": 1e-2,
        "output_dir": str(tmp_path / "run"),
    }
    reward = grpo.load_reward(environment.__file__, "TidewaterEnvironment")
    log = grpo.train(config, reward, Scripted)["log"]
    assert log[0]["rewards/TidewaterEnvironment/mean"] == 0.5
    assert log[0]["tools/call_frequency"] == 5 / 4
    first, second, third = read
    assert '"name": "run_sql"' in first[0] and "in SQLite's dialect" in first[0]
    answers = [text.split("<tool_response>")[-1] for text in second + third]
    assert json.loads(answers[0].split("</tool_response>")[0])[0][1] == 5.1
    assert "The query failed" in answers[2] and "nil" in answers[2]
    assert log[0]["grad_norm"] > 0


def test_a_rollout_without_a_sandbox_is_ungraded(monkeypatch):
    def fail(*_):
        raise UnavailableError("no sandbox starts")

    one = environment.TidewaterEnvironment()
    one.reset(case=json.dumps(tidewater.load_cases("practice", 1)[0]), prompt=[])
    assert one.get_reward() == 0  # it asked for nothing
    one.run_sql(RIGHT)
    assert one.get_reward() == 1
    monkeypatch.setattr(environment, "grade", fail)
    assert one.get_reward() is None

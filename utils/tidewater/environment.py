"""The harness as the environment of RL, for models that call tools.

TRL's `environment_factory` takes such a class: it calls `reset` with the columns of a
row, then the tools that the model asks for, whose docstrings it reads, and at the end
`get_reward`. The recipe takes it where it takes a reward:

    python grpo.py --reward utils/tidewater/environment.py:TidewaterEnvironment ...
"""

import json
from typing import Any

from utils.serving.modal_sandbox import UnavailableError
from utils.tidewater.sql_tool import SqlTool, grade, open_pool

ROWS = 20  # of a result that the model gets to read


class TidewaterEnvironment:
    """One rollout: the tool of the product, and 1 for the right rows at the end."""

    _tool = SqlTool(open_pool())  # one pool of workers for all rollouts

    def reset(self, case: str, **columns: Any) -> None:
        """Take the case of a row, as JSON, and forget the last rollout."""
        self._case, self._query = json.loads(case), None

    def run_sql(self, query: str) -> str:
        """Run a query on the warehouse and return its first rows, or the error.

        Args:
            query: one SELECT statement in SQLite's dialect.

        """
        self._query = query
        result = self._tool.run({"sql": query})
        if result["error"]:
            return f"The query failed. {result['error']}"
        return json.dumps(result["rows"][:ROWS])

    def get_reward(self) -> float | None:
        """Pay 1 if the last query has the right rows on all three databases.

        Where no sandbox answers, the rollout is ungraded: None, which TRL leaves out.
        """
        if self._query is None:
            return 0.0
        try:
            (verdict,) = grade([self._case], [f"```sql\n{self._query}\n```"])
        except UnavailableError:
            return None
        return float(verdict.correct)

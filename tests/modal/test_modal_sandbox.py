"""Modal Sandboxes by Modal's client, against the local stand-in."""

import json
from types import SimpleNamespace

import pytest
from hostile import HOSTILE
from modal_proto import api_pb2 as pb
from standin_sandboxes import SandboxStandin

from utils import tidewater
from utils.serving import modal_sandbox
from utils.serving.modal_sandbox import ModalPool, UnavailableError
from utils.tidewater.reward import Reward

pytestmark = [pytest.mark.modal, pytest.mark.timeout(600)]
COUNT = "select count(*) from tickets"


@pytest.fixture
def modal_here():
    with SandboxStandin() as server:
        yield server
        assert not server.unknown and not server.errors


def test_it_answers_as_the_pool_here_and_in_few_sandboxes(modal_here, pool):
    jobs = [(name, sql) for name in tidewater.WAREHOUSES for sql in (COUNT, "select x")]
    jobs += [("warehouse", sql) for _, sql, _ in HOSTILE[:40]]
    with ModalPool(tidewater.WAREHOUSES, size=2, batch=9, per_second=50) as far:
        found = far.map(jobs)
        assert far.created == len(modal_here.sandboxes) <= 2
        assert far.run(COUNT).rows == pool.run(COUNT).rows
        with pytest.raises(ValueError, match="no database"):
            far.map([("nowhere", COUNT)])
    here = pool.map(jobs)
    assert [(r.rows, r.error) for r in found] == [(r.rows, r.error) for r in here]
    assert all(one.ended.is_set() for one in modal_here.sandboxes.values())


def test_sandboxes_have_no_network_and_start_no_faster_than_allowed(
    modal_here, monkeypatch
):
    pauses = []
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(modal_sandbox, "time", clock)
    with ModalPool(tidewater.WAREHOUSES, size=4, batch=1, per_second=4) as far:
        far.map([("warehouse", COUNT)] * 12)
    assert len(pauses) == len(modal_here.sandboxes) <= 4
    assert pauses == [0, 0.25, 0.25, 0.25][: len(pauses)]
    for one in modal_here.sandboxes.values():
        access = one.definition.network_access.network_access_type
        assert access == pb.NetworkAccess.NetworkAccessType.BLOCKED
        assert one.definition.timeout_secs == 4 * 3600
        assert not one.definition.secret_ids


def test_refused_creations_are_asked_for_again_and_slower(modal_here):
    modal_here.refuse = 2
    with ModalPool(tidewater.WAREHOUSES, size=1, per_second=50) as far:
        assert far.run(COUNT).error is None
        assert (far.created, far.pause) == (1, 4 / 50)
        far.close()
        modal_here.refuse = 99
        with pytest.raises(UnavailableError, match="too many sandboxes a second"):
            far.run(COUNT)


def test_an_ended_sandbox_is_replaced_and_only_its_culprit_crashes(
    modal_here, monkeypatch
):
    ask = ModalPool._ask

    def mortal(self, sandbox, jobs):
        if any(sql == "poison" for _, sql in jobs):
            sandbox.terminate()
        return ask(self, sandbox, jobs)

    monkeypatch.setattr(ModalPool, "_ask", mortal)
    queries = [COUNT, "poison", COUNT, COUNT]
    with ModalPool(tidewater.WAREHOUSES, size=2, per_second=50) as far:
        found = far.map([("warehouse", sql) for sql in queries])
        assert [one.error for one in found] == [None, "crashed", None, None]
        assert far.created == 3  # the batch, the first alone, after the culprit
        # All that ended between two calls are replaced, and nothing is lost.
        for name in modal_here.sandboxes:
            modal_here.end(name)
        again = far.map([("warehouse", sql) for sql in queries])
        assert [one.error for one in again] == [one.error for one in found]


def test_a_broken_sandbox_is_no_hostile_sql_and_its_replies_are_ungraded(
    modal_here, capsys
):
    modal_here.broken = "worker.py"  # a file that the image should have
    case, told = tidewater.load_cases("eval", 1)[0], {}
    with ModalPool(tidewater.WAREHOUSES, size=1, per_second=50) as far:
        reward = Reward(pool=far)
        paid = reward.scores([case] * 8, [case["sql"]] * 7 + ["drop table x"])
        assert paid == [None] * 8 and reward.ungraded == 8
        assert "cannot import name 'worker'" in capsys.readouterr().out
        reward.scores([case], ["x"])
        with pytest.raises(UnavailableError, match="cannot import"):
            reward.scores([case], ["x"])
        modal_here.broken = None  # mended
        message, text = [{"content": case["sql"]}], json.dumps(case)
        assert reward([message], [text], log_metric=told.__setitem__) == [1.0]
    assert told == {"ungraded": 10} and far.created == 4

"""Metrics through the SDK: while a sandbox runs, in a range, after its end."""

import datetime
import time

from e2b import AsyncSandbox, Sandbox
from support import UNKNOWN_SANDBOX, async_box

MIB = 1 << 20


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def eventually(read, ok, within=30):
    end = time.monotonic() + within
    while not ok(got := read()):
        assert time.monotonic() < end, f"still {got}"
        time.sleep(0.3)
    return got


def test_what_a_sandbox_uses(create):
    box = create()
    box.commands.run("head -c 60M /dev/urandom > /home/user/f; for i in 1 2; do (while :; do :; done) & done; true", background=True)

    def busy(m):
        return m.cpu_used_pct > 5 and m.disk_used > 60 * MIB

    got = eventually(box.get_metrics, lambda all: any(busy(m) for m in all))
    m = next(m for m in got if busy(m))
    assert m.cpu_count > 0 and m.cpu_used_pct <= 100
    assert MIB < m.mem_used <= m.mem_total and m.mem_cache >= 0
    assert m.disk_used <= m.disk_total
    assert abs((now() - m.timestamp).total_seconds()) < 60
    assert [m.timestamp for m in got] == sorted(m.timestamp for m in got)

    minute, hour = datetime.timedelta(minutes=1), datetime.timedelta(hours=1)
    assert Sandbox.get_metrics(box.sandbox_id, end=now() - hour) == []
    assert len(Sandbox.get_metrics(box.sandbox_id, start=now() - minute, end=now())) >= 1


def test_metrics_stay_after_the_end(create):
    box = create()
    box.kill()
    assert len(Sandbox.get_metrics(box.sandbox_id)) >= 1


def test_metrics_of_what_never_was():
    assert Sandbox.get_metrics(UNKNOWN_SANDBOX) == []


async def test_async():
    async with async_box() as box:
        end = time.monotonic() + 30
        while not (got := await box.get_metrics()):
            assert time.monotonic() < end
        assert got[-1].mem_total > 0
        assert await AsyncSandbox.get_metrics(box.sandbox_id) != []

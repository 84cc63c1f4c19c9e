"""Lifecycle through the synchronous API."""

import re
import time
from datetime import datetime, timedelta, timezone

import pytest
from e2b import (
    E2B,
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from support import NEW, UNKNOWN_SANDBOX, WRONG_KEY, seconds, unique

GONE = "sandbox was killed or reached its end of life"


def left(info):
    return (info.end_at - datetime.now(timezone.utc)).total_seconds()


def items(paginator):
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


def ids(infos):
    return [info.sandbox_id for info in infos]


def test_create_without_options():
    box = Sandbox.create()
    try:
        assert re.fullmatch("[a-z0-9]+", box.sandbox_id)
        assert box.is_running() is True
        info = box.get_info()
        assert info.sandbox_id == box.sandbox_id
        assert info.state == SandboxState.RUNNING
        assert info.name == "base"
        assert info.metadata == {}
        assert info.volume_mounts == []
        assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
        assert info.cpu_count >= 1
        assert info.memory_mb >= 128
        assert tuple(int(p) for p in info.envd_version.split(".")) >= (0, 6, 4)
        assert info.sandbox_domain == box.sandbox_domain
        assert abs(datetime.now(timezone.utc) - info.started_at) < timedelta(seconds=15)
        assert seconds(info) == pytest.approx(300, abs=1)
    finally:
        assert box.kill() is True


def test_create_with_options(create):
    metadata = {"owner": "jürgen", "with space": "a&b=c%20", "empty": ""}
    box = create("base", timeout=45, metadata=metadata, envs={"GREETING": "hello world"}, secure=True)
    info = box.get_info()
    assert seconds(info) == pytest.approx(45, abs=1)
    assert info.metadata == metadata
    assert box.commands.run("echo $GREETING").stdout == "hello world\n"


def test_explicit_lifecycle(create):
    box = create(lifecycle={"on_timeout": "kill", "auto_resume": False})
    assert box.get_info().lifecycle == {"on_timeout": "kill", "auto_resume": False}


def test_context_manager():
    with Sandbox.create(timeout=60) as box:
        assert box.is_running() is True
    assert box.is_running() is False
    assert box.kill() is False


def test_connect(box):
    box.files.write("marker", "here")
    other = Sandbox.connect(box.sandbox_id)
    assert other.sandbox_id == box.sandbox_id
    assert other.sandbox_domain == box.sandbox_domain
    assert other.files.read("marker") == "here"
    assert box.connect() is box


def test_connect_only_extends(create):
    box = create(timeout=100)
    before = box.get_info().end_at
    Sandbox.connect(box.sandbox_id, timeout=10)
    assert box.get_info().end_at == before
    box.connect(timeout=500)
    assert left(box.get_info()) == pytest.approx(500, abs=2)
    box.set_timeout(20)
    box.connect()
    assert left(box.get_info()) == pytest.approx(300, abs=2)


def test_set_timeout(create):
    box = create(timeout=60)
    box.set_timeout(600)
    assert left(box.get_info()) == pytest.approx(600, abs=2)
    Sandbox.set_timeout(box.sandbox_id, 30)
    assert left(Sandbox.get_info(box.sandbox_id)) == pytest.approx(30, abs=2)


def test_expiry(eventually):
    box = Sandbox.create(timeout=4)
    born = time.monotonic()
    handle = box.commands.run("sleep 60", background=True)
    time.sleep(max(0.0, 2.7 - (time.monotonic() - born)))
    assert box.is_running() is True, "gone before its time"
    eventually(lambda: not box.is_running(), within=3.5)
    assert time.monotonic() - born == pytest.approx(4, abs=1.3)
    with pytest.raises(TimeoutException, match=GONE):
        handle.wait()
    with pytest.raises(SandboxNotFoundException):
        box.get_info()
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(box.sandbox_id)
    with pytest.raises(SandboxNotFoundException):
        box.set_timeout(60)
    assert box.kill() is False


def test_kill_twice():
    box = Sandbox.create(timeout=60)
    assert box.kill() is True
    assert box.is_running() is False
    assert box.kill() is False
    assert Sandbox.kill(box.sandbox_id) is False
    assert Sandbox.kill(UNKNOWN_SANDBOX) is False


def test_calls_on_a_killed_sandbox():
    box = Sandbox.create(timeout=60)
    box.kill()
    for call in (
        lambda: box.commands.run("true"),
        lambda: box.commands.list(),
        lambda: box.files.read("x"),
        lambda: box.files.write("x", "y"),
        lambda: box.files.list("."),
        lambda: box.files.watch_dir("."),
    ):
        with pytest.raises(TimeoutException, match="The sandbox was not found"):
            call()


@pytest.mark.skipif(not NEW, reason="the older SDK has one class for all of these")
def test_a_killed_sandbox_is_told_from_an_unreachable_one():
    from e2b import SandboxNotRunningException

    box = Sandbox.create(timeout=60)
    box.kill()
    with pytest.raises(SandboxNotRunningException):
        box.commands.run("true")
    with pytest.raises(SandboxNotRunningException):
        box.files.read("x")


def test_unknown_sandbox():
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(UNKNOWN_SANDBOX)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.get_info(UNKNOWN_SANDBOX)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.set_timeout(UNKNOWN_SANDBOX, 10)


def test_unknown_template():
    name = unique("nosuch")
    with pytest.raises(SandboxException, match=f"^404: .*{name}") as caught:
        Sandbox.create(name)
    if NEW:
        assert caught.value.status_code == 404


def test_wrong_key(box):
    for call in (
        lambda: Sandbox.create(api_key=WRONG_KEY),
        lambda: Sandbox.connect(box.sandbox_id, api_key=WRONG_KEY),
        lambda: Sandbox.get_info(box.sandbox_id, api_key=WRONG_KEY),
        lambda: Sandbox.kill(box.sandbox_id, api_key=WRONG_KEY),
        lambda: Sandbox.list(api_key=WRONG_KEY).next_items(),
    ):
        with pytest.raises(AuthenticationException):
            call()
    assert box.is_running() is True


def test_bad_timeouts():
    for timeout in (-5, 400 * 24 * 3600):
        with pytest.raises(SandboxException, match="(?i)^400: .*timeout"):
            Sandbox.create(timeout=timeout)


def test_options_that_are_not_built():
    for field, opts in (
        ("volumeMounts", {"volume_mounts": {"/data": "some-volume"}}),
        ("iam", {"iam": {"tokens": {"aws": {"audience": "sts.example.com", "token_type": "JWT-SVID"}}}}),
        ("rules", {"network": {"rules": {"api.example.com": [{"transform": {"headers": {"X-Key": "v"}}}]}}}),
        ("egressProxy", {"network": {"egress_proxy": {"address": "proxy.example.com:1080"}}}),
    ):
        with pytest.raises(SandboxException, match=f"^400: .*{field}"):
            Sandbox.create(**opts)


def test_get_host(box):
    assert not re.search(r"e2b\.(app|dev|pro)$", box.sandbox_domain)
    assert box.get_host(3000) == f"3000-{box.sandbox_id}.{box.sandbox_domain}"


def test_client_object():
    box = E2B().Sandbox.create(timeout=60)
    try:
        assert box.commands.run("echo ok").stdout == "ok\n"
    finally:
        box.kill()


def test_list_by_metadata(create):
    run = unique()
    first = create(metadata={"run": run, "a b&c": "x&y=z %20+/ü"})
    create(metadata={"run": run, "kind": "b"})
    assert len(items(Sandbox.list(query=SandboxQuery(metadata={"run": run})))) == 2
    found = items(Sandbox.list(query=SandboxQuery(metadata={"a b&c": "x&y=z %20+/ü", "run": run})))
    assert ids(found) == [first.sandbox_id]
    info = first.get_info()
    assert found[0].metadata == info.metadata
    assert found[0].started_at == info.started_at
    assert found[0].end_at == info.end_at
    assert found[0].template_id == info.template_id
    assert items(Sandbox.list(query=SandboxQuery(metadata={"run": run, "kind": "c"}))) == []


def test_list_by_state_and_template(create):
    metadata = {"run": unique()}
    box = create(metadata=metadata)

    def by(**query):
        return ids(items(Sandbox.list(query=SandboxQuery(metadata=metadata, **query))))

    assert by(state=[SandboxState.RUNNING]) == [box.sandbox_id]
    assert by(state=[SandboxState.RUNNING, SandboxState.PAUSED]) == [box.sandbox_id]
    assert by(state=[SandboxState.PAUSED]) == []
    assert by(template="base") == [box.sandbox_id]
    assert by(template=unique("nosuch")) == []


def test_list_order_and_pages(create):
    metadata = {"run": unique()}
    boxes = [create(metadata=metadata) for _ in range(3)]
    oldest_first = [box.sandbox_id for box in boxes]
    query = SandboxQuery(metadata=metadata)
    assert ids(items(Sandbox.list(query=query))) == oldest_first[::-1]
    assert ids(items(Sandbox.list(query=query, order="asc"))) == oldest_first
    pages = Sandbox.list(query=query, order="asc", limit=2)
    assert ids(pages.next_items()) == oldest_first[:2]
    assert pages.has_next is True
    resumed = Sandbox.list(query=query, order="asc", limit=2, next_token=pages.next_token)
    assert ids(pages.next_items()) == oldest_first[2:]
    assert pages.has_next is False
    assert ids(resumed.next_items()) == oldest_first[2:]
    since = SandboxQuery(metadata=metadata, started_after=boxes[1].get_info().started_at)
    assert ids(items(Sandbox.list(query=since, order="asc"))) == oldest_first[1:]


@pytest.mark.skipif(not NEW, reason="idempotency keys came later")
def test_create_is_repeated_with_a_key(create):
    key = unique("key").lower().replace("_", "-")
    first = create(idempotency_key=key, metadata={"of": key})
    again = create(idempotency_key=key, metadata={"of": key})
    assert again.sandbox_id == first.sandbox_id
    assert again.commands.run("echo hi").stdout == "hi\n"
    assert create(idempotency_key=key + "-b", metadata={"of": key}).sandbox_id != first.sandbox_id
    with pytest.raises(SandboxException, match="(?i)idempotency"):
        create(idempotency_key=key, metadata={"of": "another"})

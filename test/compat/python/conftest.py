"""What every program here shares: sandboxes that are always killed again, a
time limit per test, and tests that are coroutines.

Configuration is what a user of the SDK would set: E2B_API_KEY, E2B_API_URL and
E2B_SANDBOX_URL.
"""

import asyncio
import inspect
import os
import signal
import time

import pytest
from e2b import Sandbox

TEST_LIMIT = 60  # seconds per test


def pytest_configure(config):
    missing = [n for n in ("E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL") if not os.environ.get(n)]
    if missing and not config.option.collectonly:
        raise pytest.UsageError(f"{', '.join(missing)} must be set")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    def expired(signum, frame):
        raise TimeoutError(f"{item.name} took more than {TEST_LIMIT} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(TEST_LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    args = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**args))
    return True


@pytest.fixture
def create():
    """Makes sandboxes and kills them when the test ends."""
    made = []

    def make(*args, **opts):
        opts.setdefault("timeout", 120)
        made.append(Sandbox.create(*args, **opts))
        return made[-1]

    yield make
    for box in made:
        box.kill()


@pytest.fixture
def box(create):
    """A sandbox of the base template."""
    return create()


@pytest.fixture
def eventually():
    """Calls a probe until it returns something truthy."""

    def wait(probe, within=5.0, every=0.1):
        deadline = time.monotonic() + within
        while True:
            value = probe()
            if value:
                return value
            assert time.monotonic() < deadline, f"condition not reached within {within} s"
            time.sleep(every)

    return wait

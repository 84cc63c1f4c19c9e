"""Names that the test modules share; needs no sandbox."""

import os
import secrets
from contextlib import asynccontextmanager
from importlib.metadata import version

from e2b import AsyncSandbox

UNKNOWN_SANDBOX = "i0000000000000000dead"
WRONG_KEY = "e2b_" + "0" * 40
API_URL = os.environ.get("E2B_API_URL", "").rstrip("/")
SANDBOX_URL = os.environ.get("E2B_SANDBOX_URL", "").rstrip("/")

SDK = tuple(int(part) for part in version("e2b").split(".")[:2])
# The first generation that creates through the second version of the API.
NEW = SDK >= (2, 51)


def unique(prefix="compat"):
    return f"{prefix}-{secrets.token_hex(6)}"


def seconds(info):
    return (info.end_at - info.started_at).total_seconds()


@asynccontextmanager
async def async_box(**opts):
    """An asynchronous sandbox that is killed at the end."""
    opts.setdefault("timeout", 120)
    box = await AsyncSandbox.create(**opts)
    try:
        yield box
    finally:
        await box.kill()

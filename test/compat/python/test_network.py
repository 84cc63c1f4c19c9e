"""Egress options through the SDK; no test needs the internet."""

import pytest
from e2b import ALL_TRAFFIC, CommandExitException, Sandbox, SandboxException, SandboxNotFoundException
from support import UNKNOWN_SANDBOX


def rules(box):
    network = box.get_info().network or {}
    return network.get("allow_out") or [], network.get("deny_out") or []


def test_allow_internet_access(create):
    assert create(allow_internet_access=False).get_info().allow_internet_access is False


def test_rules_at_create(create):
    box = create(network={"allow_out": ["api.example.com", "*.example.org", "203.0.113.0/24"], "deny_out": [ALL_TRAFFIC]})
    assert rules(box) == (["api.example.com", "*.example.org", "203.0.113.0/24"], ["0.0.0.0/0"])


def test_rules_as_functions(create):
    box = create(network={"allow_out": lambda ctx: ["203.0.113.7"], "deny_out": lambda ctx: [ctx.all_traffic]})
    assert rules(box) == (["203.0.113.7"], ["0.0.0.0/0"])


def test_update_network(create):
    box = create(network={"allow_out": ["203.0.113.7"], "deny_out": [ALL_TRAFFIC]})
    box.update_network({"deny_out": ["198.51.100.0/24"]})
    assert rules(box) == ([], ["198.51.100.0/24"])
    Sandbox.update_network(box.sandbox_id, {"allow_out": ["pypi.org"], "deny_out": [ALL_TRAFFIC]})
    assert rules(box) == (["pypi.org"], ["0.0.0.0/0"])
    box.update_network({})
    assert rules(box) == ([], [])


def test_bad_rules(create):
    box = create(network={"deny_out": ["198.51.100.0/24"]})
    for network in ({"deny_out": ["example.com"]}, {"deny_out": ["10.0.0.0/99"]}, {"allow_out": ["not a domain"], "deny_out": [ALL_TRAFFIC]}):
        with pytest.raises(SandboxException, match="^400: "):
            box.update_network(network)
        with pytest.raises(SandboxException, match="^400: "):
            Sandbox.create(network=network)
    assert rules(box) == ([], ["198.51.100.0/24"])


def test_unknown_sandbox():
    with pytest.raises(SandboxNotFoundException):
        Sandbox.update_network(UNKNOWN_SANDBOX, {})


def test_closed(create):
    box = create(allow_internet_access=False)
    for command in (
        "curl -sS -m 5 https://example.com",
        "curl -sS -m 5 http://169.254.169.254/",
        "curl -sS -m 5 http://1.1.1.1/",
        "getent hosts exfiltrate.example.com",
    ):
        with pytest.raises(CommandExitException):
            box.commands.run(command)

"""Options that contradict each other, and variables that are none."""

from __future__ import annotations

import pytest

from bitactor.errors import ConfigurationError
from mesh.runtime.settings import settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITACTOR_STORE", "BITACTOR_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


def test_who_does_not_host_needs_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="who should run the steps"):
        settings(hosts=False)
    assert not settings(hosts=False, registry="ipc:///somewhere/registry").hosts
    monkeypatch.setenv("BITACTOR_HOSTS", "false")
    with pytest.raises(ConfigurationError, match="who should run the steps"):
        settings()


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITACTOR_STOER", "sqlite:///pulses.db")
    with pytest.raises(ConfigurationError, match=r"BITACTOR_STOER.*Did you mean 'BITACTOR_STORE'"):
        settings()
    monkeypatch.delenv("BITACTOR_STOER")
    monkeypatch.setenv("bitactor_drian", "3")
    with pytest.raises(ConfigurationError, match="bitactor_drian"):
        settings()


def test_variables_in_any_case_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("bitactor_drain", "3")
    assert settings().drain == 3


@pytest.mark.parametrize(
    "name",
    [
        "BITACTOR_SERVICE_HOST", "BITACTOR_SERVICE_PORT", "BITACTOR_SERVICE_PORT_HTTP", "BITACTOR_PORT",
        "BITACTOR_PORT_8000_TCP", "BITACTOR_PORT_8000_TCP_ADDR", "BITACTOR_REGISTRY_SERVICE_HOST",
        "BITACTOR_REGISTRY_PORT_7400_TCP_PROTO",
    ],
)  # fmt: skip
def test_what_kubernetes_says_of_a_service_of_that_name_is_no_option(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.7:8000")
    assert settings().store == "memory://"

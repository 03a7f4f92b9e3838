"""Sinks, which are told about pulses after these are kept, best effort.  One file per sink; `open_sink` knows them by
URL, and `register_sink` adds a scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from bitactor.errors import ConfigurationError, suggest
from bitactor.ports import Sink
from mesh.sinks.jsonl import JsonlSink
from mesh.sinks.live import LiveSink, Subscription
from mesh.sinks.otel.context import hop_context
from mesh.sinks.otel.sink import OtelSink
from mesh.sinks.relay import RelayStatistics, SinkRelay

__all__ = [
    "JsonlSink", "LiveSink", "OtelSink", "RelayStatistics", "SinkRelay", "Subscription", "hop_context", "open_sink",
    "register_sink",
]  # fmt: skip


def register_sink(scheme: str, opener: Callable[[SplitResult, Mapping[str, str]], Sink]) -> None:
    """Let URLs of this scheme name a sink from now on, opened by `opener(parts, options)`: the URL taken apart, and its
    query."""
    _OPENERS[scheme] = opener


def open_sink(url: str) -> Sink:
    """The sink a URL names:

    - `otel://` (as OTEL_EXPORTER_OTLP_* say), `otel://collector:4318`, `otel+https://collector`, each with
      `?service_name=…`
    - `jsonl://-` (standard output), `jsonl:///pulses.jsonl` (here), `jsonl:////var/log/pulses.jsonl` (absolute)
    - `live://`

    Raises:
        ConfigurationError: no such sink, or an option it does not have.
        OSError: the file cannot be opened.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no sink's URL: {error}") from None
    if parts.scheme in ("http", "https"):
        scheme = "otel" if parts.scheme == "http" else "otel+https"
        raise ConfigurationError(f"{url!r} names no sink; for a collector there, write {scheme}://{parts.netloc}")
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        hint = suggest(parts.scheme, _OPENERS)
        raise ConfigurationError(
            f"no sink is called {parts.scheme or url!r}.{hint} Write it like otel://collector:4318"
        )
    return opener(parts, options)


def _open_otel(parts: SplitResult, options: Mapping[str, str]) -> Sink:
    _refuse_others(options, "service_name")
    scheme = "https" if parts.scheme.endswith("+https") else "http"
    endpoint = f"{scheme}://{parts.netloc}{parts.path}" if parts.netloc else None
    return OtelSink(endpoint, service_name=options.get("service_name"))


def _open_jsonl(parts: SplitResult, options: Mapping[str, str]) -> Sink:
    _refuse_others(options)
    if parts.netloc == "-" and not parts.path:
        return JsonlSink("-")
    if parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            f"{parts.geturl()!r} names no file; write jsonl:///pulses.jsonl, or jsonl://- for the output"
        )
    return JsonlSink(parts.path[1:])


def _open_live(parts: SplitResult, options: Mapping[str, str]) -> Sink:
    _refuse_others(options)
    return LiveSink()


def _refuse_others(options: Mapping[str, str], *known: str) -> None:
    for name in options:
        if name not in known:
            raise ConfigurationError(f"this sink has no option {name!r}.{suggest(name, known)}")


_OPENERS: Final[dict[str, Callable[[SplitResult, Mapping[str, str]], Sink]]] = {
    "otel": _open_otel,
    "otel+http": _open_otel,
    "otel+https": _open_otel,
    "jsonl": _open_jsonl,
    "live": _open_live,
}

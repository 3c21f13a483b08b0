"""Checking the content of a configuration file, and filling in what it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proxy.config.errors import HIDDEN, MISSING, ConfigError, ConfigProblem
from proxy.config.hints import ignored_keys, unsupported
from proxy.config.keys import is_secret, what_is_allowed
from proxy.config.rules import SECTION_OF_MODE, between_keys, name_without
from proxy.config.schema import Config, Peer, Timeouts


def parse_config(raw: Mapping[str, object], *, source: Path | None = None) -> Config:
    """Check the content of a configuration file and fill in defaults and fallbacks.

    `source` only names the file in errors. Raises ConfigError with every problem at once.
    """
    warnings = tuple(ignored_keys(raw, Config, ""))
    config, problems = _validate(raw)
    problems += between_keys(raw)
    if config is None or problems:
        raise ConfigError(source, problems, warnings=warnings)
    return _with_fallbacks(config).with_remarks(warnings, tuple(unsupported(raw)))


def _validate(raw: Mapping[str, object]) -> tuple[Config | None, list[ConfigProblem]]:
    # The other mode's section, left as an empty object, is as good as absent.
    needed = SECTION_OF_MODE.get(str(raw.get("proxyMode")))
    empty = {key for key in SECTION_OF_MODE.values() if key != needed and raw.get(key) == {}}
    try:
        return Config.model_validate({key: value for key, value in raw.items() if key not in empty}), []
    except ValidationError as error:
        return None, [_translated(detail) for detail in error.errors(include_url=False)]


def _translated(detail: Mapping[str, Any]) -> ConfigProblem:
    location = detail["loc"]
    missing = detail["type"] == "missing"
    hidden = not missing and is_secret(location)
    return ConfigProblem(
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix("."),
        MISSING if missing else HIDDEN if hidden else detail["input"],
        what_is_allowed(location) if missing else detail["msg"],
    )


def _with_fallbacks(config: Config) -> Config:
    if config.dimse is None:
        return config
    shared = {
        "local_aet": config.dimse.proxy_server.aet,
        "max_associations": config.max_associations,
        "use_cget": config.use_cget,
    }
    names = Counter(peer.name or peer.aet for peer in config.dimse.peers)
    peers = tuple(_completed(peer, shared, config.dimse.timeouts, names) for peer in config.dimse.peers)
    dimse = config.dimse.model_copy(update={"peers": peers})
    return config.model_copy(update={"dimse": dimse, "store_to": config.store_to or peers[0].name})


def _completed(peer: Peer, shared: Mapping[str, object], timeouts: Timeouts, names: Mapping[str, int]) -> Peer:
    fallbacks = {"name": name_without(peer.aet, peer.ip, str(peer.port), names), **shared}
    update = {name: value for name, value in fallbacks.items() if name not in peer.model_fields_set}
    own = {name: getattr(peer.timeouts, name) for name in peer.timeouts.model_fields_set}
    return peer.model_copy(update={**update, "timeouts": timeouts.model_copy(update=own)})

"""Say at once that the model hub cannot be reached, instead of after half a minute of retries."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlparse

from twinrun.errors import ConfigError, MissingBackendError, near_names
from twinrun.models.builtin_names import builtin_names

CONNECT_SECONDS = 5.0


def check_reachable(name: str, revision: str | None = None) -> None:
    """Return if a hub model is in the local cache or the hub answers; behind a proxy nothing is checked.

    Raises:
        ConfigError: `name` cannot be the name of a hub model, or is a bare word and the hub cannot be reached.
        MissingBackendError: an owner/name that is not cached, and the hub cannot be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    hint = near_names(name, [f"builtin:{n}" for n in builtin_names()])
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise ConfigError(
            f"no model named {name!r}: not a built-in, not a folder, no hub name.{hint} "
            "`twinrun models` lists the built-ins"
        ) from error
    if isinstance(cached, str) or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    missing = _unreachable(name, hint)
    if constants.HF_HUB_OFFLINE:
        raise missing
    host = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((str(host.hostname), host.port or 443), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise missing from error


def _unreachable(name: str, hint: str) -> Exception:
    """A bare word is most likely a mistyped local name (exit 2); owner/name needs the hub (exit 3)."""
    if "/" in name:
        return MissingBackendError(
            f"{name} is neither a built-in nor a folder, and the model hub cannot be reached from here.{hint}"
        )
    return ConfigError(
        f"no model named {name!r}: not a built-in, not a folder, and the model hub cannot be reached from "
        f"here.{hint} `twinrun models` lists the built-ins"
    )

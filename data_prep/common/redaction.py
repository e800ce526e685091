"""Remove secrets from text before it is printed or stored: passwords and signatures in URLs, keys in the environment.

Only a request uses a URL as the user typed it; everything else uses the result of `redacted`. So the files that this
project writes hold no credentials, and a command that needs them takes them from its own command line.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from typing import Any, NewType
from urllib.parse import unquote

# A text without secrets. Functions that store or record a URL, a command or an error require this type.
Redacted = NewType("Redacted", str)

MASK = "***"
# Matches scheme://USER:PASSWORD@host, also if the password holds a slash that should have been written as %2F. Does not
# match hf://datasets/name@revision and https://host:8080/a@b, which hold no credentials.
_USER = re.compile(r"""(?<=://)(?:[^/?#\s]*@|[^/?#\s:@]*:(?!\d{1,5}(?:[/?#\s"'<>]|$))\S*@)""")
_PARAMETER = re.compile(r"""([?&;#])([^=&;?#\s"'<>]+)=([^&;#\s"'<>]*)""")
# Matches names of secret query parameters, in lower case and without - and _: X-Amz-Signature, X-Goog-Credential,
# AWSAccessKeyId, access_token, sig (Azure), Key-Pair-Id and Policy (CloudFront), key, apikey and others like these.
_SECRET_NAME = re.compile(
    r".*(signature|credentials?|token|secret|password|passwd|apikey|accesskey|accesskeyid|secretkey|keypairid)"
    r"|sig|key|auth|authorization|pwd|pass|policy|session|jwt|code"
)
_SECRET_VARIABLE = re.compile(r"(.*_)?(KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)")
_SHORTEST = 8  # characters; a shorter value of a variable may be part of ordinary words and is not replaced


def without_credentials(text: str) -> Redacted:
    """Remove user names, passwords, signatures and tokens from the URLs in a text."""
    return Redacted(_PARAMETER.sub(_masked, _USER.sub(f"{MASK}@", text)) if "://" in text else text)


def without_credentials_within(value: Any) -> Any:
    """Apply `without_credentials` to each text in nested mappings and lists, such as a record or a configuration."""
    if isinstance(value, dict):
        return {key: without_credentials_within(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_credentials_within(one) for one in value]
    return str(without_credentials(value)) if isinstance(value, str) else value


def redacted(text: object) -> Redacted:
    """Remove credentials, and secret values of the environment, from a text such as a library's error or a command."""
    masked = _PARAMETER.sub(_masked, _USER.sub(f"{MASK}@", str(text)))
    for secret in _secrets_of_environment():
        masked = masked.replace(secret, MASK)
    return Redacted(masked)


def _masked(parameter: re.Match[str]) -> str:
    mark, name, _ = parameter.groups()
    plain = re.sub(r"[-_.]", "", unquote(name)).lower()
    return f"{mark}{name}={MASK}" if _SECRET_NAME.fullmatch(plain) else parameter[0]


def _secrets_of_environment() -> list[str]:
    """The values of variables such as AWS_SECRET_ACCESS_KEY, WANDB_API_KEY, HF_TOKEN, longest first."""
    values = {value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name.upper())}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def redact_what_is_reported() -> None:
    """Make this process print all tracebacks and log messages of libraries without secrets."""
    sys.excepthook = _print_exception
    threading.excepthook = lambda raised: _print_exception(raised.exc_type, raised.exc_value, raised.exc_traceback)
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = make(*arguments, **named)
        try:
            message = made.getMessage()
        except Exception:  # an error in the library's log call, which logging itself reports
            return made
        if (shown := redacted(message)) != message:
            made.msg, made.args = shown, ()
        return made

    setattr(record, "redacts", True)  # noqa: B010
    logging.setLogRecordFactory(record)


def _print_exception(kind: Any, error: Any, trace: Any) -> None:
    if kind is not SystemExit:  # a thread that raises SystemExit ends without a message
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
        sys.stderr.flush()

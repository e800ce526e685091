"""What is printed or stored holds no secrets: no passwords and signatures of URLs, no keys of the environment.

A request needs the URL as it was typed; everything else takes what `redacted` makes of it. So no file of this project
can give credentials back: a command that must ask again takes them from what was typed that time.
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

# A text without secrets. What stores or records a URL, a command or an error asks for this type.
Redacted = NewType("Redacted", str)

MASK = "***"
# scheme://USER:PASSWORD@host, also if the password holds a slash that should have been written as %2F.
# hf://datasets/name@revision and https://host:8080/a@b hold none.
_USER = re.compile(r"""(?<=://)(?:[^/?#\s]*@|[^/?#\s:@]*:(?!\d{1,5}(?:[/?#\s"'<>]|$))\S*@)""")
_PARAMETER = re.compile(r"""([?&;#])([^=&;?#\s"'<>]+)=([^&;#\s"'<>]*)""")
# Names of query parameters, in small letters and without - and _, that are or end in one of these: X-Amz-Signature,
# X-Goog-Credential, AWSAccessKeyId, access_token, sig (Azure), Key-Pair-Id and Policy (CloudFront), key, apikey.
_SECRET_NAME = re.compile(
    r".*(signature|credentials?|token|secret|password|passwd|apikey|accesskey|accesskeyid|secretkey|keypairid)"
    r"|sig|key|auth|authorization|pwd|pass|policy|session|jwt|code"
)
_SECRET_VARIABLE = re.compile(r"(.*_)?(KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)")
_SHORTEST = 8  # characters of a variable's value that is looked for; a shorter one is part of many a word


def without_credentials(text: str) -> Redacted:
    """A URL, or a text with URLs in it, without user names, passwords, signatures and tokens."""
    return Redacted(_PARAMETER.sub(_masked, _USER.sub(f"{MASK}@", text)) if "://" in text else text)


def without_credentials_within(value: Any) -> Any:
    """Nested mappings and lists, such as a record or a configuration, with `without_credentials` of each text."""
    if isinstance(value, dict):
        return {key: without_credentials_within(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_credentials_within(one) for one in value]
    return str(without_credentials(value)) if isinstance(value, str) else value


def redacted(text: object) -> Redacted:
    """Any text, such as a library's error or a command, without credentials and the keys of the environment."""
    masked = _PARAMETER.sub(_masked, _USER.sub(f"{MASK}@", str(text)))
    for secret in _secrets_of_environment():
        masked = masked.replace(secret, MASK)
    return Redacted(masked)


def _masked(parameter: re.Match[str]) -> str:
    mark, name, _ = parameter.groups()
    plain = re.sub(r"[-_.]", "", unquote(name)).lower()
    return f"{mark}{name}={MASK}" if _SECRET_NAME.fullmatch(plain) else parameter[0]


def _secrets_of_environment() -> list[str]:
    """The values of variables such as AWS_SECRET_ACCESS_KEY, WANDB_API_KEY, HF_TOKEN; the longest first."""
    values = {value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name.upper())}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def redact_what_is_reported() -> None:
    """From here on, tracebacks of this process and what libraries log are printed without secrets."""
    sys.excepthook = _print_exception
    threading.excepthook = lambda raised: _print_exception(raised.exc_type, raised.exc_value, raised.exc_traceback)
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = make(*arguments, **named)
        try:
            message = made.getMessage()
        except Exception:  # the library's own slip, which logging reports
            return made
        if (shown := redacted(message)) != message:
            made.msg, made.args = shown, ()
        return made

    setattr(record, "redacts", True)  # noqa: B010
    logging.setLogRecordFactory(record)


def _print_exception(kind: Any, error: Any, trace: Any) -> None:
    if kind is not SystemExit:  # of a thread, which ends without a word
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
        sys.stderr.flush()

"""A text without what should not be made public: user names, home folders, hosts, addresses, tokens."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping

_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|sk-[\w-]{12,}"
    r"|xox[abpr]-[\w-]{8,}|AKIA[A-Z0-9]{12,}|[0-9a-f]{40}(?:[0-9a-f]{24})?)\b"
)
_HOMES = re.compile(r"(/home|/Users|/u|/users|/export/home|[A-Za-z]:\\Users)([/\\])([^/\\\s:\"',;]+)")
_ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(?![.\d])")
_CREDENTIALS = re.compile(r"(\w+://)[^/\s@]+@")
_URL = re.compile(r"(\w+://(?:<credentials>@)?)([^/\s:@\"']+)")
_PUBLIC = (
    "huggingface.co",
    "hf-mirror.com",
    "github.com",
    "pytorch.org",
    "python.org",
    "nvidia.com",
)
_ADDRESSES = re.compile(r"\b(MASTER_ADDR|\w*_PROXY|\w*_HOST)=(\S+)", re.IGNORECASE)
_UUID = re.compile(
    r"\b((?:GPU|MIG)-[0-9a-f]{4})[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
)


def redacted(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text with this user, this host, home folders, addresses, tokens and GPU serials taken out."""
    environ = os.environ if environ is None else environ
    text = _TOKENS.sub("<token>", text)
    text = _CREDENTIALS.sub(r"\1<credentials>@", text)
    text = _UUID.sub(r"\1…", text)
    text = _URL.sub(lambda url: url[0] if url[2].endswith(_PUBLIC) else f"{url[1]}<host>", text)
    text = _ADDRESSES.sub(r"\1=<host>", text)
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    if len(home.rstrip("/\\")) > 1:
        text = text.replace(home.rstrip("/\\"), "~")
    text = _HOMES.sub(r"\1\2<user>", text)
    text = _ADDRESS.sub("<address>", text)
    for word, name in _names(environ):
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", name, text)
    return text


def _names(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    try:
        user = environ.get("USER") or environ.get("USERNAME") or getpass.getuser()
    except (OSError, KeyError):
        user = ""
    host = environ.get("HOSTNAME") or socket.gethostname()
    found = [(host, "<host>"), (host.partition(".")[0], "<host>"), (user, "<user>")]
    # Names that are words in themselves would take the report apart.
    return [
        (word, name) for word, name in found if len(word) > 2 and word not in ("root", "user", "localhost")
    ]

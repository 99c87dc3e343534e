"""Passwords, tokens and signatures in URLs: found by one rule, whether to refuse a URL or to show a text."""

import re

# Anywhere in the name of a query's key, and those that are too short for that, as a word of it.
LONG = "password|passwd|token|secret|signature|api_?key|credential"
SHORT = "sig|pwd|auth"
# Of these, digits between the host's colon and a slash are a port, and an @ further on is part of the path.
# Elsewhere they may begin a password: a database's holds slashes, as SQLAlchemy reads it, a store's key too.
_PORT = r"(?:https?|s?ftp|ssh|smb|(?:web)?hdfs)://[^\s/:]*:\d{1,5}/"
_PASSWORDS = [
    # A name may hold an @ (Azure's me@server).
    (re.compile(rf"(?i)((?<![\w+.-])(?!{_PORT})[\w+.-]+://[^\s/:]*:)\S+@"), r"\1***@"),
    # A name alone is a token to a web server; elsewhere (sftp, abfs, postgresql) it is just a name.
    (re.compile(r"(?i)(https?://)[^\s/:]+@"), r"\1***@"),
]
_KEYS = rf"[^\s=&]*(?:{LONG})[^\s=&]*|(?:[^\s=&]*[-_.])?(?:{SHORT})(?:[-_.][^\s=&]*)?"
_QUERIES = [(re.compile(rf"(?i)([?&](?:{_KEYS})=)[^\s&'\"]+"), r"\1***")]


def redact(text: str) -> str:
    """Return the text with every password and token of a URL in it replaced by ***."""
    for pattern, shown in _PASSWORDS + _QUERIES:
        text = pattern.sub(shown, text)
    return text


def holds_password(url: str) -> bool:
    """Return whether a URL has a password, or a name that is one, before its host."""
    return any(pattern.search(url) for pattern, _ in _PASSWORDS)


def holds_secret(url: str) -> bool:
    """Return whether a URL has a password, or anything else that `redact` masks."""
    return redact(url) != url

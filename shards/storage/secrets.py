"""Passwords, tokens and signatures in URLs: found by one rule, whether to refuse a URL or to show a text."""

import re

# Anywhere in the name of a query's key, and those that are too short for that, as a word of it.
LONG = "password|passwd|token|secret|signature|api_?key|credential"
SHORT = "sig|pwd|auth"
_PASSWORDS = [
    # A password may hold slashes, as SQLAlchemy reads it; a port before a path with an @ in it is none.
    (re.compile(r"(\w://[^\s/:@]*:)(?!\d{1,5}/)\S+@"), r"\1***@"),
    # A name alone is a token to a web server; elsewhere (sftp, abfs, postgresql) it is just a name.
    (re.compile(r"(?i)(https?://)[^\s/:@]+@"), r"\1***@"),
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

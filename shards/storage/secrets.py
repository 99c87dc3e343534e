"""Passwords, tokens and signatures in URLs: found by one rule, whether to refuse a URL or to show a text."""

import re

# Anywhere in the name of a query's key, and those that are too short for that, as a word of it.
LONG = "password|passwd|token|secret|signature|api_?key|credential"
SHORT = "sig|pwd|auth"
_USER = r"(?<![\w+.-])[\w+.-]+://[^\s/:]*:"
# Of these, digits between the host's colon and a slash are a port, and an @ further on is part of the path.
# Elsewhere they may begin a password: a database's holds slashes, as SQLAlchemy reads it, a store's key too.
_WEB = r"(?:https?|s?ftp|ssh|smb|(?:web)?hdfs)://[^\s/:]*:"
_PORT = r"\d{1,5}(?:/|[^\w\s/]*(?:\s|$))"
# A password with blanks. After it comes what tells its host from a mail address in prose: a path or a port,
# or the end, if what begins with the URL is a value of its own.
_WORDS = r"(?:(?!://)[^\s@])+[^\S\n](?:(?!://)[^@\n])*@(?:[^\s@]*@)*"
_HOST = r"(?=(?:\[[^\s\]]*\]|[^\s/@:?]*)(?:[/?]|:\d))"
_VALUE, _END = r"(?:(?<![^='\"])|(?<=: ))", r"(?=[^\s@]*$)"
_PASSWORDS = [
    # A name may hold an @ (Azure's me@server).
    (re.compile(rf"(?i)((?!{_WEB}\d{{1,5}}/){_USER})\S+@"), r"\1***@"),
    (re.compile(rf"(?i)((?!{_WEB}{_PORT}){_USER}){_WORDS}{_HOST}"), r"\1***@"),
    (re.compile(rf"(?im)({_VALUE}{_USER})(?!{_PORT}){_WORDS}{_END}"), r"\1***@"),
    # A name alone is a token to a web server; elsewhere (sftp, abfs, postgresql) it is just a name.
    (re.compile(r"(?i)(https?://)[^\s/:]+@"), r"\1***@"),
]
_KEYS = rf"[^\s=&]*(?:{LONG})[^\s=&]*|(?:[^\s=&]*[-_.])?(?:{SHORT})(?:[-_.][^\s=&]*)?"
# A quote may be part of a secret: it ends one only where it was opened before the URL, or the text goes on
# without it.
_QUOTED = r"(?P<quote>['\"])(?=[^\s'\"?]*\?)(?:(?!(?P=quote)(?:[\s,;:)\]}>]|$))\S)*"
_LAST = r"['\"][\])}>,.;:'\"]*(?:\s|$)"
_QUERY = rf"(?P<key>[?&](?:{_KEYS})=)(?:(?!{_LAST})[^\s&])+"
# ODBC's connection string, as it is or encoded; what holds a ; is in braces there.
_GAP = r"(?: |\+|%20)*"
_FIELD = rf"(?:;|%3B|odbc_connect=){_GAP}[\w.-]*(?:{LONG}|pwd)[\w.-]*{_GAP}(?:=|%3D){_GAP}"
_BRACES = r"\{(?:[^}\n]|\}\})*\}|%7B(?:(?!%7D)\S|%7D%7D)*%7D"
_CONTENT = rf"(?:{_BRACES}|(?:(?!;|%3B|&|{_LAST})(?:\S| (?=[^;=\n]*;[\w ]+=)))+)"


def _masked(found: re.Match[str]) -> str:
    if found["key"] is not None:
        return f"{found['key']}***"
    return re.sub(rf"(?i){_QUERY}", r"\g<key>***", found[0])


_QUERIES = [
    (re.compile(rf"(?i){_QUOTED}|{_QUERY}"), _masked),
    (re.compile(rf"(?i)({_FIELD}){_CONTENT}"), r"\1***"),
]


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

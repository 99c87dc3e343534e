"""Every form in which a URL may carry a secret is masked and refused, and nothing else is."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.errors import BadInput
from shards.storage.remote import check_url
from shards.storage.secrets import holds_secret, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:sentinel@host:5000", "http://me:***@host:5000"),
        ("http://:sentinel@host", "http://:***@host"),
        ("postgresql+psycopg://me:a:sentinel@h/db", "postgresql+psycopg://me:***@h/db"),
        ("mysql+pymysql://u:pa/sentinel@host/db", "mysql+pymysql://u:***@host/db"),
        ("mysql+pymysql://u:p@sentinel@host/db", "mysql+pymysql://u:***@host/db"),
        # As Azure names its users; a web server's name may be a token.
        ("postgresql://me@server:sentinel@host/db", None),
        ("https://me@corp.com:sentinel@host/x", "https://***@corp.com:***@host/x"),
        # These begin like a port.
        ("mysql://u:1234/sentinel@h/db", "mysql://u:***@h/db"),
        ("mysql://me@server:1/sentinel@h", "mysql://me@server:***@h"),
        ("s3://KEY:12345/sentinel@bucket/x", "s3://KEY:***@bucket/x"),
        ("https://me:12345sentinel@host/x", "https://me:***@host/x"),
        ("https://sentinel@host/x", "https://***@host/x"),
        ("https://me@sentinel@host/x", "https://***@host/x"),
        ("HTTPS://sentinel@host/x", "HTTPS://***@host/x"),
        ("https://a.blob.core.windows.net/x?sv=1&sig=sentinel&se=2", None),
        ("https://host/x?auth=sentinel", "https://host/x?auth=***"),
        ("https://host/x?user=me&pwd=sentinel", "https://host/x?user=me&pwd=***"),
        ("https://b.s3.amazonaws.com/x?AWSAccessKeyId=A&Signature=sentinel", None),
        ("https://b.s3.amazonaws.com/x?X-Amz-Signature=sentinel", None),
        ("https://host/x?access_token=sentinel", "https://host/x?access_token=***"),
        ("https://host/x?auth_code=sentinel", "https://host/x?auth_code=***"),
        ("postgresql://h/db?user=me&password=sentinel", "postgresql://h/db?user=me&password=***"),
    ],
)
def test_a_secret_is_masked_and_refused(url, shown):
    assert "sentinel" not in redact(url) and holds_secret(url)
    assert redact(url) == (shown or url.replace("sentinel", "***"))
    assert redact(f"see {url} there") == f"see {redact(url)} there"
    with pytest.raises(BadInput) as refused:
        check_url(url)
    assert "sentinel" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://host:5000",
        "https://host:8080/data@2024/train",
        "HTTP://host:80/a:b@c",
        "sftp://me@host:22/data@2024/train",
        "hdfs://name:8020/data@2024/train",
        "s3://bucket/a:b@c/train",
        "s3://bucket@2024/a:b@c/train",
        "file:///data/a:b@c/train",
        "sqlite:////data/a:b@c/mlflow.db",
        "sftp://me@host/data",
        "postgresql://me@host/db",
        "postgresql://me@server:5432/db",
        "abfs://container@account.dfs.core.windows.net/train",
        "https://host/x?author=me&design=flat&authority=none",
        "sqlite:////data/mlflow.db",
        "me@example.org: see https://host/x",
    ],
)
def test_what_is_no_secret_is_left_alone(url):
    assert redact(url) == url
    check_url(url)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6)


@given(WORDS)
@example("1234/ab")
def test_no_password_survives(password):
    assert password not in redact(f"mysql://user:{password}@example.org/base").replace("***", "")

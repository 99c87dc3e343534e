"""Every form in which a URL may carry a secret is masked and refused, and nothing else is."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.errors import BadInput
from shards.storage.remote import check_url
from shards.storage.secrets import holds_secret, redact

# SQLAlchemy's usual form for SQL Server.
ODBC = "mssql+pyodbc:///?odbc_connect="


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
        ("mysql+pymysql://root:pa sentinel@h/db", "mysql+pymysql://root:***@h/db"),
        ("mysql://root:1234 and sen@sentinel@h:3306/db", "mysql://root:***@h:3306/db"),
        ("postgresql://me:pa sentinel@/db?host=/run", "postgresql://me:***@/db?host=/run"),
        ("http://me:pa sentinel@[::1]:5000", "http://me:***@[::1]:5000"),
        ("postgresql://h/db?password=ab'sentinel&a=b", "postgresql://h/db?password=***&a=b"),
        ("postgresql://h/db?password=ab',\"sentinel", "postgresql://h/db?password=***"),
        (ODBC + "DRIVER%3D%7BA+B%7D%3BUID%3Dsa%3BPWD%3Dsentinel", None),
        (
            ODBC + "UID%3Dsa%3BPWD%3D%7Ba%3Bsentinel%7D%3BServer%3Dh",
            ODBC + "UID%3Dsa%3BPWD%3D***%3BServer%3Dh",
        ),
        (ODBC + "PWD%3Dsentinel%3BUID%3Dsa&a=b", ODBC + "PWD%3D***%3BUID%3Dsa&a=b"),
        (ODBC + "DRIVER={ODBC Driver 17};UID=sa;PWD=sentinel;Encrypt=yes", None),
        (ODBC + "DRIVER={A B};UID=sa; Pwd = {a;sentinel}", ODBC + "DRIVER={A B};UID=sa; Pwd = ***"),
        (ODBC + "Password=pa sentinel;UID=sa", ODBC + "Password=***;UID=sa"),
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
        "postgresql://host/my data:a@b",
        ODBC + "DRIVER={ODBC Driver 17};SERVER=h;Trusted_Connection=yes",
        "https://host/x?a='b'&c=\"d\";e=f",
    ],
)
def test_what_is_no_secret_is_left_alone(url):
    assert redact(url) == url
    check_url(url)


@pytest.mark.parametrize(
    "line",
    [
        "http://host:5000: cannot be reached, ask me@example.org",
        "http://host:5000 and https://bucket:8000, not git@host/x, as ssh://me@host:22/x says: a@b/c",
        "ray://head:10001 refused, http://host: neither, said me@example.org",
        "see memory://a:b and (https://host/x?a=b): all of me@example.org",
        "the key '?token=' is empty, PWD=/home/me; auth: none",
    ],
)
def test_prose_with_colons_and_mail_addresses_is_left_alone(line):
    assert redact(line) == line


def test_a_value_of_its_own_may_end_after_the_host_and_a_text_go_on_after_a_quote():
    for before in ("", "tracking.uri=", "tracking:\n  uri: ", "'"):
        end = "'" if before == "'" else ""
        assert redact(f"{before}http://me:pa sentinel@host{end}") == f"{before}http://me:***@host{end}"
    assert redact("""{'a':'http://h/?token=b','c':'d e'}""") == """{'a':'http://h/?token=***','c':'d e'}"""
    assert redact("""is 'http://h/?token=b'c', as "e" is""") == """is 'http://h/?token=***', as "e" is"""
    assert redact("it says 'at http://h/?token=b'. Then") == "it says 'at http://h/?token=***'. Then"


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6)


@given(WORDS)
@example("1234/ab")
def test_no_password_survives(password):
    assert password not in redact(f"mysql://user:{password}@example.org/base").replace("***", "")


@given(WORDS, WORDS)
@example("1234", "'or")
def test_no_password_with_a_blank_survives(first, second):
    password = f"{first.replace('@', 'a')} {second}".replace("//", "ab")
    assert password not in redact(f"mysql://user:{password}@example.org/base").replace("***", "")


@given(WORDS)
@example("a','b':'c")
def test_no_secret_of_a_query_survives(password):
    url = f"mysql://host/base?password={password.replace('&', 'a')}&x=1"
    assert redact(url) == "mysql://host/base?password=***&x=1"

# SPDX-License-Identifier: Apache-2.0
"""What leaves of a command line."""

from __future__ import annotations

import pytest

from kernob.state.masks import LINE_CHARACTERS, Masker


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("app", "--password", "hunter2", "-v"), "app --password *** -v"),
        (("app", "--password=hunter2"), "app --password=***"),
        (("app", "--db-passwd", "hunter2"), "app --db-passwd ***"),
        (("app", "-token", "hunter2"), "app -token ***"),
        (("app", "--api-key=hunter2", "x"), "app --api-key=*** x"),
        (("app", "--password", "--verbose"), "app --password --verbose"),
        (("env", "AWS_SECRET_ACCESS_KEY=hunter2", "run"), "env AWS_SECRET_ACCESS_KEY=*** run"),
        (("psql", "postgres://app:hunter2@db/shop"), "psql postgres://***@db/shop"),
        (("curl", "-u", "me:hunter2", "https://h/"), "curl -u *** https://h/"),
        (("curl", "-H", "Authorization: Bearer hunter2"), "curl -H 'Authorization: ***'"),
        (("curl", "https://h/?user=a&token=hunter2&x=1"), "curl https://h/?user=a&token=***&x=1"),
        (("mysql", "-uroot", "-phunter2", "shop"), "mysql -uroot -p*** shop"),
        (("sshpass", "-p", "hunter2", "ssh", "h"), "sshpass -p *** ssh h"),
        (("sh", "-c", "PGPASSWORD=hunter2 pg_dump x"), "sh -c PGPASSWORD=***"),
        (("mysql", "-e", "CREATE USER a IDENTIFIED BY 'hunter2'"), None),
        (("tar", "-cpf", "x.tar", "/home"), "tar -cpf x.tar /home"),
        (("app", "--port", "80"), "app --port 80"),
    ],
)
def test_secrets_are_masked(args: tuple[str, ...], line: str | None) -> None:
    """Whatever form they come in; the rest stays as it was."""
    masked = Masker().line(args)
    assert "hunter2" not in masked
    assert line is None or masked == line


def test_names_of_ones_own() -> None:
    """Patterns for names come on top of the usual ones."""
    assert Masker(("*licence*",)).line(("app", "--licence-no", "abc", "--token", "x")) == (
        "app --licence-no *** --token ***"
    )


def test_unmasked_and_bounded() -> None:
    """`on` leaves them; nothing is longer than its bound."""
    assert Masker(masked=False).line(("app", "--token", "abc")) == "app --token abc"
    assert len(Masker().line(("app", "x" * 1000))) == LINE_CHARACTERS

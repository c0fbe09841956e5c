"""Whose socket it is: who is looked at again in the database, and who cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser

from pgnotify_gql.transport.authentication import current_user, own_row, recheck

NOT_OF_A_DATABASE = [None, AnonymousUser(), SimpleNamespace(is_authenticated=True, name="of a token")]


@pytest.mark.parametrize("user", NOT_OF_A_DATABASE, ids=["nobody", "anonymous", "of a token"])
def test_who_is_in_no_database_stays_who_he_is_and_the_database_is_not_asked(user: Any) -> None:
    assert current_user(user) is user
    assert recheck({"user": user, "session": None}) is user
    assert own_row(user) == []

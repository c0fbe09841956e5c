"""`info.context` is a request, also where several sockets share it."""

from copy import copy as shallow
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.test import override_settings

from pgnotify_gql.hub import Batch
from pgnotify_gql.transport.context import OperationRequest
from tests.support.sockets import socket_scope

HEADERS = [
    (b"host", b"localhost:8000"),
    (b"cookie", b"session=secret; theme=dark"),
    (b"authorization", b"Bearer secret"),
    (b"Proxy-Authorization", b"Basic secret"),
    (b"x-api-key", b"secret"),
    (b"sec-websocket-protocol", b"graphql-transport-ws, token.secret"),
    (b"x-forwarded-proto", b"https"),
    (b"accept-language", b"de"),
]

SECRETS: dict[str, Any] = {
    "headers": HEADERS,
    "query_string": b"token=secret",
    "subprotocols": ["graphql-transport-ws", "token.secret"],
    "session": {"cart": "secret"},
    "cookies": {"session": "secret"},
    "client": ["secret", 50_000],
    "a middleware's own": "secret",
    "state": {"secret": "secret"},
}


def request(**scope: Any) -> OperationRequest:
    return OperationRequest(socket_scope(**scope))


@pytest.fixture
def user() -> User:
    return User(pk=7, username="alice")


def test_it_is_a_request_of_django() -> None:
    assert isinstance(request(), HttpRequest)
    assert request().method == "GET"
    assert request().path == "/graphql/"


def test_the_user_and_the_session_are_those_of_the_scope(user: User) -> None:
    session = object()
    found = request(user=user, session=session)
    assert found.user is user
    assert found.session is session


@pytest.mark.parametrize("scope", [{}, {"user": None}])
def test_without_a_user_in_the_scope_it_is_the_anonymous_one(scope: dict[str, Any]) -> None:
    assert isinstance(request(**scope).user, AnonymousUser)
    assert request(**scope).session is None


def test_headers_and_cookies_are_read_as_in_http() -> None:
    found = request(headers=HEADERS)
    assert found.headers["Accept-Language"] == found.META["HTTP_ACCEPT_LANGUAGE"] == "de"
    assert found.COOKIES == {"session": "secret", "theme": "dark"}


def test_the_address_of_the_client_is_there() -> None:
    assert request().META["REMOTE_ADDR"] == "127.0.0.1"


def test_the_query_string_is_there() -> None:
    assert request(query_string=b"room=1").GET["room"] == "1"


@pytest.mark.parametrize("query_string", [b"\xff", b"a=%ff", b"\xed\xa0\x80=1"])
def test_a_query_string_that_is_no_text_is_read_as_far_as_it_goes(query_string: bytes) -> None:
    assert len(request(query_string=query_string).GET) == 1


@pytest.mark.parametrize(("scheme", "expected"), [("ws", "http"), ("wss", "https")])
def test_absolute_addresses_are_those_of_pages(scheme: str, expected: str) -> None:
    found = request(scheme=scheme)
    assert found.build_absolute_uri("/login/") == f"{expected}://localhost/login/"
    assert found.is_secure() is (expected == "https")


def test_a_scope_without_a_scheme_is_one_of_ws() -> None:
    scope = socket_scope()
    del scope["scheme"]
    assert OperationRequest(scope).build_absolute_uri("/") == "http://localhost/"


def test_the_scope_is_the_sockets() -> None:
    found = request(url_route={"kwargs": {"room": 1}})
    assert found.scope["type"] == "websocket"
    assert found.scope["url_route"] == {"kwargs": {"room": 1}}


def test_the_payload_of_the_initialisation_is_there_and_empty_by_default() -> None:
    assert OperationRequest(socket_scope(), {"token": "t"}).connection_params == {"token": "t"}
    assert request().connection_params == {}


def test_it_may_be_copied_as_any_object_and_has_what_django_makes_of_the_handshake() -> None:
    original = request(headers=HEADERS)
    assert shallow(original).COOKIES == {"session": "secret", "theme": "dark"}
    assert not hasattr(shallow(original), "something else")


class TestACopy:
    def test_has_what_the_original_has(self, user: User) -> None:
        original = OperationRequest(socket_scope(user=user, headers=HEADERS), {"token": "t"})
        copy = original.copy(Batch())
        assert type(copy) is OperationRequest
        assert copy.user is user
        assert copy.COOKIES == original.COOKIES
        assert copy.connection_params == {"token": "t"}

    def test_does_not_see_what_is_set_on_the_original_later(self) -> None:
        original = request()
        copy = original.copy(Batch())
        original.loader = object()  # type: ignore[attr-defined]
        assert not hasattr(copy, "loader")

    def test_sets_nothing_on_the_original(self) -> None:
        original = request()
        copy = original.copy(Batch())
        copy.loader = object()  # type: ignore[attr-defined]
        copy.user = User(pk=8)
        assert not hasattr(original, "loader")
        assert not original.user.is_authenticated
        assert not hasattr(original.copy(Batch()), "loader")

    def test_is_of_the_applications_own_class(self) -> None:
        class Own(OperationRequest):
            pass

        assert type(Own(socket_scope()).copy(Batch())) is Own


class TestASharedRequest:
    @pytest.mark.parametrize("keep_user", [False, True])
    def test_holds_nothing_of_one_of_the_sockets_but_the_user(self, user: User, keep_user: bool) -> None:
        original = OperationRequest(socket_scope(user=user, **SECRETS), {"token": "secret"})
        original.session_key = "secret"  # type: ignore[attr-defined]
        shared = original.shared(keep_user=keep_user)
        assert "secret" not in repr({key: vars(shared)[key] for key in vars(shared)})
        assert shared.session is None
        assert shared.COOKIES == {}
        assert shared.GET == {}
        assert "Authorization" not in shared.headers
        assert shared.connection_params == {}

    def test_of_a_users_sockets_is_the_users(self, user: User) -> None:
        assert request(user=user).shared(keep_user=True).user is user

    def test_of_everybody_is_nobodys(self, user: User) -> None:
        shared = request(user=user).shared(keep_user=False)
        assert isinstance(shared.user, AnonymousUser)
        assert "user" not in shared.scope

    @override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"))
    def test_still_makes_absolute_addresses(self) -> None:
        shared = request(headers=HEADERS).shared(keep_user=False)
        assert shared.build_absolute_uri("/login/") == "https://localhost:8000/login/"

    def test_leaves_the_original_as_it_is(self, user: User) -> None:
        original = OperationRequest(socket_scope(user=user, **SECRETS), {"token": "t"})
        original.shared(keep_user=False)
        assert original.user is user
        assert original.COOKIES["session"] == "secret"

"""A visitor of the example's site: logs in and asks over HTTP, as a browser does."""

import json
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

TIMEOUT = 10
"""Seconds that one answer may take."""


class Visitor:
    """Somebody at a site, anonymous until `log_in`; every visitor has cookies of its own."""

    def __init__(self, site: str) -> None:
        """`site` is a URL without the final slash."""
        self.site = site
        self._jar = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self._jar))

    @classmethod
    def logged_in(cls, site: str, name: str) -> "Visitor":
        """A sample user, whose password is the name."""
        visitor = cls(site)
        visitor.log_in(name)
        return visitor

    def log_in(self, name: str) -> None:
        self._fetch("/login/")
        form = {"username": name, "password": name, "csrfmiddlewaretoken": self._csrf_token, "next": "/"}
        page = self._fetch("/login/", urlencode(form).encode())
        assert "Logged in as" in page, page

    def execute(self, query: str, **variables: Any) -> Mapping[str, Any]:
        """The data of a query or mutation; an error in the answer is an error of the test."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        answer = json.loads(self._fetch("/graphql/", body, {"Content-Type": "application/json"}))
        assert "errors" not in answer, answer
        data: Mapping[str, Any] = answer["data"]
        return data

    @property
    def socket_url(self) -> str:
        return self.site.replace("http", "ws", 1) + "/graphql/"

    @property
    def headers(self) -> dict[str, str]:
        """What a browser sends with the handshake of a socket."""
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._jar)
        return {"Origin": self.site} | ({"Cookie": cookies} if cookies else {})

    @property
    def _csrf_token(self) -> str:
        return next((cookie.value or "" for cookie in self._jar if cookie.name == "csrftoken"), "")

    def _fetch(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> str:
        every = {"X-CSRFToken": self._csrf_token, "Referer": self.site} | dict(headers or {})
        with self._opener.open(Request(self.site + path, body, every), timeout=TIMEOUT) as response:
            text: str = response.read().decode()
            return text

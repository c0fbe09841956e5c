"""
A client of pyright's language server, which asks it what an editor asks while a line is being written.

It speaks the Language Server Protocol over pipes: JSON-RPC, each message behind a header with its length.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CURSOR = "|"
"""Where in a source the user stands."""


class LanguageServer:
    """A server for a project; a context manager."""

    def __init__(self, project: Path, python: Path) -> None:
        self._project = project
        self._python = python
        self._asked = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyright.langserver", "--stdio"],
            cwd=project,
            env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        folder = {"uri": self._project.as_uri(), "name": self._project.name}
        self._ask(
            "initialize",
            processId=os.getpid(),
            rootUri=folder["uri"],
            workspaceFolders=[folder],
            capabilities={"workspace": {"configuration": True, "workspaceFolders": True}},
        )
        self._send({"method": "initialized", "params": {}})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def offered(self, name: str, source: str) -> set[str]:
        """Return the names that an editor would offer at the cursor in the source of a file of the project."""
        before, _, after = source.partition(CURSOR)
        document = {"uri": (self._project / name).as_uri()}
        opened = {**document, "languageId": "python", "version": 1, "text": before + after}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": opened}})
        line, character = before.count("\n"), len(before) - before.rfind("\n") - 1
        position = {"line": line, "character": character}
        found = self._ask("textDocument/completion", textDocument=document, position=position)
        self._send({"method": "textDocument/didClose", "params": {"textDocument": document}})
        return {item["label"] for item in found["items"]}

    def _ask(self, method: str, **params: Any) -> Any:
        self._asked += 1
        self._send({"id": self._asked, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" in message and "id" in message:
                self._send({"id": message["id"], "result": self._answer(message)})
            elif message.get("id") == self._asked:
                assert "error" not in message, message["error"]
                return message["result"]

    def _answer(self, message: dict[str, Any]) -> Any:
        """Answer what the server asks an editor."""
        if message["method"] != "workspace/configuration":
            return None
        settings = {"python": {"pythonPath": str(self._python)}}
        return [settings.get(item.get("section"), {}) for item in message["params"]["items"]]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        length = 0
        while header := self._process.stdout.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the language server has ended"
        return json.loads(self._process.stdout.read(length))

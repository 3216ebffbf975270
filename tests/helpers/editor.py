"""What an editor shows: a client of the language server pyright, and what it says at a place in a program.

The place is marked by "|", as the cursor of an editor: `Trainer(max_ep|ochs=3)`.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = Path(__file__).parents[2]
SERVER = "import sys; from basedpyright.langserver import main; sys.exit(main())"
SETTINGS = {
    "python": {"pythonPath": sys.executable},
    "basedpyright": {"analysis": {"extraPaths": [str(FOLDER)], "diagnosticMode": "openFilesOnly"}},
}


class Editor:
    """A language server in a process of its own, which ends with the context; it reads the package of this checkout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        command = [sys.executable, "-c", SERVER, "--stdio"]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)

    def __enter__(self) -> Self:
        capabilities = {
            "workspace": {"configuration": True},
            "textDocument": {
                "hover": {"contentFormat": ["plaintext"]},
                "signatureHelp": {
                    "signatureInformation": {
                        "documentationFormat": ["plaintext"],
                        "parameterInformation": {"labelOffsetSupport": False},
                        "activeParameterSupport": True,
                    }
                },
            },
        }
        folders = [{"uri": self._folder.as_uri(), "name": "program"}]
        self._ask("initialize", processId=None, capabilities=capabilities, workspaceFolders=folders)
        self._send(method="initialized", params={})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.kill()
        self._server.communicate()

    def hover(self, program: str) -> str:
        """Return what is shown of the name at the cursor: its declaration, and its documentation below."""
        found = self._at("textDocument/hover", program)
        return "" if found is None else str(found["contents"]["value"])

    def signature(self, program: str) -> dict[str, Any]:
        """Return the signature of the call around the cursor: its label, parameters and documentation."""
        (signature,) = self._at("textDocument/signatureHelp", program)["signatures"]
        return dict(signature)

    def _at(self, method: str, program: str) -> Any:
        before, after = program.split("|")
        number = next(self._numbers)
        uri = (self._folder / f"program{number}.py").as_uri()
        document = {"uri": uri, "languageId": "python", "version": 1, "text": before + after}
        self._send(method="textDocument/didOpen", params={"textDocument": document})
        *lines, last = before.split("\n")
        return self._ask(method, textDocument={"uri": uri}, position={"line": len(lines), "character": len(last)})

    def _ask(self, method: str, **params: Any) -> Any:
        """Return the result of a request. What the server asks meanwhile is answered, and what it tells is ignored."""
        number = next(self._numbers)
        self._send(id=number, method=method, params=params)
        while True:
            message = self._receive()
            if "method" in message and "id" in message:
                answer = None
                if message["method"] == "workspace/configuration":
                    answer = [self._setting(item.get("section", "")) for item in message["params"]["items"]]
                self._send(id=message["id"], result=answer)
            elif message.get("id") == number:
                return message["result"]

    @staticmethod
    def _setting(section: str) -> Any:
        value: Any = SETTINGS
        for name in section.split("."):
            value = value.get(name, {})
        return value

    def _send(self, **message: Any) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self._server.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        size = 0
        while line := self._server.stdout.readline().strip():
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        content = self._server.stdout.read(size)
        assert content, "the language server has ended"
        return dict(json.loads(content))

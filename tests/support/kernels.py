"""Real Jupyter kernels, and the output of each cell."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

#: The timeout of every wait, in seconds. No test passes by timing out.
PATIENCE = 30.0
ROOT = Path(__file__).resolve().parents[2]
SPEC = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]

#: The number of our threads, except those for handshakes, which are short-lived.
OUR_THREADS = "sum(t.name.startswith('finx-') and '-handshake-' not in t.name for t in threading.enumerate())"
#: The first cell of each test: a server of ticks in the kernel.
SERVED = """
import time, threading
import finx_streamer
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer, SimulatedMarket
server = LocalServer(SimulatedMarket(["BTC:USDC", "ETH:USDC"], rate=200.0, seed=1), keys={"demo"}).start()
PLACE = {"endpoint": server.url, "api_key": "demo"}
"""


class Kernel:
    """A kernel in a process of its own. Its messages are sorted by the cell they belong to."""

    def __init__(self, extra_path: Path | None = None) -> None:
        self._manager = AsyncKernelManager()
        self._manager._kernel_spec = KernelSpec(argv=SPEC, display_name="test", language="python")
        paths = [str(ROOT)] if extra_path is None else [str(extra_path), str(ROOT)]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        self.messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        #: All messages about widgets.
        self.comms: list[dict[str, Any]] = []
        #: The requests with a reply.
        self._replied: set[str] = set()
        self._changed = threading.Condition()
        # The synchronous client leaves event loops open.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernel client")

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        readers = (self._read_output(), self._read_replies())
        self._readers = [asyncio.run_coroutine_threadsafe(reader, self._loop) for reader in readers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * PATIENCE)

    async def _start(self) -> None:
        await self._manager.start_kernel(env=self._environment)
        self.client = self._manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=PATIENCE)

    async def _stop(self) -> None:
        self.client.stop_channels()
        await self._manager.shutdown_kernel(now=True)
        self._manager.context.destroy(linger=0)

    async def _read_output(self) -> None:
        while True:
            message = await self.client.get_iopub_msg()
            with self._changed:
                self.messages[message["parent_header"].get("msg_id", "")].append(message)
                if message["msg_type"].startswith("comm_"):
                    self.comms.append(message)
                self._changed.notify_all()

    async def _read_replies(self) -> None:
        while True:
            message = await self.client.get_shell_msg()
            with self._changed:
                self._replied.add(message["parent_header"].get("msg_id", ""))
                self._changed.notify_all()

    def wait(self, find: Callable[[], Any], what: str = "") -> Any:
        """Wait until `find` returns something true, and return it. It is called after every message."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (found := find()):
                for reader in self._readers:
                    assert not reader.done(), reader.exception()
                assert time.monotonic() < deadline, f"timed out: {what}"
                self._changed.wait(0.2)
        return found

    def begin(self, code: str, cell: str | None = None, **metadata: Any) -> str:
        """Run a cell without waiting. Return the message ID of the request, which identifies the output."""
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        }  # fmt: skip
        about = {"cellId": cell or uuid.uuid4().hex, **metadata}
        return self._do(self._send("execute_request", content, about))

    async def _send(self, kind: str, content: dict[str, Any], metadata: dict[str, Any], control: bool = False) -> str:
        message = self.client.session.msg(kind, content, metadata=metadata)
        channel = self.client.control_channel if control else self.client.shell_channel
        # The channel's own `send` bypasses the socket's event loop, which then may miss a reply.
        await channel.socket.send_multipart(self.client.session.serialize(message))
        return str(message["header"]["msg_id"])

    def run(self, code: str, cell: str | None = None) -> str:
        """Run a cell, wait for its end, and check that it raised nothing."""
        run = self.begin(code, cell)
        self.wait_idle(run)
        assert not (errors := self.errors(run)), errors[0]
        return run

    def wait_idle(self, run: str) -> None:
        """Wait until the kernel reports the end of a cell on both channels, as front ends do."""
        self.wait(lambda: any(_is_idle(message) for message in tuple(self.messages[run])), "idle")
        self.wait(lambda: run in self._replied, "a reply")

    def errors(self, run: str) -> list[str]:
        """Return the tracebacks of a cell."""
        found = self.messages[run]
        return ["\n".join(m["content"]["traceback"]) for m in found if m["msg_type"] == "error"]

    def text(self, run: str, stream: str = "stdout") -> str:
        """Return what was printed to a cell's output."""
        found = [message for message in tuple(self.messages[run]) if message["msg_type"] == "stream"]
        return "".join(message["content"]["text"] for message in found if message["content"]["name"] == stream)

    def shown(self, run: str) -> list[dict[str, str]]:
        """Return what was displayed in a cell's output, by MIME type."""
        kinds = ("display_data", "update_display_data", "execute_result")
        return [m["content"]["data"] for m in tuple(self.messages[run]) if m["msg_type"] in kinds]

    def value(self, expression: str) -> str:
        """Return the value of an expression, as text."""
        return self.text(self.run(f"print({expression})")).rstrip("\n")

    def interrupt(self) -> None:
        self._do(self._manager.interrupt_kernel())

    def shut_down(self) -> int | None:
        """Request a shutdown, wait, and return the exit status. None if the kernel didn't exit in time."""
        self._do(self._send("shutdown_request", {"restart": False}, {}, control=True))
        process = self._manager.provisioner.process  # type: ignore[union-attr]
        try:
            return int(process.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            return None

    def send(self, comm: str, **content: Any) -> str:
        """Send a message from a page to its widget."""
        data = {"method": "custom", "content": content}
        return self._do(self._send("comm_msg", {"comm_id": comm, "data": data}, {}))

    def control(self, kind: str, **content: Any) -> str:
        """Send a message on the control channel."""
        return self._do(self._send(kind, content, {}, control=True))

    def received(self, comm: str, kind: str) -> list[dict[str, Any]]:
        """Return the messages of one kind from a widget to its pages."""
        data = [m["content"]["data"] for m in tuple(self.comms) if m["content"]["comm_id"] == comm]
        contents = [d["content"] for d in data if d.get("method") == "custom"]
        return [content for content in contents if content["kind"] == kind]


def _is_idle(message: dict[str, Any]) -> bool:
    return message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"


def install(requirements: list[str], folder: Path) -> Path:
    """Install packages into a folder, to be put first on the path."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), *requirements], check=True, capture_output=True)
    return folder

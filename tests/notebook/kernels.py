"""Real Jupyter kernels, and what each cell's output was."""

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

#: How long anything that has to happen may take. Nothing passes by waiting for it.
PATIENCE = 30.0
ROOT = Path(__file__).resolve().parents[2]
SPEC = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]

#: How many threads of ours there are, but for those that shake hands, which come and go.
OUR_THREADS = "sum(t.name.startswith('finx-') and '-handshake-' not in t.name for t in threading.enumerate())"
#: What notebooks of these tests begin with.
SERVED = """
import time, threading
import finx_streamer
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer, SimulatedMarket
server = LocalServer(SimulatedMarket(["BTC:USDC", "ETH:USDC"], rate=200.0, seed=1), keys={"demo"}).start()
PLACE = {"endpoint": server.url, "api_key": "demo"}
"""


class Kernel:
    """A kernel in a process of its own. What it says is sorted by the cell that it belongs to."""

    def __init__(self, extra_path: Path | None = None) -> None:
        self._manager = AsyncKernelManager()
        self._manager._kernel_spec = KernelSpec(argv=SPEC, display_name="test", language="python")
        paths = [str(ROOT)] if extra_path is None else [str(extra_path), str(ROOT)]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        self.messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        #: Messages that are about widgets, whomever they belong to.
        self.comms: list[dict[str, Any]] = []
        #: The requests that have been replied to.
        self._replied: set[str] = set()
        self._changed = threading.Condition()
        # The client without "async" in its name leaves event loops open behind it.
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

    def wait(self, is_there: Callable[[], Any], what: str = "") -> Any:
        """Wait until it is there, whatever the kernel says meanwhile. Returns it."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (found := is_there()):
                for reader in self._readers:
                    assert not reader.done(), reader.exception()
                assert time.monotonic() < deadline, f"not there in time: {what}"
                self._changed.wait(0.2)
        return found

    def begin(self, code: str, cell: str | None = None, **metadata: Any) -> str:
        """Run a cell without waiting. Returns the name of this run, by which its output is known."""
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        }  # fmt: skip
        about = {"cellId": cell or uuid.uuid4().hex, **metadata}
        return self._do(self._send("execute_request", content, about))

    async def _send(self, kind: str, content: dict[str, Any], metadata: dict[str, Any], control: bool = False) -> str:
        message = self.client.session.msg(kind, content, metadata=metadata)
        channel = self.client.control_channel if control else self.client.shell_channel
        # The channel's own `send` goes past the socket's event loop, which then may miss a reply that comes meanwhile.
        await channel.socket.send_multipart(self.client.session.serialize(message))
        return str(message["header"]["msg_id"])

    def run(self, code: str, cell: str | None = None) -> str:
        """Run a cell to its end, which has to be a good one."""
        name = self.begin(code, cell)
        self.wait_idle(name)
        assert self.errors(name) == []
        return name

    def wait_idle(self, name: str) -> None:
        """Wait until a cell has ended, and, as front ends do, until the kernel has said so on both of its channels."""
        self.wait(lambda: any(_is_idle(message) for message in tuple(self.messages[name])), "idle")
        self.wait(lambda: name in self._replied, "a reply")

    def errors(self, name: str) -> list[str]:
        """The exceptions that a cell ended with."""
        found = self.messages[name]
        return ["\n".join(m["content"]["traceback"]) for m in found if m["msg_type"] == "error"]

    def text(self, name: str, stream: str = "stdout") -> str:
        """What was printed into a cell's output."""
        found = [message for message in tuple(self.messages[name]) if message["msg_type"] == "stream"]
        return "".join(message["content"]["text"] for message in found if message["content"]["name"] == stream)

    def shown(self, name: str) -> list[dict[str, str]]:
        """What was displayed in a cell's output, each by type."""
        kinds = ("display_data", "update_display_data", "execute_result")
        return [m["content"]["data"] for m in tuple(self.messages[name]) if m["msg_type"] in kinds]

    def value(self, expression: str) -> str:
        """The value of an expression, as text."""
        return self.text(self.run(f"print({expression})")).rstrip("\n")

    def interrupt(self) -> None:
        self._do(self._manager.interrupt_kernel())

    def shut_down(self) -> int | None:
        """Ask it to end, wait, and return its exit status; None where it had to be killed."""
        self._do(self._send("shutdown_request", {"restart": False}, {}, control=True))
        process = self._manager.provisioner.process  # type: ignore[union-attr]
        try:
            return int(process.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            return None

    def say(self, comm: str, **content: Any) -> str:
        """What a page of a widget says to its model."""
        data = {"method": "custom", "content": content}
        return self._do(self._send("comm_msg", {"comm_id": comm, "data": data}, {}))

    def control(self, kind: str, **content: Any) -> str:
        """A message on the control channel."""
        return self._do(self._send(kind, content, {}, control=True))

    def heard(self, comm: str, kind: str) -> list[dict[str, Any]]:
        """What a model has said to its pages."""
        data = [m["content"]["data"] for m in tuple(self.comms) if m["content"]["comm_id"] == comm]
        said = [d["content"] for d in data if d.get("method") == "custom"]
        return [content for content in said if content["kind"] == kind]


def _is_idle(message: dict[str, Any]) -> bool:
    return message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"


def install(requirements: list[str], folder: Path) -> Path:
    """Packages into a folder that is put before all others."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), *requirements], check=True, capture_output=True)
    return folder

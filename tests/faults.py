"""A proxy before an S3 server that does what networks do: refuses, answers too late, breaks off, resets."""

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from urllib.parse import urlsplit

KINDS = ("slow_down", "unavailable", "late", "truncated", "reset_before", "reset_after")
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
Head = tuple[str, list[tuple[str, str]]]


class Proxy:
    """A server on this machine that hands requests on to `upstream`; a share `rate` of them goes wrong.

    late: seconds that an answer takes which comes too late. requests, injected: what was done. hold: the first word of
    requests that are kept half read, for a client that is to die while it sends; held is set once there is one.
    """

    def __init__(self, upstream: str, rate: float, late: float, seed: int = 0) -> None:
        where = urlsplit(upstream)
        assert where.hostname and where.port
        self.upstream = where.hostname, where.port
        self.rate, self.late, self.random = rate, late, Random(seed)
        self.kinds, self.hold, self.held = KINDS, "", threading.Event()
        self.requests, self.injected = 0, Counter[str]()
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator["Proxy"]:
        """The proxy in a thread of its own."""
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def run() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                server.close()

        def work() -> None:
            asyncio.set_event_loop(loop)
            self.task = loop.create_task(run())
            loop.run_until_complete(asyncio.wait([self.task]))
            for left in (open_ones := asyncio.all_tasks(loop)):
                left.cancel()
            loop.run_until_complete(asyncio.gather(*open_ones))
            loop.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(self.task.cancel)
            thread.join()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        first, headers = await _head(reader)
        if not first:
            return False
        known = {name.lower(): value for name, value in headers}
        if known.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        if self.hold and first.startswith(self.hold):
            await reader.read(1 << 12)
            self.held.set()
            await reader.read(-1)
            return False
        body = await reader.readexactly(int(known.get("content-length", 0)))
        self.requests += 1
        fault = self.random.choice(self.kinds) if self.random.random() < self.rate else ""
        self.injected.update([fault] if fault else [])
        if fault == "reset_before":
            return _reset(writer)
        if fault == "unavailable":
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "slow_down":
            text = b"" if first.startswith("HEAD ") else SLOW_DOWN
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return True
        status, answered, content = await self._handed_on(first, headers, body)
        if fault == "late":
            await asyncio.sleep(self.late)
        if fault == "reset_after":
            return _reset(writer)
        lines = [f"{name}: {value}" for name, value in answered]
        writer.write("\r\n".join([status, *lines, "", ""]).encode("latin-1"))
        if fault == "truncated":
            writer.write(content[: len(content) // 2])
            await writer.drain()
            return False
        writer.write(content)
        await writer.drain()
        return True

    async def _handed_on(
        self, first: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[str, list[tuple[str, str]], bytes]:
        """The server's whole answer, its length announced."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        left_out = ("connection", "expect")
        sent = [(name, value) for name, value in headers if name.lower() not in left_out] + [("Connection", "close")]
        writer.write("\r\n".join([first, *(f"{name}: {value}" for name, value in sent), "", ""]).encode("latin-1"))
        writer.write(body)
        await writer.drain()
        status, answered = await _head(reader)
        content = b"" if first.startswith("HEAD ") else await reader.read(-1)
        writer.close()
        known = {name.lower(): value for name, value in answered}
        if "chunked" in known.get("transfer-encoding", ""):
            content = _unchunked(content)
        kept = [(n, v) for n, v in answered if n.lower() not in ("connection", "content-length", "transfer-encoding")]
        length = known.get("content-length", "0") if first.startswith("HEAD ") else str(len(content))
        bodiless = status.split()[1] in ("204", "304")
        return status, kept if bodiless else [*kept, ("Content-Length", length)], content


async def _head(reader: asyncio.StreamReader) -> Head:
    """The first line and the headers of a request or an answer; "" at the end of the connection."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return "", []
    first, *lines = text.rstrip("\r\n").split("\r\n")
    return first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _unchunked(content: bytes) -> bytes:
    whole = b""
    while content:
        size, _, content = content.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        whole, content = whole + content[:count], content[count + 2 :] if count else b""
    return whole


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break the connection off as a machine does that has lost it."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False

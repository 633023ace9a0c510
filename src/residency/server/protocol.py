"""uvicorn's quick HTTP protocol, with a bound on what comes before a body, which the parser itself has none of."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from residency.server.streams import FLOW

MAX_HEAD_BYTES = 64 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers are larger than MAX_HEAD_BYTES."""

    _head_bytes: int | None = 0  # of the request that is being read; None within its body

    def data_received(self, data: bytes) -> None:
        """What came over the connection."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > MAX_HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """The parser's word that a request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {FLOW: {"write_now": self._write_now}}

    def on_headers_complete(self) -> None:
        """The parser's word that the body begins."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The parser's word that the body has ended."""
        self._head_bytes = 0
        super().on_message_complete()

    def _write_now(self, data: bytes) -> bool:
        """Send a chunk of the answer that is being sent, without the tasks and messages of ASGI, which for a token take
        longer than all else. False where that cannot be: the client is behind or gone, or a later request of the same
        connection has come.
        """
        cycle = self.cycle
        if self.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete or cycle.disconnected:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

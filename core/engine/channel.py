"""One end of a connection between client and engine: sending never blocks, reading is bounded."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator

from core.engine import protocol
from core.engine.protocol import Beat, Message


class Channel:
    """Sends from a thread of its own, so that neither a training step nor a window waits for a peer.

    Args:
        connection: a connected stream socket; the channel closes it.
        heartbeat_seconds: send a Beat when so long nothing else was sent; None sends none.
    """

    def __init__(self, connection: socket.socket, heartbeat_seconds: float | None = None) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._heartbeat_seconds = heartbeat_seconds
        self._received = bytearray()
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._gone = False
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def send(self, message: Message) -> None:
        """Queue a message. A peer that is too far behind is dropped; nothing is sent to it any more."""
        self.send_line(protocol.encode(message))

    def send_line(self, line: bytes) -> None:
        """Queue a line that `protocol.encode` made (once for all listeners)."""
        with self._lock:
            if self._gone:
                return
            self._queued_bytes += len(line)
            too_far_behind = self._queued_bytes > protocol.MAX_QUEUED_BYTES
            if self._writer is None and not too_far_behind:
                self._writer = threading.Thread(target=self._write, name="channel writer", daemon=True)
                self._writer.start()
        if too_far_behind:
            self.hang_up()
        else:
            self._outgoing.put(line)

    def first_message(self) -> Message | None:
        """The first message of an unknown peer: short, and within a few seconds; else None."""
        line = self._read_line(protocol.FIRST_LINE_BYTES, time.monotonic() + protocol.FIRST_LINE_SECONDS)
        with contextlib.suppress(OSError):  # closed by the peer: the next read tells
            self._socket.settimeout(None)
        return _decode(line)

    def messages(self) -> Iterator[Message]:
        """Messages as they come; ends when the peer goes or sends what is not a message."""
        while (message := _decode(self._read_line(protocol.MAX_LINE_BYTES))) is not None:
            yield message

    def hang_up(self) -> None:
        """End the connection at once, from any thread; the reader's loop ends."""
        self._gone = True
        with contextlib.suppress(OSError):  # not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)
        self._outgoing.put(None)

    def close(self, flush_seconds: float = 0.0) -> None:
        """Give the writer so much time to send what is queued, then end the connection."""
        self._outgoing.put(None)
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join(flush_seconds)
        self.hang_up()
        self._socket.close()

    def _write(self) -> None:
        try:
            while True:
                try:
                    line = self._outgoing.get(timeout=self._heartbeat_seconds)
                except queue.Empty:
                    self._socket.sendall(protocol.encode(Beat()))
                    continue
                if line is None:
                    return
                self._socket.sendall(line)
                with self._lock:
                    self._queued_bytes -= len(line)
        except OSError:
            self.hang_up()  # the peer is gone; the reader's loop ends and cleans up

    def _read_line(self, limit: int, deadline: float | None = None) -> bytes | None:
        searched = 0
        while True:
            end = self._received.find(b"\n", searched)
            if end > limit or (end < 0 and len(self._received) > limit):
                return None
            if end >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                return line
            searched = len(self._received)
            chunk = self._receive(deadline)
            if not chunk:
                return None
            self._received += chunk

    def _receive(self, deadline: float | None) -> bytes:
        try:
            if deadline is not None:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            return self._socket.recv(262144)
        except OSError:  # also the timeout
            return b""


def connect(address: protocol.Address, seconds: float = 5.0) -> tuple[Channel, protocol.Welcome]:
    """Connect to an engine and be recognised by it.

    Raises:
        OSError: nobody listens there, or who listens does not answer as an engine.
    """
    channel = Channel(socket.create_connection((protocol.HOST, address.port), timeout=seconds))
    channel.send(protocol.Hello(address.token))
    welcome = channel.first_message()
    if not isinstance(welcome, protocol.Welcome):
        channel.close()
        raise ConnectionRefusedError("it does not answer as an engine")
    return channel, welcome


def _decode(line: bytes | None) -> Message | None:
    if line is None:
        return None
    try:
        return protocol.decode(line)
    except ValueError:
        return None

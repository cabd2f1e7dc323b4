"""A TCP proxy between daemons and brokers that simulates network faults for one client or for all.

    python proxy.py CLUSTER/proxied

The file has one line for each broker: ADVERTISED_PORT REAL_PORT. The proxy reads commands `MODE CLIENT` from standard
input and confirms each with `ok`. CLIENT is a client.id, which every Kafka request contains, or * for all. Modes:

    pass    no fault
    cut     connections are reset, including new ones
    hole    bytes are dropped in both directions, but connections stay open
    deaf    requests pass, but responses are dropped, so the client cannot know whether a request succeeded
    slow    50 ms latency and 256 KiB/s

A connection that lost bytes is reset when the mode changes, because its stream has a gap.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from pathlib import Path

CHUNK = 1 << 16
LATENCY = 0.05  # seconds
BANDWIDTH = 256 << 10  # bytes per second
# The head of a Kafka request: size, API key, API version, correlation id, and the length of the client.id that follows.
HEAD = struct.Struct(">ihhih")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Rules:
    """The mode of each client, and all connections."""

    def __init__(self):
        self.everyone = "pass"
        self.own = {}
        self.links = set()

    def mode(self, client):
        return self.own.get(client, self.everyone)

    def set(self, mode, client):
        if client == "*":
            self.everyone, self.own = mode, {}
        else:
            self.own[client] = mode
        for link in list(self.links):
            now = self.mode(link.client)
            if now == "cut" or (link.gapped and now not in ("hole", "deaf")):
                link.reset()


class Link:
    """One connection of a client, and the matching connection to the broker."""

    def __init__(self, rules):
        self.rules = rules
        self.client = None
        self.gapped = False
        self.writers = []

    async def serve(self, reader, writer, port):
        self.writers.append(writer)
        try:
            head = await reader.readexactly(HEAD.size)
            name = await reader.readexactly(max(0, HEAD.unpack(head)[-1]))
            self.client = name.decode()
            self.rules.links.add(self)
            if self.rules.mode(self.client) == "cut":
                return
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", port)
            self.writers.append(broker_writer)
            await self.forward(head + name, broker_writer, False)
            requests = asyncio.create_task(self.pump(reader, broker_writer, False))
            answers = asyncio.create_task(self.pump(broker_reader, writer, True))
            # If either side closes its connection, close both.
            await asyncio.wait((requests, answers), return_when=asyncio.FIRST_COMPLETED)
            requests.cancel()
            answers.cancel()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.rules.links.discard(self)
            self.reset()

    async def pump(self, source, sink, answers):
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await self.forward(data, sink, answers)

    async def forward(self, data, sink, answers):
        mode = self.rules.mode(self.client)
        if mode == "slow":
            await asyncio.sleep(LATENCY + len(data) / BANDWIDTH)
            mode = self.rules.mode(self.client)
        if self.gapped or mode == "hole" or (mode == "deaf" and answers):
            self.gapped = True
            return
        sink.write(data)
        await sink.drain()

    def reset(self):
        for writer in self.writers:
            if (own := writer.get_extra_info("socket")) is not None and own.fileno() >= 0:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


async def main(listeners):
    rules = Rules()
    for line in Path(listeners).read_text().splitlines():
        advertised, real = map(int, line.split())

        async def serve(reader, writer, real=real):
            await Link(rules).serve(reader, writer, real)

        await asyncio.start_server(serve, "127.0.0.1", advertised)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ok", flush=True)
    while line := await commands.readline():
        rules.set(*line.decode().split())
        print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

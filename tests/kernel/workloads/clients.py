# SPDX-License-Identifier: Apache-2.0
"""Ordinary clients of ordinary servers: `clients.py WHAT PORT COUNT` makes COUNT exchanges, prints COUNT.

Run by the distribution's Python, for which the distribution has the libraries. Each function is what people
write with that library; none waits for an answer that does not come.
"""

from __future__ import annotations

import asyncio
import http.client
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable

HOST = "127.0.0.1"


def http_keepalive(port: int, count: int) -> None:
    """One connection for all requests, of each kind."""
    connection = http.client.HTTPConnection(HOST, port)
    kinds = (("GET", "/small"), ("HEAD", "/page"), ("GET", "/nothing"), ("GET", "/large"))
    for i in range(count):
        connection.request(*kinds[i % 4])
        connection.getresponse().read()
    connection.close()


def http_close(port: int, count: int) -> None:
    """A connection a request, which the server closes."""
    for i in range(count):
        connection = http.client.HTTPConnection(HOST, port)
        path = "/large" if i % 100 == 0 else "/page"
        connection.request(("GET", "HEAD")[i % 2], path, headers={"Connection": "close"})
        connection.getresponse().read()
        connection.close()


def http_10(port: int, count: int) -> None:
    """HTTP/1.0, read to the end."""
    for _ in range(count):
        with socket.create_connection((HOST, port)) as sock:
            sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            while sock.recv(700):
                pass


def https(port: int, count: int) -> None:
    """TLS, a connection for each ten requests."""
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    for i in range(count):
        if i % 10 == 0:
            connection = http.client.HTTPSConnection(HOST, port, context=trust)
        last = i % 10 == 9
        connection.request("GET", "/page", headers={"Connection": "close"} if last else {})
        connection.getresponse().read()
        if last:
            connection.close()


def http_pool(port: int, count: int) -> None:
    """The pool of an asyncio client: chunked answers and uploads, eight at a time."""
    import aiohttp

    async def main() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8)) as session:

            async def ask(i: int) -> None:
                base = f"http://{HOST}:{port}/app"
                if i % 5 == 4:
                    async with session.post(f"{base}/upload", data=b"u" * 100_000) as answer:
                        assert (await answer.read()) == b"100000"
                else:
                    async with session.get(f"{base}/chunks") as answer:
                        assert len(await answer.read()) == 3000

            for first in range(0, count, 50):
                await asyncio.gather(*(ask(i) for i in range(first, min(first + 50, count))))

    asyncio.run(main())


def http_long_poll(port: int, count: int) -> None:
    """Twenty at a time that are answered late, in an event loop whose timers fire meanwhile."""
    import aiohttp

    async def main() -> None:
        async def tick() -> None:
            while True:
                await asyncio.sleep(0.05)

        ticking = asyncio.create_task(tick())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=20)) as session:

            async def ask() -> None:
                async with session.get(f"http://{HOST}:{port}/app/poll") as answer:
                    assert (await answer.read()) == b"news"

            await asyncio.gather(*(ask() for _ in range(count)))
        ticking.cancel()

    asyncio.run(main())


def http_idle(port: int, count: int) -> None:
    """Requests about as far apart as the server keeps an idle connection: some meet its end."""
    connection = http.client.HTTPConnection(HOST, port)
    for i in range(count):
        for _attempt in range(2):
            try:
                connection.request("GET", "/page")
                connection.getresponse().read()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
        time.sleep(2.0 + (i % 10 - 5) / 1000)
    connection.close()


def http_idle_once(port: int, count: int) -> None:
    """A connection that idles until the server ends it, and is only then looked at."""
    for _ in range(count):
        connection = http.client.HTTPConnection(HOST, port)
        connection.request("GET", "/small")
        connection.getresponse().read()
        assert select.select([connection.sock], [], [], 10)[0]
        assert connection.sock.recv(1) == b""
        connection.close()


def http_hold(port: int, count: int) -> None:
    """Idle while the server is restarted; then a request that succeeds on a new connection."""
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/small")
    connection.getresponse().read()
    print("holding", flush=True)
    assert select.select([connection.sock], [], [], 60)[0]
    assert connection.sock.recv(1) == b""
    connection.close()


def websocket(port: int, count: int) -> None:
    """Echo, then a stream that only the server sends, then a close handshake."""
    import aiohttp

    async def main() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{HOST}:{port}/app/ws", heartbeat=0.5) as ws,
        ):
            for i in range(count):
                await ws.send_str(f"message {i}")
                assert (await ws.receive_str()) == f"message {i}"
            await ws.send_str("stream")
            for _ in range(10):
                assert (await ws.receive_str()) == "tick"

    asyncio.run(main())


def application(port: int, _count: int) -> None:
    """The server behind nginx: chunked answers, uploads, WebSockets."""
    from aiohttp import WSMsgType, web

    async def chunks(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for _ in range(3):
            await answer.write(b"c" * 1000)
            await asyncio.sleep(0.001)
        await answer.write_eof()
        return answer

    async def poll(_request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)  # nothing is new for so long
        return web.Response(text="news")

    async def upload(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def ws(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            if message.type != WSMsgType.TEXT:
                break
            if message.data == "stream":
                for _ in range(10):
                    await asyncio.sleep(0.2)
                    await answer.send_str("tick")
            else:
                await answer.send_str(message.data)
        return answer

    site = web.Application(client_max_size=1 << 20)
    site.add_routes([web.get("/app/chunks", chunks), web.post("/app/upload", upload), web.get("/app/ws", ws)])
    site.add_routes([web.get("/app/poll", poll)])
    web.run_app(site, host=HOST, port=port, print=lambda *_: None)


def redis_commands(port: int, count: int) -> None:
    """Commands one by one and in pipelines, a blocking read that gets nothing, a pool after an idle time."""
    import redis

    client = redis.Redis(HOST, port)
    for i in range(0, count, 2):
        client.set(f"key{i}", i)
        assert client.get(f"key{i}") == str(i).encode()
    with client.pipeline() as pipe:
        for _ in range(100):
            pipe.incr("counter")
        assert len(pipe.execute()) == 100
    assert client.blpop("nothing", timeout=1) is None
    time.sleep(4)  # the server ends it; the pool notices before it uses it
    assert client.get("counter") == b"100"
    client.execute_command("QUIT")
    client.close()


def redis_idle(port: int, count: int) -> None:
    """Idle until the server ends it; each reads that end as its pool does."""
    for _ in range(count):
        with socket.create_connection((HOST, port)) as sock:
            sock.sendall(b"*1\r\n$4\r\nPING\r\n")
            assert sock.recv(100) == b"+PONG\r\n"
            assert sock.recv(100) == b""


def redis_hold(port: int, _count: int) -> None:
    """A subscriber while the server is restarted."""
    import redis

    listening = redis.Redis(HOST, port).pubsub()
    listening.subscribe("news")
    listening.get_message(timeout=5)
    print("holding", flush=True)
    try:
        while True:
            listening.get_message(timeout=1)
    except redis.ConnectionError:
        listening.close()


def redis_blocked(port: int, _count: int) -> None:
    """Waits for an answer to a command, which the server's end takes away."""
    import redis

    print("asking", flush=True)
    client = redis.Redis(HOST, port)
    try:
        client.blpop(["nothing", "nothing at all", "nothing whatsoever"], timeout=0)
    except redis.ConnectionError:
        client.close()


def redis_subscriber(port: int, count: int) -> None:
    """Waits for messages that another connection publishes, with timeouts in between."""
    import redis

    client = redis.Redis(HOST, port)
    listening = client.pubsub()
    listening.subscribe("news")
    assert listening.get_message(timeout=5)["type"] == "subscribe"
    for i in range(count):
        client.publish("news", f"item {i}")
        while not (message := listening.get_message(timeout=0.1)):
            pass
        assert message["data"] == f"item {i}".encode()
    for _ in range(30):
        assert listening.get_message(timeout=0.1) is None
    client.publish("news", "late")
    assert listening.get_message(timeout=5)["data"] == b"late"
    listening.close()
    client.close()


def postgres_queries(port: int, count: int) -> None:
    """Statements, a large result, a transaction, then the end."""
    import psycopg2

    connection = psycopg2.connect(host=HOST, port=port, user="postgres", dbname="postgres")
    with connection, connection.cursor() as cursor:
        for i in range(count):
            cursor.execute("select %s::int + 1", (i,))
            assert cursor.fetchone() == (i + 1,)
        cursor.execute("select repeat('x', 1000) from generate_series(1, 5000)")
        assert len(cursor.fetchall()) == 5000
    connection.close()


def postgres_idle(port: int, _count: int) -> None:
    """A session that idles for too long: the server says so and closes."""
    import psycopg2

    connection = psycopg2.connect(host=HOST, port=port, user="postgres", dbname="postgres")
    connection.cursor().execute("select 1")
    connection.commit()
    assert select.select([connection], [], [], 10)[0]
    try:
        connection.cursor().execute("select 1")
        raise AssertionError("the session is still there")
    except psycopg2.OperationalError:
        connection.close()


def postgres_hold(port: int, _count: int) -> None:
    """Listens while the server is restarted."""
    import psycopg2

    connection = psycopg2.connect(host=HOST, port=port, user="postgres", dbname="postgres")
    connection.autocommit = True
    connection.cursor().execute("set idle_session_timeout = 0")
    connection.cursor().execute("listen news")
    print("holding", flush=True)
    try:
        while True:
            select.select([connection], [], [], 1)
            connection.poll()
    except psycopg2.OperationalError:
        connection.close()


def postgres_listen(port: int, count: int) -> None:
    """LISTEN on one connection, NOTIFY on another, with waits that get nothing in between."""
    import psycopg2

    ears, mouth = (
        psycopg2.connect(host=HOST, port=port, user="postgres", dbname="postgres") for _ in range(2)
    )
    for connection in (ears, mouth):
        connection.autocommit = True
        connection.cursor().execute("set idle_session_timeout = 0")
    ears.cursor().execute("listen news")
    for i in range(count):
        mouth.cursor().execute(f"notify news, 'item {i}'")
        while not ears.notifies:
            select.select([ears], [], [], 0.1)
            ears.poll()
        assert ears.notifies.pop().payload == f"item {i}"
    for _ in range(30):
        select.select([ears], [], [], 0.1)
        ears.poll()
    ears.close()
    mouth.close()


def amqp(port: int, count: int) -> None:
    """Publishes with confirms, consumes with acknowledgements, idles over some heartbeats, ends in order."""
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters(HOST, port))
    channel = connection.channel()
    channel.queue_declare("work", auto_delete=True)
    channel.confirm_delivery()
    for i in range(count // 2):
        channel.basic_publish("", "work", b"m" * (i % 3000))
    for got, (method, _properties, body) in enumerate(channel.consume("work")):
        assert len(body) == got % 3000
        channel.basic_ack(method.delivery_tag)
        if got == count // 2 - 1:
            break
    channel.cancel()
    connection.process_data_events(time_limit=5)
    connection.close()


def amqp_consumer(port: int, _count: int) -> None:
    """Waits for messages that do not come; tells when it is subscribed, then how it ended and when."""
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters(HOST, port))
    channel = connection.channel()
    channel.queue_declare("silent", exclusive=True)
    channel.basic_consume("silent", lambda *_: None)
    print("subscribed", flush=True)
    try:
        channel.start_consuming()
    except (pika.exceptions.AMQPError, ConnectionError) as error:
        print(f"ended {type(error).__name__} {error}", flush=True)


CLIENTS: dict[str, Callable[[int, int], None]] = {
    name: function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__module__", "") == __name__
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print(sys.argv[3])

# SPDX-License-Identifier: Apache-2.0
"""The shop, a worker behind nginx: `shop.py ITSELF REDIS POSTGRES RABBIT PAYMENTS`, each HOST:PORT.

GET /product: a page out of Redis. POST /order: a row in PostgreSQL, a message for the fulfilment in RabbitMQ,
and the payment service, by name, with a document of 60 kB on a connection of its own and a limit of three
seconds, as C clients set it. What goes wrong there is logged the way applications do: without the reason.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wire import Postgres, Rabbit, Redis, log, place

PAGE = bytes(100_000)
DOCUMENT = bytes(60_000)
LIMIT_S = 3


class Shop:
    """One connection to each server, shared by all requests."""

    def __init__(self, redis: str, postgres: str, rabbit: str, payments: str) -> None:
        self.redis = Redis(*place(redis))
        self.postgres = Postgres(*place(postgres))
        self.rabbit = Rabbit(*place(rabbit))
        self.payments = place(payments)
        self.locks = {each: threading.Lock() for each in ("redis", "postgres", "rabbit")}
        self.redis.do(b"SET", b"page", PAGE)
        self.postgres.do(
            "CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, made timestamptz, paid bool)"
        )
        self.rabbit.declare("orders")

    def page(self) -> bytes:
        """A product's page."""
        with self.locks["redis"]:
            return self.redis.do(b"GET", b"page")

    def order(self) -> int:
        """Take one; its number."""
        with self.locks["postgres"]:
            row = self.postgres.do("INSERT INTO orders (made, paid) VALUES (now(), false) RETURNING id")
        number = int(row[0][0])
        with self.locks["rabbit"]:
            self.rabbit.publish("orders", str(number).encode())
        try:
            self.pay()
        except OSError:
            log(f"order {number}: payment pending")
        else:
            log(f"order {number}: paid")
        return number

    def pay(self) -> None:
        """Ask the payment service. OSError, whatever it was."""
        host, port = self.payments
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", LIMIT_S, 0))
            sock.connect(address)
            head = f"POST /charge HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(DOCUMENT)}\r\n"
            head += "Connection: close\r\n\r\n"
            sock.sendall(head.encode() + DOCUMENT)
            answer = b""
            while part := sock.recv(65_536):
                answer += part
            if not answer.endswith(b"}\n"):
                raise ConnectionError("short answer")


def handler(shop: Shop) -> type[BaseHTTPRequestHandler]:
    """What answers the requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(shop.page())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(b"%d\n" % shop.order())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the log to orders."""

    return Handler


def main(itself: str, *places: str) -> None:
    """See the module."""
    server = ThreadingHTTPServer(place(itself), handler(Shop(*places)))
    log("shop is open")
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

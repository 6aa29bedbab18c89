"""Listen: address, token, signals. A first start that cannot work ends the service with the reason."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from talker_rl.base.errors import ConfigError, StageError, TalkerRLError
from talker_rl.base.text.files import text_lines
from talker_rl.reward.config import ServiceConfig
from talker_rl.reward.service.app import create_app
from talker_rl.reward.service.engine import Engine, ServiceSpec
from talker_rl.reward.service.guard import set_up_logging
from talker_rl.reward.service.protocol import TOKEN_VARIABLE

CONNECTIONS = 1000
"""More are answered 503 at once."""


def read_token(config: ServiceConfig) -> str | None:
    """The bearer token, or None where none is needed.

    Raises:
        ConfigError: the file cannot be read, the token is too short or no ASCII, or the address needs one.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if config.token_file:
        try:
            token = (text_lines(Path(config.token_file).expanduser()) or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The token cannot be read: {error}", where="service.token_file",
                              fix="name a text file that this user may read") from error
    if token is not None:
        token = token.strip()
        if len(token) < 16 or not token.isascii() or not token.isprintable():
            raise ConfigError("The token must have 16 ASCII characters or more", where=f"service.token_file or "
                              f"${TOKEN_VARIABLE}", fix="make one: openssl rand -hex 32")  # fmt: skip
    elif not is_loopback(config.host):
        raise ConfigError(
            f"{config.host} can be reached from other machines, and there is no token",
            where="service.host",
            fix=f"set service.token_file or ${TOKEN_VARIABLE}, or listen on 127.0.0.1",
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may mean anything


def bind(config: ServiceConfig) -> socket.socket:
    """The listening socket: taken before models are loaded, so that a port in use is told at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StageError(f"Cannot listen: {error.strerror or error}", where=f"{config.host}:{config.port}",
                         fix="choose another --port (0 takes a free one) or --host") from error  # fmt: skip
    return listener


def serve(spec: ServiceSpec, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted is answered first.

    Raises:
        ConfigError: address and token. TalkerRLError: the workers cannot start, e.g. a model folder is missing.
    """
    config = spec.service
    token = read_token(config)
    listener = bind(config)
    failure: list[TalkerRLError] = []

    def fatal(error: TalkerRLError) -> None:
        failure.append(error)
        server.should_exit = True

    set_up_logging(logging.INFO)
    engine = Engine(spec, fatal)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, token),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=round(config.request_timeout),
        )
    )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
            signal.signal(number, lambda *_: None)
    host, port = listener.getsockname()[:2]
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port} "
        f"({'with' if token else 'without'} a token); models are loading: see /readyz")  # fmt: skip
    server.run(sockets=[listener])
    if failure:
        raise failure[0]

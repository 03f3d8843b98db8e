"""Serves the page to this machine only."""

from collections.abc import Callable
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.server.server import Server

__all__ = ["serve"]


def serve(page: Callable[[Any], None], port: int = 5006) -> Server:
    """Serves a page at http://localhost:PORT, which no other machine can reach.

    Args:
        page: Fills a Bokeh document, one for each window.
        port: The port to listen on; 0 chooses a free one, given by ``server.port``.

    Returns:
        The running server; ``server.run_until_shutdown()`` waits for it to stop.

    Raises:
        OSError: if the port is already in use.
    """
    app = Application(FunctionHandler(page))
    server = Server({"/": app}, port=port, address="localhost", allow_websocket_origin=[f"localhost:{port}"])
    server.start()
    return server

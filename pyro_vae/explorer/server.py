"""Serves the page to this machine alone."""

from collections.abc import Callable
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.server.server import Server

__all__ = ["serve"]


def serve(page: Callable[[Any], None], port: int = 5006) -> Server:
    """A server of a page at http://localhost:PORT, which no other machine can reach.

    Args:
        page: Fills a document of Bokeh's, one for each window.
        port: Where it listens; 0 for any that is free, which ``server.port`` then is.

    Returns:
        The server, which has been started; ``server.run_until_shutdown()`` waits for it.

    Raises:
        OSError: if something else listens there.
    """
    app = Application(FunctionHandler(page))
    server = Server({"/": app}, port=port, address="localhost", allow_websocket_origin=[f"localhost:{port}"])
    server.start()
    return server

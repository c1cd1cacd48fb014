"""The studio command: serves the page to this machine's browser until it is stopped."""

import os
import re
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from geoseg_gan.data.settings import LARGEST_SIDE
from geoseg_gan.studio.settings import StudioConfig
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_range, install
from geoseg_gan.utils.signals import noting_signals

HOST = "127.0.0.1"

# Nothing that the page shows may come from elsewhere. Gradio's page has scripts inside and builds
# functions of texts.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_FETCHES = re.compile(r"/(proxy=|file[=/]https?:)", re.IGNORECASE)  # what Gradio would fetch
_PATIENCE = 1  # seconds that open connections have to end
_LOOK = 0.1  # seconds after which a signal is looked for again
_LONGEST_END = 10  # seconds that the server has to end
_LARGEST_UPLOAD = "200mb"

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def studio(config: StudioConfig) -> None:
    """Serves the page until a signal ends this process.

    Args:
        config: Which generator and which folder of pairs it shows, and at which port.

    Raises:
        UserError: If configuration, checkpoints or folders are not as they must be, Gradio is not
            installed, or the port is taken.
    """
    check(config)
    from geoseg_gan.models.loaded import with_files

    config = with_files(config)
    # No figures about its use, no look for a newer version. Read when Gradio is imported.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        from geoseg_gan.studio import page
    except ImportError:
        raise UserError(
            f"the studio needs Gradio, which is not installed: {install('app')}."
        ) from None
    from geoseg_gan.studio.folder import PairFolder
    from geoseg_gan.studio.workbench import Workbench

    bench = None if config.gen_ckpt is None else Workbench(config)
    folder = None if config.save_dir is None else PairFolder(Path(config.save_dir))
    with (
        listen(config.port) as listener,
        tempfile.TemporaryDirectory(prefix="geoseg_gan_", ignore_cleanup_errors=True) as scratch,
    ):
        os.environ["GRADIO_TEMP_DIR"] = scratch  # what it shows and takes in, and serves files of
        built = page.build_page(bench, folder, Path(scratch, "pairs"), config.seed)
        serve(built, page.theme(), page.CSS, listener)


def check(config: StudioConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts."""
    if config.gen_ckpt is None and config.save_dir is None:
        raise UserError(
            "give gen_ckpt=G_e###.pt to generate with, save_dir=FOLDER of generated pairs to look "
            "through, or both."
        )
    check_range("port", config.port, 0, 65_535)
    check_range("image_size", config.image_size, 1, LARGEST_SIDE)
    check_range("seed", config.seed, 0, LARGEST_SEED)
    config.onnx.check()
    config.trainer.check()


def listen(port: int) -> socket.socket:
    """A socket that takes connections of this machine alone.

    Raises:
        UserError: If it cannot have the port.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"port={port} cannot be used ({error.strerror}). Give another one, or 0 for any that "
            "is free."
        ) from None
    return listener


def serve(page: Any, theme: Any, css: str, listener: socket.socket) -> None:
    """Serves a page of Gradio's until a signal comes, which is raised then."""
    import uvicorn
    from fastapi import FastAPI
    from gradio import mount_gradio_app

    port = listener.getsockname()[1]
    app = mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=_LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=css,
    )
    settings = uvicorn.Config(
        Guard(app, port),
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=_PATIENCE,
    )
    print(
        f"The studio is at http://{HOST}:{port}, on this machine only; Ctrl-C ends it.", flush=True
    )
    server = uvicorn.Server(settings)
    # Signals end what the main thread does, and asyncio may swallow what is raised within it; so
    # the server has a thread of its own, in which it leaves signals alone.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with noting_signals() as noted:
        thread.start()
        while thread.is_alive() and not noted.number:
            thread.join(_LOOK)
        server.should_exit = True
        thread.join(_LONGEST_END)


class Guard:
    """Lets only the page itself talk to the server, and the page to nothing but the server.

    Pages of other sites, which a browser may have open too, are refused by the origin of what they
    send; names of other sites that lead to this machine, by the host that is asked for.

    Args:
        app: The ASGI application behind it.
        port: The server's.
    """

    def __init__(self, app: Any, port: int) -> None:
        """Keeps both."""
        self._app = app
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers a request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        if self._is_own(scope):
            await self._app(scope, receive, send_guarded)
        else:
            await send_guarded({"type": "http.response.start", "status": 403})
            await send_guarded({"type": "http.response.body"})

    def _is_own(self, scope: Any) -> bool:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        return (
            scope["type"] == "http"
            and headers.get(b"host") in self._hosts
            and (origin is None or origin.removeprefix(b"http://") in self._hosts)
            and not _FETCHES.search(scope["path"])
        )

import asyncio
import socket
import sys

import psutil
import pytest

from geoseg_gan.studio.settings import studio_command
from geoseg_gan.studio.studio import Guard, check, listen
from geoseg_gan.utils.errors import UserError, install


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), r"give gen_ckpt=G_e###\.pt to generate with, save_dir=FOLDER"),
        (("save_dir=a", "port=65536"), "port=65536: use 0 or more, up to 65535"),
        (("save_dir=a", "seed=-1"), "seed=-1: use 0 or more"),
        (("gen_ckpt=a", "image_size=0"), "image_size=0: use 1 or more"),
        (("gen_ckpt=a", "onnx.std=[0]"), "onnx.std=.*above 0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(composed, settings, message):
    with pytest.raises(UserError, match=message):
        check(composed("studio", *settings))


def test_without_gradio_one_line_says_what_to_install(monkeypatch, run_command, capsys):
    monkeypatch.delitem(sys.modules, "geoseg_gan.studio.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_command(studio_command, "save_dir=pairs") == 1
    message = f"error: the studio needs Gradio, which is not installed: {install('app')}."
    assert capsys.readouterr().err == f"{message}\n"


def test_only_this_machine_can_connect_and_a_port_is_had_once():
    with listen(0) as listener:
        port = listener.getsockname()[1]
        own = [c for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == port]
        assert [(c.laddr.ip, c.status) for c in own] == [("127.0.0.1", psutil.CONN_LISTEN)]
        with pytest.raises(UserError, match=f"port={port} cannot be used .*0 for any that is free"):
            listen(port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.mark.parametrize(
    ("path", "host", "origin", "status"),
    [
        ("/", "127.0.0.1:7860", None, 200),
        ("/gradio_api/upload", "localhost:7860", "http://localhost:7860", 200),
        ("/gradio_api/file=/tmp/a.png", "127.0.0.1:7860", None, 200),
        ("/", "127.0.0.1:7861", None, 403),
        ("/", "elsewhere.org:7860", None, 403),
        ("/", None, None, 403),
        ("/gradio_api/upload", "127.0.0.1:7860", "https://elsewhere.org", 403),
        ("/gradio_api/upload", "127.0.0.1:7860", "https://127.0.0.1:7860", 403),
        ("/gradio_api/upload", "127.0.0.1:7860", "null", 403),
        ("/gradio_api/file=https://elsewhere.org/a.png", "127.0.0.1:7860", None, 403),
        ("/gradio_api/file/http://elsewhere.org/a.png", "127.0.0.1:7860", None, 403),
        ("/gradio_api/proxy=https://elsewhere.org", "127.0.0.1:7860", None, 403),
    ],
)
def test_other_sites_can_neither_ask_nor_be_asked(path, host, origin, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"page"})

    sent = []

    async def send(message):
        sent.append(message)

    given = {b"host": host, b"origin": origin}
    headers = [(name, value.encode()) for name, value in given.items() if value]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(app, 7860)(scope, None, send))
    assert sent[0]["status"] == status
    assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]
    assert (sent[1].get("body") == b"page") == (status == 200)

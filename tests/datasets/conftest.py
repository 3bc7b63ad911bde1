import http.server
import re
import socket
import threading

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty data cache; the network is forbidden."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("ZOO_DATA_DIR", str(directory))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    return directory


@pytest.fixture
def no_sockets(monkeypatch):
    """Makes every attempt to reach the network fail the test, also one that is caught."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("a test without network opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert attempts == []


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` with ranges; closes the connection after `server.break_after` bytes."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = self.range_start()
        if start >= len(body) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.server.break_after])
        self.close_connection = True

    def range_start(self):
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found and self.server.ranges else 0

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local HTTP server, with the network allowed and an empty cache."""
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.requests, httpd.break_after, httpd.ranges = {}, [], None, True
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()

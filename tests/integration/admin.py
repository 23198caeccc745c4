"""HTTP over DIR/admin.sock, as the CLI and object clients speak it."""

import http.client
import os
import socket


class Admin(http.client.HTTPConnection):
    def __init__(self, daemon, timeout=60):
        super().__init__("filmroom", timeout=timeout)
        self.path = os.path.join(daemon.data, "admin.sock")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(daemon, method, path, body=None, headers=None, timeout=60):
    """(status, headers, body) of one request, on a connection of its own."""
    c = Admin(daemon, timeout)
    try:
        c.request(method, path, body=body, headers=headers or {})
        r = c.getresponse()
        return r.status, r.headers, r.read()
    finally:
        c.close()

"""A small Hub on the loopback interface: it serves a folder of repositories, as huggingface_hub asks for them."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def loopback_hub(folder):
    """
    Serve `folder`, which holds files as `owner/name/file`, until the block ends.

    Yields:
        (str, list): the URL, for `HF_ENDPOINT`, and the requests so far, as (method, path).
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append((self.command, unquote(self.path)))
            repository, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
            file = folder / repository / rest.partition("/")[2]
            if self.path.startswith("/api/models/"):  # listings of folders, of which there are none
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if not repository or not (folder / repository).is_dir():
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def do_HEAD(self):
            self.do_GET()

        def answer(self, status, content, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A folder served over HTTP by a thread of the test, which counts what is asked for and can fail."""

import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Handler(SimpleHTTPRequestHandler):
    """Answers GET; the server's `answers` holds status codes to give first, by file name."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        if self.server.answers.get(name):
            return self.send_error(self.server.answers[name].pop(0))
        return super().do_GET()

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def served(folder):
    """Yield the server of a folder: `url`, `asked` (a Counter of file names) and `answers`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked, server.answers = Counter(), {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

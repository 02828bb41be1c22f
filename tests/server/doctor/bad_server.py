"""Serves sums of rows as Vertex AI requires, with one fault: `bad_server.py FAULT`."""

import base64
import http.server
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading

FAULT = sys.argv[1]
COUNT = itertools.count()
LIMITS = {"1 MB": 1 << 20, "5 MB": 5 << 20}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the routes that Vertex names."""

    def do_GET(self):
        """Answer the health route."""
        if FAULT == "slow health" or (FAULT == "slow at first" and next(COUNT) < 3):
            threading.Event().wait(2)
        unready = FAULT == "unready" or (
            FAULT == "no default" and not os.environ["AIP_STORAGE_URI"]
        )
        known = self.path == os.environ["AIP_HEALTH_ROUTE"]
        self.reply(503 if unready else 200 if known else 404, {})

    def do_POST(self):
        """Answer the predict route."""
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if self.path != os.environ["AIP_PREDICT_ROUTE"] or FAULT == "broken":
            return self.reply(500, {"error": "broken"})
        if size > LIMITS.get(FAULT, 1 << 30):
            return self.reply(413, {"error": "too large"})
        rows = json.loads(body)["instances"]
        if not (isinstance(rows[0], dict) and "x" in rows[0]):
            return self.reply_to_texts(rows)
        doubles = isinstance(rows[0]["x"][0], float)
        if FAULT == "small batch" and len(rows) > 32:
            return self.reply(400, {"error": "at most 32 instances"})
        if FAULT == "whole numbers" and doubles:
            return self.reply(400, {"error": "expected whole numbers"})
        if FAULT == "crashes" and next(COUNT) > 8:
            os._exit(1)
        if FAULT == "abrupt":
            threading.Event().wait(0.1)
        extra = 1 if FAULT == "other answers" and doubles else 0
        wordy = "." * 2_000_000 if FAULT == "wordy" else ""
        predictions = [sum(row["x"]) + extra for row in rows]
        return self.reply(200, {"predictions": predictions, "said": wordy})

    def reply_to_texts(self, rows):
        """Send the lengths of texts, in any of the forms that batch prediction has for them."""
        if FAULT == "no arrays" and isinstance(rows[0], list):
            return self.reply(400, {"error": "expected objects"})
        return self.reply(200, {"predictions": [self.length_of(row) for row in rows]})

    def length_of(self, row):
        """Return the length of a text."""
        if isinstance(row, dict) and "b64" in row:
            text = base64.b64decode(row["b64"]).decode()
            return len(text) + (FAULT == "other texts")
        return len(
            row["text"] if isinstance(row, dict) else row[0] if isinstance(row, list) else row
        )

    def reply(self, status, value):
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Log nothing; with the fault `noisy`, log a line to stderr that is no error."""
        if FAULT == "noisy":
            print("INFO: answered", file=sys.stderr, flush=True)


class Server(http.server.ThreadingHTTPServer):
    """On shutdown, waits for requests that are being answered."""

    daemon_threads = False
    request_queue_size = 128

    def drain_queue(self):
        """Answer connections that wait to be accepted, and would be reset; later ones are behind them."""
        for _ in range(self.request_queue_size):
            if not select.select([self], [], [], 0)[0]:
                return
            self.handle_request()


def main():
    """Serve until SIGTERM."""
    if FAULT == "dies":
        sys.exit("no model here")
    if FAULT == "logs its end":
        print('{"severity": "CRITICAL", "message": "no model here"}')
        sys.exit(3)
    if FAULT == "mute":
        sys.exit(1)
    if FAULT == "leaves a child":
        subprocess.Popen(["/bin/sleep", "20"], start_new_session=True)
        sys.exit("no model here")
    if FAULT == "silent":
        threading.Event().wait(60)
    host = "127.0.0.1" if FAULT == "local" else "0.0.0.0"  # noqa: S104
    server = Server((host, int(os.environ["AIP_HTTP_PORT"])), Handler)

    def stop(*_):
        if FAULT != "stubborn":  # shutdown waits for serve_forever, which this handler interrupts
            threading.Thread(target=server.shutdown).start()

    if FAULT != "abrupt":
        signal.signal(signal.SIGTERM, stop)
    server.serve_forever(0.01)
    server.drain_queue()
    server.server_close()


main()

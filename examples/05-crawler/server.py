"""Pages to crawl: /page is good, /broken answers 500, /slow does not answer in time. Prints its port."""
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(30 if self.path.startswith("/slow") else 0.05)
        self.send_response(500 if self.path.startswith("/broken") else 200)
        self.end_headers()
        self.wfile.write(b"<html>" + b"x" * 1000)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
print(server.server_port, flush=True)
server.serve_forever()

#!/usr/bin/env python3
"""What operators see, of the real binary: the status page in a headless Chromium, and whether dashboards and alerts find in
/metrics what they ask for.

    scripts/check_seen.py BINARY OUT_FOLDER

Starts BINARY on a free port with an API key, asks it for a little of everything, and gives it to check_status_page.mjs and
check_dashboards.py. Pictures of the page and the metrics are in OUT_FOLDER afterwards. CHROMIUM names another browser.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

KEY = "check-seen"
HERE = pathlib.Path(__file__).resolve().parent
READY_TIME_MAX_S = 60


def ask(url: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return answer.read()


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + READY_TIME_MAX_S
    while True:
        try:
            ask(f"{url}/ready")
            return
        except OSError as error:
            if time.monotonic() > end:
                sys.exit(f"check_seen.py: not ready after {READY_TIME_MAX_S} s: {error}")
            time.sleep(0.1)


def work(url: str) -> None:
    controls = [{"control_id": str(n), "text": f"Control {n}: access to systems is logged"} for n in range(20)]
    ask(f"{url}/api/v1/embed/batch", {"items": controls})
    # Hits.
    ask(f"{url}/api/v1/embed/batch", {"items": controls})
    ask(f"{url}/api/v1/rerank", {"source_text": "Logs are kept", "candidates": controls})
    ask(f"{url}/api/v1/retrieve", {"source_embedding": [1, 0], "target_embeddings": [[1, 0], [0, 1]]})


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    binary, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        settings = {"NEXUS_PORT": "0", "NEXUS_CACHE_DIR": cache, "NEXUS_API_KEYS": f"checks:{digest}"}
        service = subprocess.Popen(
            [binary, "serve"], env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            url = service.stdout.readline().removeprefix("listening on ").strip()
            wait_until_ready(url)
            work(url)
            metrics = out / "metrics.txt"
            metrics.write_bytes(ask(f"{url}/metrics"))
            dashboards = subprocess.run([sys.executable, HERE / "check_dashboards.py", metrics], check=False)
            page = subprocess.run(
                ["node", HERE / "check_status_page.mjs", url, out / "page"], env=os.environ | {"NEXUS_KEY": KEY}, check=False
            )
            return int(dashboards.returncode != 0 or page.returncode != 0)
        finally:
            service.terminate()
            service.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())

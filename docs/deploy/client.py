"""Classify images over HTTP: python client.py http://127.0.0.1:8000 IMAGE... (the key, if any, in VITRAIL_API_KEY)."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def classify(server: str, image: bytes, key: str = "") -> dict:
    """Return the result of one image: its `topk` or its `error`; wait where the server is full."""
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{server}/predict", image, headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["results"][0]
        except urllib.error.HTTPError as error:
            if error.code != 429:
                found = json.load(error)
                return found["results"][0] if "results" in found else found
            time.sleep(int(error.headers["Retry-After"]))


if __name__ == "__main__":
    for path in sys.argv[2:]:
        found = classify(sys.argv[1], Path(path).read_bytes(), os.environ.get("VITRAIL_API_KEY", ""))
        print(path, *(f"{c['name']} {c['probability']:.4f}" for c in found.get("topk", [])), found.get("error", ""))

"""Classify images over HTTP: python client.py http://127.0.0.1:8000 IMAGE... (the key, if any, in VITRAIL_API_KEY)."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def classify(server: str, image: bytes, key: str = "") -> dict:
    """Return one image's `topk` (or `labels`, of a model that gives any number of classes), or its `error`."""
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{server}/predict", image, headers)) as answer:
                return json.load(answer)["results"][0]
        except urllib.error.HTTPError as error:
            if error.code != 429:
                is_ours = "json" in error.headers.get("Content-Type", "")  # and not of a proxy
                return (found := json.load(error)).get("results", [found])[0] if is_ours else {"error": str(error)}
            time.sleep(int(error.headers["Retry-After"]))  # the server is full


if __name__ == "__main__":
    for path in sys.argv[2:]:
        found = classify(sys.argv[1], Path(path).read_bytes(), os.environ.get("VITRAIL_API_KEY", ""))
        classes = [f"{one['name']} {one['probability']:.4f}" for one in found.get("topk") or found.get("labels") or []]
        print(path, found["error"] if "error" in found else ", ".join(classes) or "no class")

#!/opt/modelyard/bin/python
"""Exit code 0 where an address answers 200: `answers http://127.0.0.1:4200/api/health`. For health checks, since the image has no curl."""

import base64
import os
import sys
import urllib.request

headers = {}
if account := os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING"):
    headers["Authorization"] = "Basic " + base64.b64encode(account.encode()).decode()
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=5) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")

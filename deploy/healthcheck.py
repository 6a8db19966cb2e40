"""Ask the server of this container whether it lives: exit code 0 if it does. For HEALTHCHECK.

The address is the one that the server wrote into its home, so that any port and HTTPS do. The
certificate is not verified: it is made for the names that others call the server by.
"""

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

_SECONDS = 2.0


def main() -> int:
    home = Path(os.environ.get("BITINGLIP_HOME", "/data"))
    try:
        url = json.loads((home / "server.json").read_bytes())["url"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        # No proxy of the environment: it could not reach this container's loopback.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        opener.open(f"{url}/livez", timeout=_SECONDS).close()
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

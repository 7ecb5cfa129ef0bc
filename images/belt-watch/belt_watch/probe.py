"""Asks `/healthz` of this container, for probes and health checks: exit code 0 when it is healthy. No curl is needed."""

import http.client
import os
import sys

TIMEOUT = 5.0


def main() -> int:
    """Prints the answer and returns the exit code."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("BELT_PORT") or 8080), timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        print(answer.read().decode(errors="replace").strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

"""The connection of the other programs: the URL is the one that `millpond env` prints."""

import os
import sys

import nats


async def refused(error):
    """Here the library tells of what the server refuses later than the call: a publish that is not allowed, say."""
    print(type(error).__name__, error, file=sys.stderr)


async def connect():
    return await nats.connect(os.environ["MILLPOND_NATS_URL"], max_reconnect_attempts=-1, error_cb=refused)

import asyncio
import sys

from nats.js.errors import KeyWrongLastSequenceError

from connect import connect


async def main(key):
    nc = await connect()
    shared = await nc.jetstream().key_value("millpond_shared")
    first = await shared.put(key, b"5")
    await shared.update(key, b"6", last=first)
    try:
        await shared.update(key, b"7", last=first)
    except KeyWrongLastSequenceError:
        print("another was faster")
    entry, watch = None, await shared.watchall()
    while entry is None or entry.key != key:  # nats-py may say None, the end of the listing, before the first key: read on.
        entry = await watch.updates()
    print((await shared.get(key)).value.decode(), "listed")
    print(entry.value.decode())
    await nc.close()


asyncio.run(main(sys.argv[1]))

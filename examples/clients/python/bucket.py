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
    print((await shared.get(key)).value.decode(), "listed" if key in await shared.keys() else "lost")
    watch = await shared.watch(key)
    print((await watch.updates()).value.decode())
    await nc.close()


asyncio.run(main(sys.argv[1]))

import asyncio

from connect import connect


async def main():
    nc = await connect()
    ack = await nc.jetstream().publish("tasks.default.square", b"12")
    print("stored in", ack.stream)
    await nc.close()


asyncio.run(main())

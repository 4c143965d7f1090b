import asyncio
import sys

from connect import connect


async def main(id):
    nc = await connect()
    for _ in range(2):
        ack = await nc.jetstream().publish("tasks.default.square", b"12", headers={"Nats-Msg-Id": id})
        print("duplicate" if ack.duplicate else "stored")
    await nc.close()


asyncio.run(main(sys.argv[1]))

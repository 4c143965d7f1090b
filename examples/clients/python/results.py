import asyncio
import json
import sys

from connect import connect


async def main(job):
    nc = await connect()
    sub = await nc.jetstream().subscribe(f"results.{job}.>", ordered_consumer=True)
    values = {}
    while len(values) < 10:
        message = await sub.next_msg(timeout=60)
        for outcome in json.loads(message.data)["outcomes"]:
            for place, value in enumerate(outcome["results"]):
                values[outcome["index"] + place] = value
    print(json.dumps([values[n] for n in range(10)], separators=(",", ":")))
    await nc.close()


asyncio.run(main(sys.argv[1]))

import asyncio
import json
import sys

from connect import connect


def ended(outcome):
    """How many of its items have ended: not those that are to run again."""
    again = [item for item in outcome.get("not_done", []) if item["end"] in ("retry", "rest")]
    return len(outcome["results"]) - len(again)


async def main(job):
    nc = await connect()
    results = await nc.subscribe(f"results.{job}.>")
    for n in range(10):
        headers = {"Nats-Msg-Id": f"{job}-{n}", "Millpond-Index": str(n)}
        await nc.jetstream().publish(f"tasks.default.square.j-{job}", str(n).encode(), headers=headers)
    count = 0
    while count < 10:
        message = await results.next_msg(timeout=60)
        count += sum(ended(outcome) for outcome in json.loads(message.data)["outcomes"])
        print(f"{count} of 10", file=sys.stderr)
    print("all have ended")
    await nc.close()


asyncio.run(main(sys.argv[1]))

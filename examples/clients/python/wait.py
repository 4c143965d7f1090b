import asyncio
import json
import os
import sys
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from connect import connect


def asked(id):
    """The end as the collector has it; none while there is none, or while the collector does not answer."""
    query = urlencode({"id": id, "queue": "default"})
    url = f"{os.environ['MILLPOND_COLLECTOR_URL']}/api/v1/task?{query}"
    request = Request(url, headers={"Authorization": f"Bearer {os.environ['MILLPOND_TOKEN']}"})
    try:
        with urlopen(request, timeout=10) as answer:
            task = json.load(answer)
    except (URLError, TimeoutError):
        return None
    return task if task["status"] in ("done", "dead", "cancelled") else None


async def main(id):
    nc = await connect()
    replies = await nc.subscribe(f"reply.{id}")
    headers = {"Nats-Msg-Id": id, "Millpond-Reply-To": f"reply.{id}"}
    while True:
        try:
            ack = await nc.jetstream().publish("tasks.default.sleep", sys.argv[2].encode(), headers=headers)
            break
        except Exception as error:  # An outage: the same again, with the same id.
            print("again:", error, file=sys.stderr)
            await asyncio.sleep(0.5)
    # A duplicate may have ended long ago: then nobody tells it again.
    end = await asyncio.to_thread(asked, id) if ack.duplicate else None
    while end is None:
        try:
            end = json.loads((await replies.next_msg(timeout=1)).data)
        except asyncio.TimeoutError:
            end = await asyncio.to_thread(asked, id)
    print(end["status"])
    await nc.close()


asyncio.run(main(sys.argv[1]))

import asyncio
import json
import os
import sys
from urllib.request import Request, urlopen

from connect import connect


def put(body):
    """Stores a payload; the headers of a task that takes it as its arguments."""
    url, token = os.environ["MILLPOND_PRODUCER_URL"], os.environ["MILLPOND_TOKEN"]
    request = Request(f"{url}/v1/payloads", data=body, method="PUT", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request) as answer:
        return {"Millpond-Ref": answer.headers["Millpond-Ref"], "Millpond-Expires": json.load(answer)["expires"]}


async def main(id):
    nc = await connect()
    replies = await nc.subscribe(f"reply.{id}")
    large = json.dumps("large " * 300_000).encode()
    headers = {"Nats-Msg-Id": id, "Millpond-Reply-To": f"reply.{id}", **await asyncio.to_thread(put, large)}
    await nc.jetstream().publish("tasks.default.echo", b"", headers=headers)
    end = json.loads((await replies.next_msg(timeout=60)).data)
    payloads = await nc.jetstream().object_store("millpond_payloads")
    result = (await payloads.get(end["ref"]["object"])).data
    print("the same" if result == large else "something else")
    await nc.close()


asyncio.run(main(sys.argv[1]))

"""Publishes a task and prints its end, over any outage of the server: it is told on Millpond-Reply-To, and asked for by its id.

    pip install nats-py
    eval "$(millpond env)"
    python3 outage.py default square 12 order-7
"""

import asyncio
import json
import os
import sys
import uuid

import nats
from nats.errors import Error

ASK_EVERY = 0.5  # seconds
ENDS = ("done", "dead", "cancelled")


async def main(queue, kind, arguments, task_id):
    end = asyncio.get_running_loop().create_future()

    def note(told):
        if told["status"] in ENDS and not end.done():
            end.set_result(told)

    async def on_end(message):
        note(json.loads(message.data))

    async def on_reconnect():
        print("connected again", file=sys.stderr, flush=True)

    async def on_error(error):
        print(f"NATS: {error!r}", file=sys.stderr, flush=True)

    client = await nats.connect(
        os.environ["MILLPOND_NATS_URL"], max_reconnect_attempts=-1, reconnected_cb=on_reconnect, error_cb=on_error
    )
    # Before the publish: an end that comes earlier is not heard.
    reply_to = f"reply.{uuid.uuid4().hex}"
    await client.subscribe(reply_to, cb=on_end)
    headers = {"Nats-Msg-Id": task_id, "Millpond-Reply-To": reply_to}
    while True:
        try:
            ack = await client.jetstream().publish(f"tasks.{queue}.{kind}", arguments.encode(), headers=headers)
            break
        except (Error, OSError) as error:
            # It may be stored all the same: published again with the same id, it is a duplicate.
            print(f"not acknowledged: {error!r}", file=sys.stderr, flush=True)
            await asyncio.sleep(ASK_EVERY)
    print("stored before" if ack.duplicate else "stored", file=sys.stderr, flush=True)
    question = json.dumps({"queue": queue, "kind": kind, "id": task_id}).encode()
    while not end.done():
        try:
            answer = json.loads((await client.request("ctl.request.results", question, timeout=1)).data)
            for row in answer.get("ok", {}).get("rows", []):
                note(row)
        except (Error, OSError):
            pass  # There is no connection, or no collector has one yet.
        await asyncio.wait([end], timeout=ASK_EVERY)
    print(json.dumps({name: end.result().get(name) for name in ("id", "status", "result", "failure")}), flush=True)
    await client.close()


asyncio.run(main(*sys.argv[1:]))

import asyncio
import json
import uuid
from datetime import datetime, timedelta, timezone

from connect import connect


async def main():
    nc = await connect()
    reply = f"reply.{uuid.uuid4().hex}"
    end = await nc.subscribe(reply)
    at = datetime.now(timezone.utc) + timedelta(seconds=2)
    headers = {"Millpond-At": at.isoformat(), "Millpond-Reply-To": reply}
    await nc.jetstream().publish("later.default.square", b"12", headers=headers)
    print(json.loads((await end.next_msg(timeout=60)).data)["result"])
    print("not before its time" if datetime.now(timezone.utc) >= at else "too early")
    await nc.close()


asyncio.run(main())

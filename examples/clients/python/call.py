import asyncio
import json

from nats.errors import NoRespondersError

from connect import connect


async def main():
    nc = await connect()
    answer = await nc.request("call.default.square", b"12", timeout=30)
    print(answer.data.decode())
    answer = await nc.request("call.default.fail", b'{"how": "error"}', timeout=30)
    code = (answer.headers or {}).get("Nats-Service-Error-Code")
    print(code, json.loads(answer.data)["type"])
    try:
        await nc.request("call.default.nobody", b"1", timeout=30)
    except NoRespondersError:
        print("no worker answers")
    await nc.close()


asyncio.run(main())

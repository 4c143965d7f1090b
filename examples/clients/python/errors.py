import asyncio
import sys

from nats.errors import NoRespondersError, TimeoutError
from nats.js.errors import APIError, NoStreamResponseError

from connect import connect


async def main(key):
    nc = await connect()
    js = nc.jetstream()
    try:
        await nc.request("tasks.default", b"12")
    except NoRespondersError as error:
        print("a subject of another shape:", type(error).__name__)
    try:
        await js.publish("tasks.default", b"12")
    except NoStreamResponseError as error:
        print("the same by JetStream:", type(error).__name__)
    try:
        await js.publish("tasks.default.echo", b"1" * 1_500_000)
    except APIError as error:
        print("too large:", error.err_code)
    alone = {"Nats-Expected-Last-Subject-Sequence": "0"}
    try:
        for _ in range(2):
            await js.publish(f"tasks.default.sleep.u-{key}", b"5", headers=alone)
    except APIError as error:
        print("a unique key that is taken:", error.err_code)
    try:
        await js.publish("results.not.allowed.here", b"12", timeout=1)
    except TimeoutError as error:
        print("not allowed:", type(error).__name__)
    await nc.close()


asyncio.run(main(sys.argv[1]))

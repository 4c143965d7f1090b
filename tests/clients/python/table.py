"""Each cell of the table in tests/clients.rs with nats-py, in the ordinary ways of the library: `ok CELL`, or `FAILED CELL: why`."""

import asyncio
import hashlib
import json
import os
import sys
import uuid
from datetime import datetime, timedelta, timezone
from urllib.request import Request, urlopen

import nats
from nats.errors import NoRespondersError, TimeoutError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NoKeysError, NotFoundError

CELLS = []
failed = []


def cell(run):
    CELLS.append(run)
    return run


def wants(found, wanted):
    assert found == wanted, f"{found!r} instead of {wanted!r}"


class Client:
    def __init__(self):
        self.refusals = []

    async def connect(self, variable="MILLPOND_NATS_URL"):
        async def refused(error):
            self.refusals.append(str(error))

        inbox = "_INBOX_producer" if variable == "MILLPOND_PRODUCER_NATS_URL" else "_INBOX"
        self.nc = await nats.connect(os.environ[variable], error_cb=refused, inbox_prefix=inbox)
        self.js = self.nc.jetstream()
        return self

    async def end(self, subject, body, **headers):
        """Publishes a task; its end, as it is told."""
        reply = f"reply.{uuid.uuid4().hex}"
        replies = await self.nc.subscribe(reply)
        headers = {"Millpond-Reply-To": reply, **{name.replace("_", "-"): value for name, value in headers.items()}}
        await self.js.publish(subject, body, headers=headers)
        end = json.loads((await replies.next_msg(timeout=60)).data)
        await replies.unsubscribe()
        return end


@cell
async def publish(c):
    ack = await c.js.publish("tasks.default.square", b"12")
    wants((ack.stream, bool(ack.duplicate)), ("TASKS", False))
    wants(json.loads((await c.nc.request("tasks.default.square", b"12")).data)["stream"], "TASKS")


@cell
async def duplicate(c):
    acks = [await c.js.publish("tasks.default.square", b"12", headers={"Nats-Msg-Id": "table-py"}) for _ in range(2)]
    wants([bool(ack.duplicate) for ack in acks], [False, True])


@cell
async def reply_to(c):
    end = await c.end("tasks.default.square", b"12")
    wants((end["status"], end["result"]), ("done", 144))


@cell
async def http_wait(c):
    url = os.environ["MILLPOND_PRODUCER_URL"] + "/v1/tasks/default/square?wait=30s"
    request = Request(url, data=b"12", headers={"Authorization": f"Bearer {os.environ['MILLPOND_TOKEN']}"})
    answer = await asyncio.to_thread(lambda: json.load(urlopen(request, timeout=60)))
    wants(answer["result"], 144)


@cell
async def delayed(c):
    at = datetime.now(timezone.utc) + timedelta(seconds=1)
    end = await c.end("later.default.square", b"12", Millpond_At=at.isoformat())
    wants((end["result"], datetime.now(timezone.utc) >= at), (144, True))
    end = await c.end("later.default.square", b"11", Millpond_Delay="300ms")
    wants(end["result"], 121)


@cell
async def expires(c):
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    end = await c.end("tasks.default.square", b"12", Millpond_Expires=past.isoformat())
    wants(end["status"], "dead")
    later = datetime.now(timezone.utc) + timedelta(minutes=5)
    end = await c.end("tasks.default.square", b"12", Millpond_Expires=later.isoformat())
    wants(end["status"], "done")


@cell
async def timeout_and_attempts(c):
    end = await c.end("tasks.default.sleep", b"30", Millpond_Timeout="PT0.5S", Millpond_Attempts_Max="1")
    wants((end["status"], end["attempt"], end["failure"]["type"]), ("dead", 1, "timeout"))


@cell
async def death(c):
    end = await c.end("tasks.default.fail", b'{"how": "error"}', Millpond_Attempts_Max="2")
    wants((end["status"], end["attempt"]), ("dead", 2))


@cell
async def continuation(c):
    end = await c.end("tasks.default.square", b"3", Millpond_Continuation="square")
    wants(end["result"], 81)


@cell
async def unique(c):
    for stream in ["later", "due", "tasks"]:
        for direct in [False, True]:
            try:
                await c.js.get_last_msg(stream.upper(), f"{stream}.default.sleep.u-table-py", direct=direct)
                raise AssertionError("not free")
            except NotFoundError:
                pass
    alone = {"Nats-Expected-Last-Subject-Sequence": "0"}
    await c.js.publish("tasks.default.sleep.u-table-py", b"3", headers=alone)
    try:
        await c.js.publish("tasks.default.sleep.u-table-py", b"3", headers=alone)
        raise AssertionError("stored twice")
    except APIError as error:
        wants(error.err_code, 10071)


@cell
async def batch(c):
    reply = f"reply.{uuid.uuid4().hex}"
    replies = await c.nc.subscribe(reply)
    headers = {"Millpond-Batch": "3", "Millpond-Reply-To": reply}
    await c.js.publish("tasks.default.square", b"[1, 2, 3]", headers=headers)
    ends = [json.loads((await replies.next_msg(timeout=60)).data) for _ in range(3)]
    wants(sorted(end["result"] for end in ends), [1, 4, 9])


@cell
async def job(c):
    heard = await c.nc.subscribe("results.table-py.>")
    for n in range(3):
        await c.js.publish("tasks.default.square.j-table-py", str(n).encode(), headers={"Millpond-Index": str(n)})
    found = {}
    while len(found) < 3:
        for outcome in json.loads((await heard.next_msg(timeout=60)).data)["outcomes"]:
            found |= {outcome["index"] + place: value for place, value in enumerate(outcome["results"])}
    wants(found, {0: 0, 1: 1, 2: 4})


@cell
async def results_ordered(c):
    # With a filter, with all of the stream, and with more than one filter.
    for subject, config in [
        ("results.table-py.>", None),
        ("results.>", None),
        ("results.>", ConsumerConfig(filter_subjects=["results.table-py.>", "results.none.>"])),
    ]:
        sub = await c.js.subscribe(subject, ordered_consumer=True, config=config)
        message = await sub.next_msg(timeout=10)
        assert json.loads(message.data)["outcomes"] and message.subject.startswith("results."), message.data
        await sub.unsubscribe()


@cell
async def results_acked(c):
    # By push and by pull, with an ack that is answered: what is acked does not come again.
    push = await c.js.subscribe("results.table-py.>")
    await (await push.next_msg(timeout=10)).ack_sync(timeout=10)
    await push.unsubscribe()
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=1, inactive_threshold=60)
    pull = await c.js.pull_subscribe("results.table-py.>", config=config)
    seen = []
    try:
        while True:
            for message in await pull.fetch(10, timeout=2):
                seen.append(message.metadata.sequence.stream)
                await message.ack_sync(timeout=10)
    except TimeoutError:
        pass
    assert seen and len(seen) == len(set(seen)), seen
    await pull.unsubscribe()


@cell
async def results_durable(c):
    sub = await c.js.pull_subscribe("results.table-py.>", durable="table-py")
    await (await sub.fetch(1, timeout=10))[0].ack_sync(timeout=10)
    wants((await sub.consumer_info()).name, "table-py")
    wants(await c.js.delete_consumer("RESULTS", "table-py"), True)


@cell
async def results_filters(c):
    config = ConsumerConfig(
        filter_subjects=["results.table-py.>", "results.none.>"], ack_policy=AckPolicy.NONE, inactive_threshold=60
    )
    consumer = await c.js.add_consumer("RESULTS", config)
    sub = await c.js.pull_subscribe_bind(consumer=consumer.name, stream="RESULTS")
    assert (await sub.fetch(1, timeout=10))[0].subject.startswith("results.table-py.")


@cell
async def results_looked_up(c):
    wants(await c.js.find_stream_name_by_subject("results.>"), "RESULTS")
    assert (await c.js.get_last_msg("RESULTS", "results.table-py.default.square")).data
    assert (await c.js.stream_info("RESULTS")).state.messages


@cell
async def call(c):
    wants((await c.nc.request("call.default.square", b"12", timeout=30)).data, b"144")
    failure = await c.nc.request("call.default.fail", b'{"how": "error"}', timeout=30)
    wants(failure.headers["Nats-Service-Error-Code"], "500")
    try:
        await c.nc.request("call.default.nobody", b"1", timeout=30)
        raise AssertionError("answered")
    except NoRespondersError:
        pass


@cell
async def pipe(c):
    name = uuid.uuid4().hex
    said = await c.nc.subscribe(f"pipe.{name}.out")
    headers = {"Millpond-Pipe": name, "Millpond-Pipe-Capacity": "16"}
    begun = await c.nc.request("call.default.talk", b"{}", headers=headers, timeout=30)
    wants(begun.headers["Millpond-Pipe"], name)
    await c.nc.publish(f"pipe.{name}.in", b"hello", headers={"Millpond-Seq": "1"})
    await c.nc.publish(f"pipe.{name}.in", b"", headers={"Millpond-Seq": "2", "Millpond-End": "ok"})
    heard, got = [], "0"
    # Each side says something each second: who is silent is taken for gone.
    while not heard or heard[-1].headers.get("Millpond-End") is None:
        try:
            message = await said.next_msg(timeout=1)
            if (message.headers or {}).get("Millpond-Seq"):
                heard.append(message)
                got = message.headers["Millpond-Seq"]
        except TimeoutError:
            pass
        await c.nc.publish(f"pipe.{name}.in", b"", headers={"Millpond-Got": got})
    wants(heard[0].data, b"heard hello")
    wants(heard[-1].headers["Millpond-End"], "ok")


async def listed(ask):
    """What `ask` lists of a bucket that has keys; nats-py may take a listing for ended before its first key, and is asked again."""
    for _ in range(20):
        try:
            return await ask()
        except NoKeysError:
            await asyncio.sleep(0.1)


@cell
async def buckets(c):
    for name in ["millpond_shared", "millpond_jobs", "millpond_queues"]:
        kv = await c.js.key_value(name)
        if name != "millpond_queues":
            first = await kv.put("table-py", b"1")
            wants((await kv.get("table-py")).value, b"1")
            await kv.update("table-py", b"2", last=first)
            for refused in [kv.update("table-py", b"3", last=first), kv.create("table-py", b"3")]:
                try:
                    await refused
                    raise AssertionError("not refused")
                except KeyWrongLastSequenceError:
                    pass
            wants((await listed(lambda: kv.history("table-py")))[0].value, b"2")
        assert await listed(kv.keys), name
        watch, seen = await kv.watchall(), []
        async for entry in watch:
            if entry is not None:
                seen.append(entry.key)
            elif seen:
                break
            else:  # Said too early, see listed().
                seen.append((await watch.updates()).key)
                break
        await watch.stop()
        assert seen and (await kv.status()).values >= len(seen), name
        if name != "millpond_queues":
            await kv.delete("table-py")
            try:
                await kv.get("table-py")
                raise AssertionError("still there")
            except KeyNotFoundError:
                pass


@cell
async def claim_check(c):
    payloads = await c.js.object_store("millpond_payloads")
    large = json.dumps("py " * 700_000).encode()
    url, token = os.environ["MILLPOND_PRODUCER_URL"] + "/v1/payloads", os.environ["MILLPOND_TOKEN"]
    request = Request(url, data=large, method="PUT", headers={"Authorization": f"Bearer {token}"})
    ref = await asyncio.to_thread(lambda: urlopen(request, timeout=60).headers["Millpond-Ref"])
    wants(json.loads(ref)["sha256"], hashlib.sha256(large).hexdigest())
    end = await c.end("tasks.default.echo", b"", Millpond_Ref=ref)
    assert (await payloads.get(end["ref"]["object"])).data == large


@cell
async def denied(c):
    try:
        await c.js.publish("results.not.allowed.here", b"12", timeout=1)
        raise AssertionError("stored")
    except TimeoutError:
        assert any("results.not.allowed.here" in refusal for refusal in c.refusals), c.refusals


@cell
async def other_roles(c):
    for variable in ["MILLPOND_PUBLISHER_NATS_URL", "MILLPOND_PRODUCER_NATS_URL"]:
        other = await Client().connect(variable)
        wants((await other.js.publish("tasks.default.square", b"12")).stream, "TASKS")
        wants(json.loads((await other.nc.request("tasks.default.square", b"12")).data)["stream"], "TASKS")
        wants(other.refusals, [])
        await other.nc.close()


async def main():
    client = await Client().connect()
    for run in CELLS:
        try:
            await asyncio.wait_for(run(client), 90)
            print("ok", run.__name__, flush=True)
        except Exception as error:
            failed.append(run)
            print(f"FAILED {run.__name__}: {error!r}; refused: {client.refusals}", flush=True)
    await client.nc.close()
    sys.exit(1 if failed else 0)


asyncio.run(main())

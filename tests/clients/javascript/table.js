// Each cell of the table in tests/clients.rs with @nats-io/*, in the ordinary ways of the library: `ok CELL`, or `FAILED CELL: why`.
import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as dial, headers } from "@nats-io/transport-node";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { Objm } from "@nats-io/obj";

const { env } = process;

async function connect(variable = "MILLPOND_NATS_URL") {
  const url = new URL(env[variable]);
  const inboxPrefix = variable === "MILLPOND_PRODUCER_NATS_URL" ? "_INBOX_producer" : undefined;
  const nc = await dial({ servers: url.host, user: url.username, pass: url.password, inboxPrefix });
  const refusals = [];
  (async () => {
    for await (const status of nc.status()) if (status.type === "error") refusals.push(String(status.error));
  })();
  return { nc, js: jetstream(nc), refusals };
}

function head(values) {
  const made = headers();
  for (const [name, value] of Object.entries(values)) made.set(name, value);
  return made;
}

async function next(subscription, ms = 60_000) {
  const late = sleep(ms, null, { ref: false }).then(() => Promise.reject(new Error("nothing came")));
  return (await Promise.race([subscription[Symbol.asyncIterator]().next(), late])).value;
}

// Publishes a task; its end, as it is told.
async function end({ nc, js }, subject, body, more = {}) {
  const reply = `reply.${randomUUID()}`;
  const replies = nc.subscribe(reply);
  await js.publish(subject, body, { headers: head({ "Millpond-Reply-To": reply, ...more }) });
  const ended = (await next(replies)).json();
  replies.unsubscribe();
  return ended;
}

const cells = {
  async publish({ nc, js }) {
    const ack = await js.publish("tasks.default.square", "12");
    assert.deepEqual([ack.stream, ack.duplicate], ["TASKS", false]);
    assert.equal((await nc.request("tasks.default.square", "12")).json().stream, "TASKS");
  },
  async duplicate({ js }) {
    const once = () => js.publish("tasks.default.square", "12", { msgID: "table-js" });
    assert.deepEqual([(await once()).duplicate, (await once()).duplicate], [false, true]);
  },
  async reply_to(c) {
    const ended = await end(c, "tasks.default.square", "12");
    assert.deepEqual([ended.status, ended.result], ["done", 144]);
  },
  async http_wait() {
    const answer = await fetch(`${env.MILLPOND_PRODUCER_URL}/v1/tasks/default/square?wait=30s`, {
      method: "POST",
      headers: { Authorization: `Bearer ${env.MILLPOND_TOKEN}` },
      body: "12",
    });
    assert.equal((await answer.json()).result, 144);
  },
  async delayed(c) {
    const at = new Date(Date.now() + 1000);
    const ended = await end(c, "later.default.square", "12", { "Millpond-At": at.toISOString() });
    assert.deepEqual([ended.result, new Date() >= at], [144, true]);
    assert.equal((await end(c, "later.default.square", "11", { "Millpond-Delay": "300ms" })).result, 121);
  },
  async expires(c) {
    const in_ms = (ms) => ({ "Millpond-Expires": new Date(Date.now() + ms).toISOString() });
    assert.equal((await end(c, "tasks.default.square", "12", in_ms(-1000))).status, "dead");
    assert.equal((await end(c, "tasks.default.square", "12", in_ms(300_000))).status, "done");
  },
  async timeout_and_attempts(c) {
    const limits = { "Millpond-Timeout": "PT0.5S", "Millpond-Attempts-Max": "1" };
    const ended = await end(c, "tasks.default.sleep", "30", limits);
    assert.deepEqual([ended.status, ended.attempt, ended.failure.type], ["dead", 1, "timeout"]);
  },
  async death(c) {
    const ended = await end(c, "tasks.default.fail", '{"how": "error"}', { "Millpond-Attempts-Max": "2" });
    assert.deepEqual([ended.status, ended.attempt], ["dead", 2]);
  },
  async continuation(c) {
    assert.equal((await end(c, "tasks.default.square", "3", { "Millpond-Continuation": "square" })).result, 81);
  },
  async unique({ js }) {
    const jsm = await jetstreamManager(js.nc);
    for (const stream of ["later", "due", "tasks"]) {
      const last = { last_by_subj: `${stream}.default.sleep.u-table-js` };
      assert.equal(await jsm.direct.getMessage(stream.toUpperCase(), last), null);
    }
    const alone = () => js.publish("tasks.default.sleep.u-table-js", "3", { expect: { lastSubjectSequence: 0 } });
    await alone();
    await assert.rejects(alone, { code: 10071 });
  },
  async batch({ nc, js }) {
    const reply = `reply.${randomUUID()}`;
    const replies = nc.subscribe(reply, { max: 3 });
    const many = head({ "Millpond-Batch": "3", "Millpond-Reply-To": reply });
    await js.publish("tasks.default.square", "[1, 2, 3]", { headers: many });
    const results = [];
    for await (const message of replies) results.push(message.json().result);
    assert.deepEqual(results.sort(), [1, 4, 9]);
  },
  async job({ nc, js }) {
    const heard = nc.subscribe("results.table-js.>");
    for (let n = 0; n < 3; n++) {
      await js.publish("tasks.default.square.j-table-js", `${n}`, { headers: head({ "Millpond-Index": `${n}` }) });
    }
    const found = {};
    for await (const message of heard) {
      for (const outcome of message.json().outcomes) {
        outcome.results.forEach((value, place) => (found[outcome.index + place] = value));
      }
      if (Object.keys(found).length === 3) break;
    }
    assert.deepEqual(found, { 0: 0, 1: 1, 2: 4 });
  },
  async results_ordered({ js }) {
    for (const filter of [{}, { filter_subjects: "results.table-js.>" }, { filter_subjects: ["results.table-js.>", "results.none.>"] }]) {
      const consumer = await js.consumers.get("RESULTS", filter);
      const message = await consumer.next({ expires: 10_000 });
      assert.ok(message.json().outcomes);
      await consumer.delete();
    }
  },
  async results_acked({ js }) {
    const jsm = await jetstreamManager(js.nc);
    const made = await jsm.consumers.add("RESULTS", {
      ack_policy: AckPolicy.Explicit,
      ack_wait: 1_000_000_000,
      filter_subject: "results.table-js.>",
    });
    const consumer = await js.consumers.get("RESULTS", made.name);
    const seen = [];
    for (let message; (message = await consumer.next({ expires: 2000 })); ) {
      seen.push(message.seq);
      assert.equal(await message.ackAck(), true);
    }
    assert.ok(seen.length > 0 && new Set(seen).size === seen.length, `${seen}`);
    await consumer.delete();
    const push = await js.consumers.getPushConsumer("RESULTS", { filter_subjects: "results.table-js.>" });
    assert.ok((await next(await push.consume())).json().outcomes);
  },
  async results_durable({ js }) {
    const jsm = await jetstreamManager(js.nc);
    await jsm.consumers.add("RESULTS", { durable_name: "table-js", ack_policy: AckPolicy.Explicit });
    const consumer = await js.consumers.get("RESULTS", "table-js");
    assert.equal(await (await consumer.next({ expires: 10_000 })).ackAck(), true);
    assert.equal((await consumer.info()).name, "table-js");
    assert.equal(await consumer.delete(), true);
  },
  async results_filters({ js }) {
    const jsm = await jetstreamManager(js.nc);
    const made = await jsm.consumers.add("RESULTS", { filter_subjects: ["results.table-js.>", "results.none.>"] });
    const consumer = await js.consumers.get("RESULTS", made.name);
    assert.ok((await consumer.next({ expires: 10_000 })).subject.startsWith("results.table-js."));
    await consumer.delete();
  },
  async results_looked_up({ js }) {
    const jsm = await jetstreamManager(js.nc);
    assert.equal(await jsm.streams.find("results.>"), "RESULTS");
    const last = { last_by_subj: "results.table-js.default.square" };
    assert.ok((await jsm.streams.getMessage("RESULTS", last)).json().outcomes);
    assert.ok((await (await js.streams.get("RESULTS")).info()).state.messages);
  },
  async call({ nc }) {
    assert.equal((await nc.request("call.default.square", "12", { timeout: 30_000 })).string(), "144");
    const failure = await nc.request("call.default.fail", '{"how": "error"}', { timeout: 30_000 });
    assert.equal(failure.headers.get("Nats-Service-Error-Code"), "500");
    await assert.rejects(nc.request("call.default.nobody", "1"), (error) => error.isNoResponders());
  },
  async pipe({ nc }) {
    const name = randomUUID();
    const said = nc.subscribe(`pipe.${name}.out`);
    const open = head({ "Millpond-Pipe": name, "Millpond-Pipe-Capacity": "16" });
    const begun = await nc.request("call.default.talk", "{}", { headers: open, timeout: 30_000 });
    assert.equal(begun.headers.get("Millpond-Pipe"), name);
    nc.publish(`pipe.${name}.in`, "hello", { headers: head({ "Millpond-Seq": "1" }) });
    nc.publish(`pipe.${name}.in`, "", { headers: head({ "Millpond-Seq": "2", "Millpond-End": "ok" }) });
    const heard = [];
    let got = "0";
    // Each side says something each second: who is silent is taken for gone.
    const says = () => nc.publish(`pipe.${name}.in`, "", { headers: head({ "Millpond-Got": got }) });
    const pulse = setInterval(says, 1000);
    for await (const message of said) {
      const seq = message.headers?.get("Millpond-Seq");
      if (!seq) continue;
      heard.push(message);
      got = seq;
      says();
      if (message.headers.get("Millpond-End")) break;
    }
    clearInterval(pulse);
    assert.deepEqual([heard[0].string(), heard.at(-1).headers.get("Millpond-End")], ["heard hello", "ok"]);
  },
  async buckets({ nc }) {
    for (const name of ["millpond_shared", "millpond_jobs", "millpond_queues"]) {
      const kv = await new Kvm(nc).open(name);
      const writes = name !== "millpond_queues";
      if (writes) {
        const first = await kv.put("table-js", "1");
        assert.equal((await kv.get("table-js")).string(), "1");
        await kv.update("table-js", "2", first);
        await assert.rejects(kv.update("table-js", "3", first), { code: 10071 });
        await assert.rejects(kv.create("table-js", "3"), { code: 10071 });
        assert.equal((await next(await kv.history({ key: "table-js" }))).string(), "2");
      }
      const keys = [];
      for await (const key of await kv.keys()) keys.push(key);
      const watch = await kv.watch();
      assert.ok(keys.length > 0 && (await next(watch)).key, name);
      watch.stop();
      assert.ok((await kv.status()).values >= keys.length);
      if (writes) {
        await kv.delete("table-js");
        assert.equal((await kv.get("table-js")).operation, "DEL");
      }
    }
  },
  async claim_check(c) {
    const payloads = await new Objm(c.nc).open("millpond_payloads");
    const large = new TextEncoder().encode(JSON.stringify("js ".repeat(700_000)));
    const stored = await fetch(`${env.MILLPOND_PRODUCER_URL}/v1/payloads`, {
      method: "PUT",
      headers: { Authorization: `Bearer ${env.MILLPOND_TOKEN}` },
      body: large,
    });
    const ref = stored.headers.get("Millpond-Ref");
    assert.equal(JSON.parse(ref).sha256, createHash("sha256").update(large).digest("hex"));
    const ended = await end(c, "tasks.default.echo", "", { "Millpond-Ref": ref });
    assert.ok(Buffer.from(large).equals(await payloads.getBlob(ended.ref.object)));
  },
  async denied({ js, refusals }) {
    await assert.rejects(js.publish("results.not.allowed.here", "12"));
    assert.ok(refusals.some((refusal) => refusal.includes("results.not.allowed.here")), `${refusals}`);
  },
  async other_roles() {
    for (const variable of ["MILLPOND_PUBLISHER_NATS_URL", "MILLPOND_PRODUCER_NATS_URL"]) {
      const { nc, js, refusals } = await connect(variable);
      assert.equal((await js.publish("tasks.default.square", "12")).stream, "TASKS");
      assert.equal((await nc.request("tasks.default.square", "12")).json().stream, "TASKS");
      assert.deepEqual(refusals, []);
      await nc.close();
    }
  },
};

const client = await connect();
let failed = false;
for (const [name, run] of Object.entries(cells)) {
  try {
    const late = sleep(90_000, null, { ref: false }).then(() => Promise.reject(new Error("it does not end")));
    await Promise.race([run(client), late]);
    console.log("ok", name);
  } catch (error) {
    failed = true;
    console.log(`FAILED ${name}: ${error.stack}; refused: ${client.refusals}`);
  }
}
await client.nc.close();
process.exit(failed ? 1 : 0);

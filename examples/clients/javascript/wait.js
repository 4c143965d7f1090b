import { setTimeout as sleep } from "node:timers/promises";
import { headers } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const [id, seconds] = process.argv.slice(2);

// The end as the collector has it; none while there is none, or while the collector does not answer.
async function asked() {
  const url = `${process.env.MILLPOND_COLLECTOR_URL}/api/v1/task?${new URLSearchParams({ id, queue: "default" })}`;
  const answer = await fetch(url, {
    headers: { Authorization: `Bearer ${process.env.MILLPOND_TOKEN}` },
    signal: AbortSignal.timeout(10_000),
  }).catch(() => null);
  const task = answer?.ok ? await answer.json() : null;
  return task && ["done", "dead", "cancelled"].includes(task.status) ? task : null;
}

const nc = await connect();
let end = null;
nc.subscribe(`reply.${id}`, { callback: (error, message) => (end ??= error ? null : message.json()) });
const head = headers();
head.set("Millpond-Reply-To", `reply.${id}`);
let ack = null;
while (!ack) {
  try {
    ack = await jetstream(nc).publish("tasks.default.sleep", seconds, { msgID: id, headers: head });
  } catch (error) {
    console.error("again:", error.message); // An outage: the same again, with the same id.
    await sleep(500);
  }
}
// A duplicate may have ended long ago: then nobody tells it again.
if (ack.duplicate) end ??= await asked();
for (let tick = 1; !end; tick++) {
  await sleep(100);
  if (tick % 20 === 0) end ??= await asked();
}
console.log(end.status);
await nc.close();

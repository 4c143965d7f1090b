import { headers } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const job = process.argv[2];

// How many of its items have ended: not those that are to run again.
function ended(outcome) {
  const again = (outcome.not_done ?? []).filter((item) => ["retry", "rest"].includes(item.end));
  return outcome.results.length - again.length;
}

const nc = await connect();
const results = nc.subscribe(`results.${job}.>`);
for (let n = 0; n < 10; n++) {
  const head = headers();
  head.set("Millpond-Index", `${n}`);
  await jetstream(nc).publish(`tasks.default.square.j-${job}`, `${n}`, { msgID: `${job}-${n}`, headers: head });
}
let count = 0;
for await (const message of results) {
  for (const outcome of message.json().outcomes) count += ended(outcome);
  console.error(`${count} of 10`);
  if (count >= 10) break;
}
console.log("all have ended");
await nc.close();

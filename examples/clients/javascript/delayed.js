import { randomUUID } from "node:crypto";
import { headers } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const nc = await connect();
const reply = `reply.${randomUUID()}`;
const replies = nc.subscribe(reply, { max: 1 });
const at = new Date(Date.now() + 2000);
const head = headers();
head.set("Millpond-At", at.toISOString());
head.set("Millpond-Reply-To", reply);
await jetstream(nc).publish("later.default.square", "12", { headers: head });
for await (const message of replies) console.log(message.json().result);
console.log(new Date() >= at ? "not before its time" : "too early");
await nc.close();

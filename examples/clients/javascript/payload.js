import { headers } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";
import { connect } from "./connect.js";

const id = process.argv[2];
const large = JSON.stringify("large ".repeat(300_000));
const stored = await fetch(`${process.env.MILLPOND_PRODUCER_URL}/v1/payloads`, {
  method: "PUT",
  headers: { Authorization: `Bearer ${process.env.MILLPOND_TOKEN}` },
  body: large,
});

const nc = await connect();
const replies = nc.subscribe(`reply.${id}`, { max: 1 });
const head = headers();
head.set("Millpond-Ref", stored.headers.get("Millpond-Ref"));
head.set("Millpond-Expires", (await stored.json()).expires);
head.set("Millpond-Reply-To", `reply.${id}`);
await jetstream(nc).publish("tasks.default.echo", "", { msgID: id, headers: head });
for await (const message of replies) {
  const payloads = await new Objm(nc).open("millpond_payloads");
  const result = await payloads.getBlob(message.json().ref.object);
  console.log(new TextDecoder().decode(result) === large ? "the same" : "something else");
}
await nc.close();

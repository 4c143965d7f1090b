import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const nc = await connect();
for (let n = 0; n < 2; n++) {
  const ack = await jetstream(nc).publish("tasks.default.square", "12", { msgID: process.argv[2] });
  console.log(ack.duplicate ? "duplicate" : "stored");
}
await nc.close();

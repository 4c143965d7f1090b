import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const nc = await connect();
const ack = await jetstream(nc).publish("tasks.default.square", "12");
console.log("stored in", ack.stream);
await nc.close();

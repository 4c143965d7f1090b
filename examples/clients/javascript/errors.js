import { jetstream } from "@nats-io/jetstream";
import { connect } from "./connect.js";

const nc = await connect();
const js = jetstream(nc);
await nc.request("tasks.default", "12").catch((error) => console.log("a subject of another shape:", error.name));
await js.publish("tasks.default", "12").catch((error) => console.log("the same by JetStream:", error.name));
await js.publish("tasks.default.echo", "1".repeat(1_500_000)).catch((error) => console.log("too large:", error.code));
const alone = { expect: { lastSubjectSequence: 0 } };
const unique = () => js.publish(`tasks.default.sleep.u-${process.argv[2]}`, "5", alone);
await unique().then(unique).catch((error) => console.log("a unique key that is taken:", error.code));
await js.publish("results.not.allowed.here", "12").catch((error) => console.log("not allowed:", error.cause.name));
await nc.close();

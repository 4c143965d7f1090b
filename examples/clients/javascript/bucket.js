import { Kvm } from "@nats-io/kv";
import { connect } from "./connect.js";

const key = process.argv[2];
const nc = await connect();
const shared = await new Kvm(nc).open("millpond_shared");
const first = await shared.put(key, "5");
await shared.update(key, "6", first);
await shared.update(key, "7", first).catch((error) => {
  if (error.code !== 10071) throw error;
  console.log("another was faster");
});
let listed = false;
for await (const name of await shared.keys()) listed ||= name === key;
console.log((await shared.get(key)).string(), listed ? "listed" : "lost");
for await (const change of await shared.watch({ key })) {
  console.log(change.string());
  break;
}
await nc.close();

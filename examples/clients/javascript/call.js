import { connect } from "./connect.js";

const nc = await connect();
const answer = await nc.request("call.default.square", "12", { timeout: 30_000 });
console.log(answer.string());
const failed = await nc.request("call.default.fail", '{"how": "error"}', { timeout: 30_000 });
console.log(failed.headers?.get("Nats-Service-Error-Code"), failed.json().type);
await nc.request("call.default.nobody", "1", { timeout: 30_000 }).catch((error) => {
  if (!error.isNoResponders()) throw error;
  console.log("no worker answers");
});
await nc.close();

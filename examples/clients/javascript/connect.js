// The connection of the other programs: the URL is the one that `millpond env` prints. The library takes no password from a URL.
import { connect as dial } from "@nats-io/transport-node";

export async function connect() {
  const url = new URL(process.env.MILLPOND_NATS_URL);
  const user = decodeURIComponent(url.username), pass = decodeURIComponent(url.password);
  return dial({ servers: url.host, user, pass, maxReconnectAttempts: -1 });
}

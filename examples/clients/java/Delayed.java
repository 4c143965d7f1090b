import io.nats.client.impl.Headers;
import java.time.Duration;
import java.time.Instant;
import java.util.UUID;

class Delayed {
    public static void main(String[] args) throws Exception {
        try (var nc = Clients.connect()) {
            String reply = "reply." + UUID.randomUUID();
            var replies = nc.subscribe(reply);
            Instant at = Instant.now().plusSeconds(2);
            Headers headers = new Headers().put("Millpond-At", "" + at).put("Millpond-Reply-To", reply);
            nc.jetStream().publish("later.default.square", headers, "12".getBytes());
            System.out.println(Clients.field("result", replies.nextMessage(Duration.ofMinutes(1)).getData()));
            System.out.println(Instant.now().isBefore(at) ? "too early" : "not before its time");
        }
    }
}

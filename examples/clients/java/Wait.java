import io.nats.client.Message;
import io.nats.client.PublishOptions;
import io.nats.client.api.PublishAck;
import io.nats.client.impl.Headers;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.List;

class Wait {
    /** How it ended, as the collector has it; null while it has not, or while the collector does not answer. */
    static String asked(String id) throws Exception {
        URI uri = URI.create(System.getenv("MILLPOND_COLLECTOR_URL") + "/api/v1/task?queue=default&id=" + id);
        var request = HttpRequest.newBuilder(uri).timeout(Duration.ofSeconds(10))
            .header("Authorization", "Bearer " + System.getenv("MILLPOND_TOKEN")).build();
        try {
            var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofByteArray());
            String status = answer.statusCode() == 200 ? Clients.field("status", answer.body()) : null;
            return status != null && List.of("done", "dead", "cancelled").contains(status) ? status : null;
        } catch (IOException away) {
            return null;
        }
    }

    public static void main(String[] args) throws Exception {
        String id = args[0];
        try (var nc = Clients.connect()) {
            var replies = nc.subscribe("reply." + id);
            Headers headers = new Headers().put("Millpond-Reply-To", "reply." + id);
            var options = PublishOptions.builder().messageId(id).build();
            PublishAck ack = null;
            while (ack == null) {
                try {
                    ack = nc.jetStream().publish("tasks.default.sleep", headers, args[1].getBytes(), options);
                } catch (IOException | IllegalStateException outage) { // The same again, with the same id.
                    System.err.println("again: " + outage.getMessage());
                    Thread.sleep(500);
                }
            }
            // A duplicate may have ended long ago: then nobody tells it again.
            String end = ack.isDuplicate() ? asked(id) : null;
            while (end == null) {
                Message message = replies.nextMessage(Duration.ofSeconds(2));
                end = message == null ? asked(id) : Clients.field("status", message.getData());
            }
            System.out.println(end);
        }
    }
}

import io.nats.client.PublishOptions;
import io.nats.client.impl.Headers;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.Arrays;

class Payload {
    public static void main(String[] args) throws Exception {
        String id = args[0];
        byte[] large = ('"' + "large ".repeat(300_000) + '"').getBytes();
        var request = HttpRequest.newBuilder(URI.create(System.getenv("MILLPOND_PRODUCER_URL") + "/v1/payloads"))
            .header("Authorization", "Bearer " + System.getenv("MILLPOND_TOKEN"))
            .PUT(BodyPublishers.ofByteArray(large)).build();
        var stored = HttpClient.newHttpClient().send(request, BodyHandlers.ofByteArray());
        try (var nc = Clients.connect()) {
            var replies = nc.subscribe("reply." + id);
            Headers headers = new Headers()
                .put("Millpond-Ref", stored.headers().firstValue("Millpond-Ref").orElseThrow())
                .put("Millpond-Expires", Clients.field("expires", stored.body()))
                .put("Millpond-Reply-To", "reply." + id);
            var options = PublishOptions.builder().messageId(id).build();
            nc.jetStream().publish("tasks.default.echo", headers, new byte[0], options);
            String object = Clients.field("object", replies.nextMessage(Duration.ofMinutes(1)).getData());
            var result = new ByteArrayOutputStream();
            nc.objectStore("millpond_payloads").get(object, result);
            System.out.println(Arrays.equals(result.toByteArray(), large) ? "the same" : "something else");
        }
    }
}

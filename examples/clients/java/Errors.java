import io.nats.client.JetStreamApiException;
import io.nats.client.PublishOptions;
import java.io.IOException;
import java.time.Duration;

class Errors {
    public static void main(String[] args) throws Exception {
        try (var nc = Clients.connect()) {
            var js = nc.jetStream();
            var none = nc.request("tasks.default", "12".getBytes(), Duration.ofSeconds(5));
            System.out.println("a subject of another shape: " + none);
            try {
                js.publish("tasks.default", "12".getBytes());
            } catch (IOException error) {
                System.out.println("the same by JetStream: " + error.getMessage());
            }
            try {
                js.publish("tasks.default.echo", "1".repeat(1_500_000).getBytes());
            } catch (JetStreamApiException error) {
                System.out.println("too large: " + error.getApiErrorCode());
            }
            var alone = PublishOptions.builder().expectedLastSubjectSequence(0).build();
            try {
                for (int n = 0; n < 2; n++) {
                    js.publish("tasks.default.sleep.u-" + args[0], "5".getBytes(), alone);
                }
            } catch (JetStreamApiException error) {
                System.out.println("a unique key that is taken: " + error.getApiErrorCode());
            }
            try {
                js.publish("results.not.allowed.here", "12".getBytes());
            } catch (IOException error) {
                System.out.println("not allowed: " + error.getMessage());
            }
        }
    }
}

import io.nats.client.PublishOptions;
import io.nats.client.impl.Headers;
import java.time.Duration;
import java.util.regex.Pattern;

class Job {
    /** Each result of a message of RESULTS; a program of your own has a library for JSON. */
    static final Pattern RESULTS = Pattern.compile("\"results\":\\[(\\d+(?:,\\d+)*)\\]");

    public static void main(String[] args) throws Exception {
        String job = args[0];
        try (var nc = Clients.connect()) {
            var results = nc.subscribe("results." + job + ".>");
            for (int n = 0; n < 10; n++) {
                Headers headers = new Headers().put("Millpond-Index", "" + n);
                var options = PublishOptions.builder().messageId(job + "-" + n).build();
                nc.jetStream().publish("tasks.default.square.j-" + job, headers, ("" + n).getBytes(), options);
            }
            int count = 0;
            while (count < 10) {
                var found = RESULTS.matcher(new String(results.nextMessage(Duration.ofMinutes(1)).getData()));
                while (found.find()) {
                    count += found.group(1).split(",").length;
                }
                System.err.println(count + " of 10");
            }
            System.out.println("all have ended");
        }
    }
}

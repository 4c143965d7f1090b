import io.nats.client.api.OrderedConsumerConfiguration;
import java.time.Duration;
import java.util.Arrays;
import java.util.regex.Pattern;

class Results {
    static final Pattern OUTCOME = Pattern.compile("\"index\":(\\d+).*?\"results\":\\[(\\d+(?:,\\d+)*)\\]");

    public static void main(String[] args) throws Exception {
        try (var nc = Clients.connect()) {
            var filter = new OrderedConsumerConfiguration().filterSubject("results." + args[0] + ".>");
            var consumer = nc.getStreamContext("RESULTS").createOrderedConsumer(filter);
            Integer[] values = new Integer[10];
            while (Arrays.asList(values).contains(null)) {
                // Null: nothing came in that time. The library says the same of a consumer that it could not make.
                var message = consumer.next(Duration.ofMinutes(1));
                var found = OUTCOME.matcher(new String(message.getData()));
                while (found.find()) {
                    int index = Integer.parseInt(found.group(1));
                    for (String value : found.group(2).split(",")) {
                        values[index++] = Integer.valueOf(value);
                    }
                }
            }
            System.out.println(Arrays.toString(values).replace(" ", ""));
        }
    }
}

import io.nats.client.JetStreamApiException;
import io.nats.client.api.KeyValueEntry;
import io.nats.client.api.KeyValueWatcher;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

class Bucket {
    public static void main(String[] args) throws Exception {
        String key = args[0];
        try (var nc = Clients.connect()) {
            var shared = nc.keyValue("millpond_shared");
            long first = shared.put(key, "5");
            shared.update(key, "6".getBytes(), first);
            try {
                shared.update(key, "7".getBytes(), first);
            } catch (JetStreamApiException error) {
                System.out.println(error.getApiErrorCode() == 10071 ? "another was faster" : error.getMessage());
            }
            System.out.println(shared.get(key).getValueAsString() + (shared.keys().contains(key) ? " listed" : " lost"));
            var changes = new LinkedBlockingQueue<String>();
            var watch = shared.watch(key, new KeyValueWatcher() {
                @Override
                public void watch(KeyValueEntry entry) {
                    changes.add(entry.getValueAsString());
                }

                @Override
                public void endOfData() {}
            });
            System.out.println(changes.poll(10, TimeUnit.SECONDS));
            watch.unsubscribe();
        }
    }
}

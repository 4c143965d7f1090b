import io.nats.client.PublishOptions;

class Idempotent {
    public static void main(String[] args) throws Exception {
        try (var nc = Clients.connect()) {
            var id = PublishOptions.builder().messageId(args[0]).build();
            for (int n = 0; n < 2; n++) {
                var ack = nc.jetStream().publish("tasks.default.square", "12".getBytes(), id);
                System.out.println(ack.isDuplicate() ? "duplicate" : "stored");
            }
        }
    }
}

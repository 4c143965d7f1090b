import java.time.Duration;

class Call {
    public static void main(String[] args) throws Exception {
        Duration patience = Duration.ofSeconds(30);
        try (var nc = Clients.connect()) {
            var answer = nc.request("call.default.square", "12".getBytes(), patience);
            System.out.println(new String(answer.getData()));
            var failed = nc.request("call.default.fail", "{\"how\": \"error\"}".getBytes(), patience);
            String code = failed.getHeaders().getFirst("Nats-Service-Error-Code");
            System.out.println(code + " " + Clients.field("type", failed.getData()));
            // Null: no worker answers, or none did in time; when it comes at once, it is the first.
            if (nc.request("call.default.nobody", "1".getBytes(), patience) == null) {
                System.out.println("no worker answers");
            }
        }
    }
}

import io.nats.client.*;
import io.nats.client.api.*;
import io.nats.client.impl.Headers;
import java.io.*;
import java.net.URI;
import java.net.http.*;
import java.security.MessageDigest;
import java.time.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.Pattern;

/** Each cell of the table in tests/clients.rs with jnats, in the ordinary ways of the library: `ok CELL`, or `FAILED CELL: why`. */
public class Table {
    static final Duration PATIENCE = Duration.ofMinutes(1), SOON = Duration.ofSeconds(10);
    static final List<String> refusals = new CopyOnWriteArrayList<>();
    static Connection nc;
    static JetStream js;

    interface Cell {
        void run() throws Exception;
    }

    static Connection connect(String variable) throws Exception {
        ErrorListener listener = new ErrorListener() {
            @Override
            public void errorOccurred(Connection connection, String error) {
                refusals.add(error);
            }
        };
        var options = Options.builder().server(System.getenv(variable)).errorListener(listener);
        if (variable.equals("MILLPOND_PRODUCER_NATS_URL")) {
            options.inboxPrefix("_INBOX_producer.");
        }
        return Nats.connect(options.build());
    }

    static void wants(Object found, Object wanted) {
        if (!Objects.equals(found, wanted)) {
            throw new IllegalStateException(found + " instead of " + wanted);
        }
    }

    static void fails(Cell cell, int code) throws Exception {
        try {
            cell.run();
        } catch (JetStreamApiException error) {
            wants(error.getApiErrorCode(), code);
            return;
        }
        throw new IllegalStateException("not refused");
    }

    static Headers head(String... values) {
        Headers headers = new Headers();
        for (int n = 0; n < values.length; n += 2) {
            headers.put(values[n], values[n + 1]);
        }
        return headers;
    }

    static String field(String name, String json) {
        var found = Pattern.compile("\"" + name + "\":(\"[^\"]*\"|[^,}]*)").matcher(json);
        return found.find() ? found.group(1).replace("\"", "") : null;
    }

    /** Publishes a task; its end, as it is told. */
    static String end(String subject, String body, String... headers) throws Exception {
        String reply = "reply." + UUID.randomUUID();
        Subscription replies = nc.subscribe(reply);
        js.publish(subject, head(headers).put("Millpond-Reply-To", reply), body.getBytes());
        String end = new String(replies.nextMessage(PATIENCE).getData());
        replies.unsubscribe();
        return end;
    }

    static String outcomes(Message message) {
        wants(new String(message.getData()).contains("\"outcomes\""), true);
        return message.getSubject();
    }

    static void publish() throws Exception {
        wants(js.publish("tasks.default.square", "12".getBytes()).getStream(), "TASKS");
        wants(field("stream", new String(nc.request("tasks.default.square", "12".getBytes(), SOON).getData())), "TASKS");
    }

    static void duplicate() throws Exception {
        var id = PublishOptions.builder().messageId("table-java").build();
        wants(js.publish("tasks.default.square", "12".getBytes(), id).isDuplicate(), false);
        wants(js.publish("tasks.default.square", "12".getBytes(), id).isDuplicate(), true);
    }

    static void replyTo() throws Exception {
        String end = end("tasks.default.square", "12");
        wants(field("status", end) + field("result", end), "done144");
    }

    static void httpWait() throws Exception {
        URI uri = URI.create(System.getenv("MILLPOND_PRODUCER_URL") + "/v1/tasks/default/square?wait=30s");
        var request = HttpRequest.newBuilder(uri).header("Authorization", "Bearer " + System.getenv("MILLPOND_TOKEN"))
            .POST(HttpRequest.BodyPublishers.ofString("12")).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        wants(field("result", answer.body()), "144");
    }

    static void delayed() throws Exception {
        Instant at = Instant.now().plusSeconds(1);
        String end = end("later.default.square", "12", "Millpond-At", "" + at);
        wants(field("result", end) + Instant.now().isBefore(at), "144false");
        wants(field("result", end("later.default.square", "11", "Millpond-Delay", "PT0.3S")), "121");
    }

    static void expires() throws Exception {
        Instant now = Instant.now();
        wants(field("status", end("tasks.default.square", "12", "Millpond-Expires", "" + now.minusSeconds(1))), "dead");
        wants(field("status", end("tasks.default.square", "12", "Millpond-Expires", "" + now.plusSeconds(300))), "done");
    }

    static void timeoutAndAttempts() throws Exception {
        String limit = Duration.ofMillis(500).toString();
        String end = end("tasks.default.sleep", "30", "Millpond-Timeout", limit, "Millpond-Attempts-Max", "1");
        wants(field("status", end) + field("attempt", end) + field("type", end), "dead1timeout");
    }

    static void death() throws Exception {
        String end = end("tasks.default.fail", "{\"how\": \"error\"}", "Millpond-Attempts-Max", "2");
        wants(field("status", end) + field("attempt", end), "dead2");
    }

    static void continuation() throws Exception {
        wants(field("result", end("tasks.default.square", "3", "Millpond-Continuation", "square")), "81");
    }

    static void unique() throws Exception {
        var alone = PublishOptions.builder().expectedLastSubjectSequence(0).build();
        js.publish("tasks.default.sleep.u-table-java", "3".getBytes(), alone);
        fails(() -> js.publish("tasks.default.sleep.u-table-java", "3".getBytes(), alone), 10071);
    }

    static void batch() throws Exception {
        String reply = "reply." + UUID.randomUUID();
        Subscription replies = nc.subscribe(reply);
        js.publish("tasks.default.square", head("Millpond-Batch", "3", "Millpond-Reply-To", reply), "[1, 2, 3]".getBytes());
        var results = new TreeSet<String>();
        for (int n = 0; n < 3; n++) {
            results.add(field("result", new String(replies.nextMessage(PATIENCE).getData())));
        }
        wants(results, new TreeSet<>(List.of("1", "4", "9")));
    }

    static void job() throws Exception {
        Subscription heard = nc.subscribe("results.table-java.>");
        for (int n = 0; n < 3; n++) {
            js.publish("tasks.default.square.j-table-java", head("Millpond-Index", "" + n), ("" + n).getBytes());
        }
        var results = new TreeSet<String>();
        while (results.size() < 3) {
            var found = Pattern.compile("\"results\":\\[([^\\]]*)\\]").matcher(new String(heard.nextMessage(PATIENCE).getData()));
            while (found.find()) {
                results.addAll(List.of(found.group(1).split(",")));
            }
        }
        wants(results, new TreeSet<>(List.of("0", "1", "4")));
    }

    static final List<List<String>> FILTERS =
        List.of(List.of(), List.of("results.table-java.>"), List.of("results.table-java.>", "results.none.>"));

    static void resultsOrdered() throws Exception {
        var stream = nc.getStreamContext("RESULTS");
        for (List<String> filter : FILTERS) {
            outcomes(stream.createOrderedConsumer(new OrderedConsumerConfiguration().filterSubjects(filter)).next(SOON));
        }
        var ordered = PushSubscribeOptions.builder().ordered(true).build();
        var push = js.subscribe("results.table-java.>", ordered);
        outcomes(push.nextMessage(SOON));
        push.unsubscribe();
    }

    static void resultsAcked() throws Exception {
        var stream = nc.getStreamContext("RESULTS");
        var config = ConsumerConfiguration.builder().ackPolicy(AckPolicy.Explicit).ackWait(1000).filterSubject("results.table-java.>");
        var consumer = stream.createOrUpdateConsumer(config.build());
        var seen = new HashSet<Long>();
        for (Message message; (message = consumer.next(Duration.ofSeconds(2))) != null;) {
            message.ackSync(SOON);
            wants(seen.add(message.metaData().streamSequence()), true);
        }
        wants(seen.isEmpty(), false);
        stream.deleteConsumer(consumer.getConsumerName());
        var push = js.subscribe("results.table-java.>");
        push.nextMessage(SOON).ackSync(SOON);
        push.unsubscribe();
        var pull = js.subscribe("results.table-java.>", PullSubscribeOptions.builder().build());
        pull.fetch(1, SOON).get(0).ackSync(SOON);
        pull.unsubscribe();
    }

    static void resultsDurable() throws Exception {
        var stream = nc.getStreamContext("RESULTS");
        var consumer = stream.createOrUpdateConsumer(ConsumerConfiguration.builder().durable("table-java").build());
        consumer.next(SOON).ackSync(SOON);
        wants(consumer.getConsumerInfo().getName(), "table-java");
        wants(stream.deleteConsumer("table-java"), true);
    }

    static void resultsFilters() throws Exception {
        var stream = nc.getStreamContext("RESULTS");
        var consumer = stream.createOrUpdateConsumer(ConsumerConfiguration.builder().filterSubjects(FILTERS.get(2)).build());
        wants(outcomes(consumer.next(SOON)).startsWith("results.table-java."), true);
        stream.deleteConsumer(consumer.getConsumerName());
    }

    static void resultsLookedUp() throws Exception {
        var management = nc.jetStreamManagement();
        wants(management.getStreamNames("results.>"), List.of("RESULTS"));
        wants(management.getLastMessage("RESULTS", "results.table-java.default.square").getData().length > 0, true);
        wants(management.getStreamInfo("RESULTS").getStreamState().getMsgCount() > 0, true);
    }

    static void call() throws Exception {
        wants(new String(nc.request("call.default.square", "12".getBytes(), PATIENCE).getData()), "144");
        var failure = nc.request("call.default.fail", "{\"how\": \"error\"}".getBytes(), PATIENCE);
        wants(failure.getHeaders().getFirst("Nats-Service-Error-Code"), "500");
        wants(nc.request("call.default.nobody", "1".getBytes(), SOON), null);
    }

    static void pipe() throws Exception {
        String name = UUID.randomUUID().toString(), in = "pipe." + name + ".in";
        Subscription said = nc.subscribe("pipe." + name + ".out");
        var open = head("Millpond-Pipe", name, "Millpond-Pipe-Capacity", "16");
        var begun = nc.request("call.default.talk", open, "{}".getBytes(), PATIENCE);
        wants(begun.getHeaders().getFirst("Millpond-Pipe"), name);
        nc.publish(in, head("Millpond-Seq", "1"), "hello".getBytes());
        nc.publish(in, head("Millpond-Seq", "2", "Millpond-End", "ok"), null);
        String first = "", last = null, got = "0";
        Instant until = Instant.now().plus(PATIENCE);
        // Each side says something each second: who is silent is taken for gone.
        while (last == null && Instant.now().isBefore(until)) {
            Message next = said.nextMessage(Duration.ofSeconds(1));
            String seq = next == null || next.getHeaders() == null ? null : next.getHeaders().getFirst("Millpond-Seq");
            if (seq != null) {
                got = seq;
                first = seq.equals("1") ? new String(next.getData()) : first;
                last = next.getHeaders().getFirst("Millpond-End");
            }
            nc.publish(in, head("Millpond-Got", got), null);
        }
        wants(first + " " + last, "heard hello ok");
    }

    static void buckets() throws Exception {
        for (String name : List.of("millpond_shared", "millpond_jobs", "millpond_queues")) {
            KeyValue kv = nc.keyValue(name);
            boolean writes = !name.equals("millpond_queues");
            if (writes) {
                long first = kv.put("table-java", "1");
                wants(kv.get("table-java").getValueAsString(), "1");
                kv.update("table-java", "2".getBytes(), first);
                fails(() -> kv.update("table-java", "3".getBytes(), first), 10071);
                fails(() -> kv.create("table-java", "3".getBytes()), 10071);
                wants(kv.history("table-java").get(0).getValueAsString(), "2");
            }
            var seen = new CopyOnWriteArrayList<String>();
            var all = new CountDownLatch(1);
            var watch = kv.watchAll(new KeyValueWatcher() {
                @Override
                public void watch(KeyValueEntry entry) {
                    seen.add(entry.getKey());
                }

                @Override
                public void endOfData() {
                    all.countDown();
                }
            });
            wants(all.await(10, TimeUnit.SECONDS) && !seen.isEmpty() && !kv.keys().isEmpty(), true);
            watch.unsubscribe();
            wants(kv.getStatus().getEntryCount() > 0, true);
            if (writes) {
                kv.delete("table-java");
                wants(kv.get("table-java"), null);
            }
        }
    }

    static void claimCheck() throws Exception {
        ObjectStore payloads = nc.objectStore("millpond_payloads");
        byte[] large = ('"' + "java ".repeat(500_000) + '"').getBytes();
        URI uri = URI.create(System.getenv("MILLPOND_PRODUCER_URL") + "/v1/payloads");
        var request = HttpRequest.newBuilder(uri).header("Authorization", "Bearer " + System.getenv("MILLPOND_TOKEN"))
            .PUT(HttpRequest.BodyPublishers.ofByteArray(large)).build();
        var stored = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.discarding());
        String ref = stored.headers().firstValue("Millpond-Ref").orElseThrow();
        String sha256 = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(large));
        wants(ref.contains(sha256), true);
        var result = new ByteArrayOutputStream();
        payloads.get(field("object", end("tasks.default.echo", "", "Millpond-Ref", ref)), result);
        wants(Arrays.equals(result.toByteArray(), large), true);
    }

    static void denied() throws Exception {
        try {
            js.publish("results.not.allowed.here", "12".getBytes());
            throw new IllegalStateException("stored");
        } catch (IOException timeout) {
            wants(String.join(" ", refusals).contains("results.not.allowed.here"), true);
        }
    }

    static void otherRoles() throws Exception {
        refusals.clear();
        for (String variable : List.of("MILLPOND_PUBLISHER_NATS_URL", "MILLPOND_PRODUCER_NATS_URL")) {
            try (Connection other = connect(variable)) {
                wants(other.jetStream().publish("tasks.default.square", "12".getBytes()).getStream(), "TASKS");
                wants(other.request("tasks.default.square", "12".getBytes(), SOON) == null, false);
            }
        }
        wants(refusals.size(), 0);
    }

    public static void main(String[] args) throws Exception {
        var cells = new LinkedHashMap<String, Cell>();
        cells.put("publish", Table::publish);
        cells.put("duplicate", Table::duplicate);
        cells.put("reply_to", Table::replyTo);
        cells.put("http_wait", Table::httpWait);
        cells.put("delayed", Table::delayed);
        cells.put("expires", Table::expires);
        cells.put("timeout_and_attempts", Table::timeoutAndAttempts);
        cells.put("death", Table::death);
        cells.put("continuation", Table::continuation);
        cells.put("unique", Table::unique);
        cells.put("batch", Table::batch);
        cells.put("job", Table::job);
        cells.put("results_ordered", Table::resultsOrdered);
        cells.put("results_acked", Table::resultsAcked);
        cells.put("results_durable", Table::resultsDurable);
        cells.put("results_filters", Table::resultsFilters);
        cells.put("results_looked_up", Table::resultsLookedUp);
        cells.put("call", Table::call);
        cells.put("pipe", Table::pipe);
        cells.put("buckets", Table::buckets);
        cells.put("claim_check", Table::claimCheck);
        cells.put("denied", Table::denied);
        cells.put("other_roles", Table::otherRoles);
        nc = connect("MILLPOND_NATS_URL");
        js = nc.jetStream();
        boolean failed = false;
        for (var cell : cells.entrySet()) {
            try {
                cell.getValue().run();
                System.out.println("ok " + cell.getKey());
            } catch (Throwable error) {
                failed = true;
                System.out.println("FAILED " + cell.getKey() + ": " + error + "; refused: " + refusals);
            }
        }
        nc.close();
        System.exit(failed ? 1 : 0);
    }
}

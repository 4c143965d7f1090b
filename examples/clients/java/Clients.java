import io.nats.client.Connection;
import io.nats.client.ErrorListener;
import io.nats.client.Nats;
import io.nats.client.Options;

/** The connection of the other programs: the URL is the one that `millpond env` prints. */
class Clients {
    static Connection connect() throws Exception {
        ErrorListener refused = new ErrorListener() {
            // Here the library tells of what the server refuses later than the call: a publish that is not allowed, say.
            @Override
            public void errorOccurred(Connection connection, String error) {
                System.err.println("refused: " + error);
            }
        };
        String url = System.getenv("MILLPOND_NATS_URL");
        return Nats.connect(Options.builder().server(url).maxReconnects(-1).errorListener(refused).build());
    }

    /** The value of a field of flat JSON; a program of your own has a library for it. */
    static String field(String name, byte[] json) {
        var found = java.util.regex.Pattern.compile("\"" + name + "\":(\"[^\"]*\"|[^,}]*)").matcher(new String(json));
        return found.find() ? found.group(1).replace("\"", "") : null;
    }
}

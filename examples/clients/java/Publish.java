class Publish {
    public static void main(String[] args) throws Exception {
        try (var nc = Clients.connect()) {
            var ack = nc.jetStream().publish("tasks.default.square", "12".getBytes());
            System.out.println("stored in " + ack.getStream());
        }
    }
}

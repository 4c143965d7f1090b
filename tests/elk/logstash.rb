# What Logstash does with deploy/logstash/pipeline/otlp.conf, without a Logstash: takes requests over HTTP, runs the filter, writes
# documents into their data streams by `_bulk`. The filter is the real one; the rest stands in for plugins that are not here.
#
#   ruby logstash.rb PORT ELASTICSEARCH_URL [ADDRESS]     ADDRESS: where it listens, 127.0.0.1 when not given
require "json"
require "net/http"
require "socket"
require_relative "logstash_event"
load File.join(__dir__, "../../deploy/logstash/otlp.rb")

# Documents, as the Elasticsearch output would write them; an HTTP status.
def store(elasticsearch, documents)
  return 200 if documents.empty?
  lines = documents.flat_map do |document|
    stream = document["data_stream"]
    [{ "create" => { "_index" => "#{stream["type"]}-#{stream["dataset"]}-#{stream["namespace"]}" } }, document]
  end
  body = lines.map { |line| "#{JSON.generate(line)}\n" }.join
  answer = Net::HTTP.post(elasticsearch, body, "Content-Type" => "application/x-ndjson")
  return 503 if answer.code != "200"
  refused = JSON.parse(answer.body)["items"].map { |item| item["create"] }.select { |item| item["error"] }
  refused.each { |item| warn "refused: #{item["error"]}" }
  200
rescue SystemCallError
  503
end

def serve(client, elasticsearch)
  while (request = client.gets)
    headers = {}
    while (line = client.gets) && line != "\r\n"
      name, text = line.chomp.split(": ", 2)
      headers[name.downcase] = text
    end
    event = LogStash::Event.new(JSON.parse(client.read(headers["content-length"].to_i)))
    documents = filter(event).map(&:to_hash)
    warn "not OTLP: #{request}" unless event.tags.empty?
    client.write "HTTP/1.1 #{store(elasticsearch, documents)} x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
  end
ensure
  client.close
end

register({ "namespace" => "default", "environment" => "test" })
elasticsearch = URI("#{ARGV[1]}/_bulk?require_data_stream=true")
server = TCPServer.new(ARGV[2] || "127.0.0.1", ARGV[0].to_i)
loop { Thread.new(server.accept) { |client| serve(client, elasticsearch) } }

# Of Logstash's event what deploy/logstash/otlp.rb uses, so that it runs without a Logstash.
module LogStash
  class Event
    attr_reader :to_hash, :tags

    def initialize(fields)
      @to_hash = fields
      @tags = []
    end

    def get(field) = @to_hash[field]
    def tag(name) = @tags << name
  end
end

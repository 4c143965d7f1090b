package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

func results(ctx context.Context, args []string) {
	nc, js := connect()
	defer nc.Close()
	filter := []string{"results." + args[0] + ".>"}
	consumer, err := js.OrderedConsumer(ctx, "RESULTS", jetstream.OrderedConsumerConfig{FilterSubjects: filter})
	check(err)
	values := map[int]json.RawMessage{}
	for len(values) < 10 {
		message, err := consumer.Next()
		check(err)
		var got batch
		check(json.Unmarshal(message.Data(), &got))
		for _, outcome := range got.Outcomes {
			for place, value := range outcome.Results {
				values[outcome.Index+place] = value
			}
		}
	}
	var inOrder []json.RawMessage
	for n := range 10 {
		inOrder = append(inOrder, values[n])
	}
	text, err := json.Marshal(inOrder)
	check(err)
	fmt.Println(string(text))
}

package main

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

func idempotent(ctx context.Context, args []string) {
	nc, js := connect()
	defer nc.Close()
	for range 2 {
		ack, err := js.Publish(ctx, "tasks.default.square", []byte("12"), jetstream.WithMsgID(args[0]))
		check(err)
		if ack.Duplicate {
			fmt.Println("duplicate")
		} else {
			fmt.Println("stored")
		}
	}
}

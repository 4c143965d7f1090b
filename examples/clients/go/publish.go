package main

import (
	"context"
	"fmt"
)

func publish(ctx context.Context, _ []string) {
	nc, js := connect()
	defer nc.Close()
	ack, err := js.Publish(ctx, "tasks.default.square", []byte("12"))
	check(err)
	fmt.Println("stored in", ack.Stream)
}

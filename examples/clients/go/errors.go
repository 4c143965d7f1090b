package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func failures(ctx context.Context, args []string) {
	nc, js := connect()
	defer nc.Close()
	_, err := nc.Request("tasks.default", []byte("12"), 5*time.Second)
	fmt.Println("a subject of another shape:", errors.Is(err, nats.ErrNoResponders), err)
	_, err = js.Publish(ctx, "tasks.default", []byte("12"))
	fmt.Println("the same by JetStream:", errors.Is(err, jetstream.ErrNoStreamResponse), err)
	var refused *jetstream.APIError
	_, err = js.Publish(ctx, "tasks.default.echo", bytes.Repeat([]byte("1"), 1_500_000))
	fmt.Println("too large:", errors.As(err, &refused), refused.ErrorCode)
	for range 2 {
		_, err = js.Publish(ctx, "tasks.default.sleep.u-"+args[0], []byte("5"), jetstream.WithExpectLastSequencePerSubject(0))
	}
	fmt.Println("a unique key that is taken:", errors.As(err, &refused), refused.ErrorCode)
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = js.Publish(soon, "results.not.allowed.here", []byte("12"))
	fmt.Println("not allowed:", errors.Is(err, context.DeadlineExceeded), err)
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

func bucket(ctx context.Context, args []string) {
	nc, js := connect()
	defer nc.Close()
	shared, err := js.KeyValue(ctx, "millpond_shared")
	check(err)
	first, err := shared.Put(ctx, args[0], []byte("5"))
	check(err)
	_, err = shared.Update(ctx, args[0], []byte("6"), first)
	check(err)
	_, err = shared.Update(ctx, args[0], []byte("7"), first)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		fmt.Println("another was faster")
	}
	entry, err := shared.Get(ctx, args[0])
	check(err)
	names, err := shared.ListKeys(ctx)
	check(err)
	listed := "lost"
	for name := range names.Keys() {
		if name == args[0] {
			listed = "listed"
		}
	}
	fmt.Println(string(entry.Value()), listed)
	watch, err := shared.Watch(ctx, args[0])
	check(err)
	fmt.Println(string((<-watch.Updates()).Value()))
}

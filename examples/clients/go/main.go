// The programs of this folder, by their names: `go run . publish`.
package main

import (
	"context"
	"log"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// connect uses the URL that `millpond env` prints. The handler is told of what the server refuses later than the call: a publish
// that is not allowed, say.
func connect() (*nats.Conn, jetstream.JetStream) {
	refused := func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Println("refused:", err) }
	nc, err := nats.Connect(os.Getenv("MILLPOND_NATS_URL"), nats.MaxReconnects(-1), nats.ErrorHandler(refused))
	check(err)
	js, err := jetstream.New(nc)
	check(err)
	return nc, js
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	programs := map[string]func(context.Context, []string){
		"publish": publish, "idempotent": idempotent, "delayed": delayed, "wait": wait, "job": job,
		"results": results, "call": call, "errors": failures, "payload": payload, "bucket": bucket,
	}
	programs[os.Args[1]](context.Background(), os.Args[2:])
}

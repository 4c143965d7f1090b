package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func payload(ctx context.Context, args []string) {
	large, err := json.Marshal(strings.Repeat("large ", 300_000))
	check(err)
	request, err := http.NewRequest("PUT", os.Getenv("MILLPOND_PRODUCER_URL")+"/v1/payloads", bytes.NewReader(large))
	check(err)
	request.Header.Set("Authorization", "Bearer "+os.Getenv("MILLPOND_TOKEN"))
	answer, err := http.DefaultClient.Do(request)
	check(err)
	defer answer.Body.Close()
	var stored struct{ Expires string }
	check(json.NewDecoder(answer.Body).Decode(&stored))

	nc, js := connect()
	defer nc.Close()
	replies, err := nc.SubscribeSync("reply." + args[0])
	check(err)
	task := nats.NewMsg("tasks.default.echo")
	task.Header.Set("Millpond-Ref", answer.Header.Get("Millpond-Ref"))
	task.Header.Set("Millpond-Expires", stored.Expires)
	task.Header.Set("Millpond-Reply-To", "reply."+args[0])
	_, err = js.PublishMsg(ctx, task, jetstream.WithMsgID(args[0]))
	check(err)
	message, err := replies.NextMsg(time.Minute)
	check(err)
	var end struct{ Ref struct{ Object string } }
	check(json.Unmarshal(message.Data, &end))
	payloads, err := js.ObjectStore(ctx, "millpond_payloads")
	check(err)
	result, err := payloads.GetBytes(ctx, end.Ref.Object)
	check(err)
	if bytes.Equal(result, large) {
		fmt.Println("the same")
	}
}

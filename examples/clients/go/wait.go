package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type end struct{ Status string }

// asked is the end as the collector has it; none while there is none, or while the collector does not answer.
func asked(id string) *end {
	query := url.Values{"id": {id}, "queue": {"default"}}
	request, err := http.NewRequest("GET", os.Getenv("MILLPOND_COLLECTOR_URL")+"/api/v1/task?"+query.Encode(), nil)
	check(err)
	request.Header.Set("Authorization", "Bearer "+os.Getenv("MILLPOND_TOKEN"))
	answer, err := (&http.Client{Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	var task end
	if answer.StatusCode != 200 || json.NewDecoder(answer.Body).Decode(&task) != nil {
		return nil
	}
	if task.Status == "done" || task.Status == "dead" || task.Status == "cancelled" {
		return &task
	}
	return nil
}

func wait(ctx context.Context, args []string) {
	id, seconds := args[0], args[1]
	nc, js := connect()
	defer nc.Close()
	replies, err := nc.SubscribeSync("reply." + id)
	check(err)
	task := nats.NewMsg("tasks.default.sleep")
	task.Data = []byte(seconds)
	task.Header.Set("Millpond-Reply-To", "reply."+id)
	ack, err := js.PublishMsg(ctx, task, jetstream.WithMsgID(id))
	for err != nil {
		log.Println("again:", err) // An outage: the same again, with the same id.
		time.Sleep(500 * time.Millisecond)
		ack, err = js.PublishMsg(ctx, task, jetstream.WithMsgID(id))
	}
	var ended *end
	// A duplicate may have ended long ago: then nobody tells it again.
	if ack.Duplicate {
		ended = asked(id)
	}
	for ended == nil {
		if message, err := replies.NextMsg(2 * time.Second); err == nil {
			check(json.Unmarshal(message.Data, &ended))
		} else {
			ended = asked(id)
		}
	}
	fmt.Println(ended.Status)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// batch is a message of RESULTS.
type batch struct {
	Outcomes []struct {
		Index   int
		Results []json.RawMessage
		NotDone []struct{ End string } `json:"not_done"`
	}
}

// ended is how many items have ended: not those that are to run again.
func (b batch) ended() int {
	count := 0
	for _, outcome := range b.Outcomes {
		count += len(outcome.Results)
		for _, item := range outcome.NotDone {
			if item.End == "retry" || item.End == "rest" {
				count--
			}
		}
	}
	return count
}

func job(ctx context.Context, args []string) {
	nc, js := connect()
	defer nc.Close()
	results, err := nc.SubscribeSync("results." + args[0] + ".>")
	check(err)
	for n := range 10 {
		task := nats.NewMsg("tasks.default.square.j-" + args[0])
		task.Data = []byte(strconv.Itoa(n))
		task.Header.Set("Millpond-Index", strconv.Itoa(n))
		_, err := js.PublishMsg(ctx, task, jetstream.WithMsgID(fmt.Sprintf("%s-%d", args[0], n)))
		check(err)
	}
	for count := 0; count < 10; log.Println(count, "of 10") {
		message, err := results.NextMsg(time.Minute)
		check(err)
		var got batch
		check(json.Unmarshal(message.Data, &got))
		count += got.ended()
	}
	fmt.Println("all have ended")
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

func delayed(ctx context.Context, _ []string) {
	nc, js := connect()
	defer nc.Close()
	reply := "reply." + nuid.Next()
	replies, err := nc.SubscribeSync(reply)
	check(err)
	at := time.Now().Add(2 * time.Second)
	task := nats.NewMsg("later.default.square")
	task.Data = []byte("12")
	task.Header.Set("Millpond-At", at.Format(time.RFC3339Nano))
	task.Header.Set("Millpond-Reply-To", reply)
	_, err = js.PublishMsg(ctx, task)
	check(err)
	message, err := replies.NextMsg(time.Minute)
	check(err)
	var end struct{ Result json.RawMessage }
	check(json.Unmarshal(message.Data, &end))
	fmt.Println(string(end.Result))
	if time.Now().Before(at) {
		fmt.Println("too early")
	} else {
		fmt.Println("not before its time")
	}
}

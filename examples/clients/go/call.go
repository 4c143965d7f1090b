package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

func call(context.Context, []string) {
	nc, _ := connect()
	defer nc.Close()
	answer, err := nc.Request("call.default.square", []byte("12"), 30*time.Second)
	check(err)
	fmt.Println(string(answer.Data))
	failed, err := nc.Request("call.default.fail", []byte(`{"how": "error"}`), 30*time.Second)
	check(err)
	var failure struct{ Type string }
	check(json.Unmarshal(failed.Data, &failure))
	fmt.Println(failed.Header.Get("Nats-Service-Error-Code"), failure.Type)
	_, err = nc.Request("call.default.nobody", []byte("1"), 30*time.Second)
	if !errors.Is(err, nats.ErrNoResponders) {
		check(err)
	}
	fmt.Println("no worker answers")
}

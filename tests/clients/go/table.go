// Each cell of the table in tests/clients.rs with nats.go and its jetstream, in the ordinary ways of the library: `ok CELL`, or
// `FAILED CELL: why`.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

type client struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	mutex    sync.Mutex
	refusals []string
}

func connect(variable string) *client {
	c := &client{}
	refused := func(_ *nats.Conn, _ *nats.Subscription, err error) {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		c.refusals = append(c.refusals, err.Error())
	}
	options := []nats.Option{nats.ErrorHandler(refused)}
	if variable == "MILLPOND_PRODUCER_NATS_URL" {
		options = append(options, nats.CustomInboxPrefix("_INBOX_producer"))
	}
	c.nc = must(nats.Connect(os.Getenv(variable), options...))
	c.js = must(jetstream.New(c.nc))
	return c
}

// A cell that fails panics with its reason.
func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func wants(found, wanted any) {
	if !reflect.DeepEqual(found, wanted) {
		panic(fmt.Sprintf("%#v instead of %#v", found, wanted))
	}
}

func fails(err error, code jetstream.ErrorCode) {
	var refused *jetstream.APIError
	if !errors.As(err, &refused) || refused.ErrorCode != code {
		panic(fmt.Sprintf("%v instead of %d", err, code))
	}
}

func message(subject, body string, headers ...string) *nats.Msg {
	made := nats.NewMsg(subject)
	made.Data = []byte(body)
	for n := 0; n < len(headers); n += 2 {
		made.Header.Set(headers[n], headers[n+1])
	}
	return made
}

type ended struct {
	Status  string
	Attempt int
	Result  any
	Failure struct{ Type string }
	Ref     struct{ Object string }
}

// end publishes a task; its end, as it is told.
func (c *client) end(ctx context.Context, subject, body string, headers ...string) (end ended) {
	reply := "reply." + nuid.Next()
	replies := must(c.nc.SubscribeSync(reply))
	defer replies.Unsubscribe()
	must(c.js.PublishMsg(ctx, message(subject, body, append(headers, "Millpond-Reply-To", reply)...)))
	check(json.Unmarshal(must(replies.NextMsg(time.Minute)).Data, &end))
	return
}

type batchOfOutcomes struct {
	Outcomes []struct {
		Index   int
		Results []any
	}
}

func outcomes(data []byte) (got batchOfOutcomes) {
	check(json.Unmarshal(data, &got))
	if len(got.Outcomes) == 0 {
		panic(string(data))
	}
	return
}

func publish(ctx context.Context, c *client) {
	ack := must(c.js.Publish(ctx, "tasks.default.square", []byte("12")))
	wants([]any{ack.Stream, ack.Duplicate}, []any{"TASKS", false})
	async := must(c.js.PublishAsync("tasks.default.square", []byte("12")))
	wants((<-async.Ok()).Stream, "TASKS")
	answer := must(c.nc.RequestWithContext(ctx, "tasks.default.square", []byte("12")))
	if !strings.Contains(string(answer.Data), `"stream":"TASKS"`) {
		panic(string(answer.Data))
	}
}

func duplicate(ctx context.Context, c *client) {
	for _, wanted := range []bool{false, true} {
		ack := must(c.js.Publish(ctx, "tasks.default.square", []byte("12"), jetstream.WithMsgID("table-go")))
		wants(ack.Duplicate, wanted)
	}
}

func replyTo(ctx context.Context, c *client) {
	end := c.end(ctx, "tasks.default.square", "12")
	wants([]any{end.Status, end.Result}, []any{"done", 144.0})
}

func httpWait(ctx context.Context, c *client) {
	url := os.Getenv("MILLPOND_PRODUCER_URL") + "/v1/tasks/default/square?wait=30s"
	request := must(http.NewRequestWithContext(ctx, "POST", url, strings.NewReader("12")))
	request.Header.Set("Authorization", "Bearer "+os.Getenv("MILLPOND_TOKEN"))
	answer := must(http.DefaultClient.Do(request))
	defer answer.Body.Close()
	var end ended
	check(json.NewDecoder(answer.Body).Decode(&end))
	wants(end.Result, 144.0)
}

func delayed(ctx context.Context, c *client) {
	at := time.Now().Add(time.Second)
	end := c.end(ctx, "later.default.square", "12", "Millpond-At", at.Format(time.RFC3339Nano))
	wants([]any{end.Result, time.Now().Before(at)}, []any{144.0, false})
	wants(c.end(ctx, "later.default.square", "11", "Millpond-Delay", "300ms").Result, 121.0)
}

func expires(ctx context.Context, c *client) {
	in := func(d time.Duration) string { return time.Now().Add(d).Format(time.RFC3339) }
	wants(c.end(ctx, "tasks.default.square", "12", "Millpond-Expires", in(-2*time.Second)).Status, "dead")
	wants(c.end(ctx, "tasks.default.square", "12", "Millpond-Expires", in(5*time.Minute)).Status, "done")
}

func timeoutAndAttempts(ctx context.Context, c *client) {
	limit := (500 * time.Millisecond).String()
	end := c.end(ctx, "tasks.default.sleep", "30", "Millpond-Timeout", limit, "Millpond-Attempts-Max", "1")
	wants([]any{end.Status, end.Attempt, end.Failure.Type}, []any{"dead", 1, "timeout"})
}

func death(ctx context.Context, c *client) {
	end := c.end(ctx, "tasks.default.fail", `{"how": "error"}`, "Millpond-Attempts-Max", "2")
	wants([]any{end.Status, end.Attempt}, []any{"dead", 2})
}

func continuation(ctx context.Context, c *client) {
	wants(c.end(ctx, "tasks.default.square", "3", "Millpond-Continuation", "square").Result, 81.0)
}

func unique(ctx context.Context, c *client) {
	alone := jetstream.WithExpectLastSequencePerSubject(0)
	for name, subject := range map[string]string{
		"LATER": "later.default.sleep.u-table-go", "DUE": "due.default.sleep.u-table-go", "TASKS": "tasks.default.sleep.u-table-go",
	} {
		_, err := must(c.js.Stream(ctx, name)).GetLastMsgForSubject(ctx, subject)
		wants(errors.Is(err, jetstream.ErrMsgNotFound), true)
	}
	must(c.js.Publish(ctx, "tasks.default.sleep.u-table-go", []byte("3"), alone))
	_, err := c.js.Publish(ctx, "tasks.default.sleep.u-table-go", []byte("3"), alone)
	fails(err, 10071)
}

func batch(ctx context.Context, c *client) {
	reply := "reply." + nuid.Next()
	replies := must(c.nc.SubscribeSync(reply))
	many := message("tasks.default.square", "[1, 2, 3]", "Millpond-Batch", "3", "Millpond-Reply-To", reply)
	must(c.js.PublishMsg(ctx, many))
	var results []float64
	for range 3 {
		var end ended
		check(json.Unmarshal(must(replies.NextMsg(time.Minute)).Data, &end))
		results = append(results, end.Result.(float64))
	}
	sort.Float64s(results)
	wants(results, []float64{1, 4, 9})
}

func job(ctx context.Context, c *client) {
	heard := must(c.nc.SubscribeSync("results.table-go.>"))
	for n := range 3 {
		place := fmt.Sprint(n)
		must(c.js.PublishMsg(ctx, message("tasks.default.square.j-table-go", place, "Millpond-Index", place)))
	}
	found := map[int]any{}
	for len(found) < 3 {
		for _, outcome := range outcomes(must(heard.NextMsg(time.Minute)).Data).Outcomes {
			for place, value := range outcome.Results {
				found[outcome.Index+place] = value
			}
		}
	}
	wants(found, map[int]any{0: 0.0, 1: 1.0, 2: 4.0})
}

var filters = [][]string{nil, {"results.table-go.>"}, {"results.table-go.>", "results.none.>"}}

func resultsOrdered(ctx context.Context, c *client) {
	for _, filter := range filters {
		config := jetstream.OrderedConsumerConfig{FilterSubjects: filter}
		consumer := must(c.js.OrderedConsumer(ctx, "RESULTS", config))
		outcomes(must(consumer.Next()).Data())
	}
	// The library's older way.
	old := must(c.nc.JetStream())
	ordered := must(old.SubscribeSync("results.table-go.>", nats.OrderedConsumer()))
	outcomes(must(ordered.NextMsg(10 * time.Second)).Data)
	check(ordered.Unsubscribe())
}

func resultsAcked(ctx context.Context, c *client) {
	config := jetstream.ConsumerConfig{FilterSubject: filters[1][0], AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Second}
	consumer := must(c.js.CreateConsumer(ctx, "RESULTS", config))
	seen := map[uint64]bool{}
	for {
		next, err := consumer.Next(jetstream.FetchMaxWait(2 * time.Second))
		if err != nil {
			break
		}
		check(next.DoubleAck(ctx))
		sequence := must(next.Metadata()).Sequence.Stream
		wants(seen[sequence], false)
		seen[sequence] = true
	}
	wants(len(seen) > 0, true)
	check(c.js.DeleteConsumer(ctx, "RESULTS", consumer.CachedInfo().Name))
	old := must(c.nc.JetStream())
	push := must(old.SubscribeSync("results.table-go.>"))
	check(must(push.NextMsg(10 * time.Second)).AckSync())
	check(push.Unsubscribe())
	pull := must(old.PullSubscribe("results.table-go.>", ""))
	check(must(pull.Fetch(1))[0].AckSync())
	check(pull.Unsubscribe())
}

func resultsDurable(ctx context.Context, c *client) {
	config := jetstream.ConsumerConfig{Durable: "table-go", AckPolicy: jetstream.AckExplicitPolicy}
	consumer := must(c.js.CreateOrUpdateConsumer(ctx, "RESULTS", config))
	check(must(consumer.Next()).DoubleAck(ctx))
	wants(must(consumer.Info(ctx)).Name, "table-go")
	check(c.js.DeleteConsumer(ctx, "RESULTS", "table-go"))
}

func resultsFilters(ctx context.Context, c *client) {
	consumer := must(c.js.CreateConsumer(ctx, "RESULTS", jetstream.ConsumerConfig{FilterSubjects: filters[2]}))
	next := must(consumer.Next())
	wants(strings.HasPrefix(next.Subject(), "results.table-go."), true)
	check(c.js.DeleteConsumer(ctx, "RESULTS", consumer.CachedInfo().Name))
}

func resultsLookedUp(ctx context.Context, c *client) {
	wants(must(c.js.StreamNameBySubject(ctx, "results.>")), "RESULTS")
	stream := must(c.js.Stream(ctx, "RESULTS"))
	outcomes(must(stream.GetLastMsgForSubject(ctx, "results.table-go.default.square")).Data)
}

func call(ctx context.Context, c *client) {
	answer := must(c.nc.RequestWithContext(ctx, "call.default.square", []byte("12")))
	wants(string(answer.Data), "144")
	failure := must(c.nc.RequestWithContext(ctx, "call.default.fail", []byte(`{"how": "error"}`)))
	wants(failure.Header.Get("Nats-Service-Error-Code"), "500")
	_, err := c.nc.RequestWithContext(ctx, "call.default.nobody", []byte("1"))
	wants(errors.Is(err, nats.ErrNoResponders), true)
}

func pipe(ctx context.Context, c *client) {
	name := nuid.Next()
	said := must(c.nc.SubscribeSync("pipe." + name + ".out"))
	open := message("call.default.talk", "{}", "Millpond-Pipe", name, "Millpond-Pipe-Capacity", "16")
	begun := must(c.nc.RequestMsgWithContext(ctx, open))
	wants(begun.Header.Get("Millpond-Pipe"), name)
	in := "pipe." + name + ".in"
	check(c.nc.PublishMsg(message(in, "hello", "Millpond-Seq", "1")))
	check(c.nc.PublishMsg(message(in, "", "Millpond-Seq", "2", "Millpond-End", "ok")))
	first, last, got := "", "", "0"
	// Each side says something each second: who is silent is taken for gone.
	for last == "" {
		check(ctx.Err())
		next, err := said.NextMsg(time.Second)
		if err == nil && next.Header.Get("Millpond-Seq") != "" {
			got = next.Header.Get("Millpond-Seq")
			if got == "1" {
				first = string(next.Data)
			}
			last = next.Header.Get("Millpond-End")
		}
		check(c.nc.PublishMsg(message(in, "", "Millpond-Got", got)))
	}
	wants([]string{first, last}, []string{"heard hello", "ok"})
}

func buckets(ctx context.Context, c *client) {
	for _, name := range []string{"millpond_shared", "millpond_jobs", "millpond_queues"} {
		kv := must(c.js.KeyValue(ctx, name))
		writes := name != "millpond_queues"
		if writes {
			first := must(kv.Put(ctx, "table-go", []byte("1")))
			wants(string(must(kv.Get(ctx, "table-go")).Value()), "1")
			must(kv.Update(ctx, "table-go", []byte("2"), first))
			_, err := kv.Update(ctx, "table-go", []byte("3"), first)
			fails(err, 10071)
			_, err = kv.Create(ctx, "table-go", []byte("3"))
			wants(errors.Is(err, jetstream.ErrKeyExists), true)
			wants(string(must(kv.History(ctx, "table-go"))[0].Value()), "2")
		}
		keys := 0
		for range must(kv.ListKeys(ctx)).Keys() {
			keys++
		}
		watch := must(kv.WatchAll(ctx))
		wants(keys > 0 && (<-watch.Updates()).Key() != "", true)
		check(watch.Stop())
		wants(must(kv.Status(ctx)).Values() >= uint64(keys), true)
		if writes {
			check(kv.Delete(ctx, "table-go"))
			_, err := kv.Get(ctx, "table-go")
			wants(errors.Is(err, jetstream.ErrKeyNotFound), true)
		}
	}
}

func claimCheck(ctx context.Context, c *client) {
	payloads := must(c.js.ObjectStore(ctx, "millpond_payloads"))
	large := must(json.Marshal(strings.Repeat("go ", 700_000)))
	url := os.Getenv("MILLPOND_PRODUCER_URL") + "/v1/payloads"
	request := must(http.NewRequestWithContext(ctx, "PUT", url, bytes.NewReader(large)))
	request.Header.Set("Authorization", "Bearer "+os.Getenv("MILLPOND_TOKEN"))
	answer := must(http.DefaultClient.Do(request))
	defer answer.Body.Close()
	ref := answer.Header.Get("Millpond-Ref")
	wants(strings.Contains(ref, fmt.Sprintf("%x", sha256.Sum256(large))), true)
	end := c.end(ctx, "tasks.default.echo", "", "Millpond-Ref", ref)
	wants(bytes.Equal(must(payloads.GetBytes(ctx, end.Ref.Object)), large), true)
}

func denied(ctx context.Context, c *client) {
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := c.js.Publish(soon, "results.not.allowed.here", []byte("12"))
	wants(errors.Is(err, context.DeadlineExceeded), true)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	wants(strings.Contains(strings.Join(c.refusals, "\n"), "results.not.allowed.here"), true)
}

func otherRoles(ctx context.Context, _ *client) {
	for _, variable := range []string{"MILLPOND_PUBLISHER_NATS_URL", "MILLPOND_PRODUCER_NATS_URL"} {
		c := connect(variable)
		wants(must(c.js.Publish(ctx, "tasks.default.square", []byte("12"))).Stream, "TASKS")
		must(c.nc.RequestWithContext(ctx, "tasks.default.square", []byte("12")))
		wants(len(c.refusals), 0)
		c.nc.Close()
	}
}

func main() {
	cells := []struct {
		name string
		run  func(context.Context, *client)
	}{
		{"publish", publish}, {"duplicate", duplicate}, {"reply_to", replyTo}, {"http_wait", httpWait}, {"delayed", delayed},
		{"expires", expires}, {"timeout_and_attempts", timeoutAndAttempts}, {"death", death}, {"continuation", continuation},
		{"unique", unique}, {"batch", batch}, {"job", job}, {"results_ordered", resultsOrdered}, {"results_acked", resultsAcked},
		{"results_durable", resultsDurable}, {"results_filters", resultsFilters}, {"results_looked_up", resultsLookedUp},
		{"call", call}, {"pipe", pipe}, {"buckets", buckets}, {"claim_check", claimCheck}, {"denied", denied},
		{"other_roles", otherRoles},
	}
	c := connect("MILLPOND_NATS_URL")
	code := 0
	for _, cell := range cells {
		func() {
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			defer func() {
				if why := recover(); why != nil {
					code = 1
					fmt.Printf("FAILED %s: %v; refused: %v\n", cell.name, why, c.refusals)
				}
			}()
			cell.run(ctx, c)
			fmt.Println("ok", cell.name)
		}()
	}
	c.nc.Close()
	os.Exit(code)
}

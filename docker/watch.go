package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// Action is what happened to a container, between it and a network, or to the networks.
type Action string

// The actions that are reported; the engine has many more. Connect and disconnect name a network, too; networks
// names a network alone, which was created or removed.
const (
	ActionCreate     Action = "create"
	ActionStart      Action = "start"
	ActionDie        Action = "die"
	ActionDestroy    Action = "destroy"
	ActionRename     Action = "rename"
	ActionConnect    Action = "connect"
	ActionDisconnect Action = "disconnect"
	ActionNetworks   Action = "networks"
)

var containerActions = []Action{ActionCreate, ActionStart, ActionDie, ActionDestroy, ActionRename}
var networkActions = []Action{ActionConnect, ActionDisconnect}

// Event is a doorbell: it says where to look, not what is there. Events may be repeated, and lost
// without a mark.
type Event struct {
	Action    Action
	ID        string // the container's, 64 hex digits; "" for networks
	NetworkID string // for connect, disconnect and networks, 64 hex digits
	// Labels come with create only: the container's and the image's, and a few attributes of the
	// engine's own under names such as "image" and "name", which hide labels of these names.
	Labels map[string]string
	Time   time.Time // by the engine's clock
}

// Stream is an open stream of events.
type Stream struct {
	// C delivers events in the engine's order and is closed when the stream ends. Read it without
	// delay: an engine that has 1,024 events waiting drops the next ones silently.
	C <-chan Event

	cancel context.CancelFunc
	err    error // written before C is closed
}

// sinceMargin is how far before the subscription a stream begins. The engine answers a subscription a
// moment before it takes effect; what happened in that moment is replayed from the engine's memory.
const sinceMargin = 2 * time.Second

// Watch opens a stream of the events from now on; those of the last seconds may come first. What is
// listed after Watch has returned cannot change unseen: watch, then list. The stream ends when ctx
// does, when the engine refuses, goes away or sends what is no event, and with Close; then Connect
// anew and list again. An engine that does not answer at all keeps Watch waiting until ctx ends.
func (c *Client) Watch(ctx context.Context) *Stream {
	ctx, cancel := context.WithCancel(ctx)
	args := filters.NewArgs(filters.Arg("type", "container"), filters.Arg("type", "network"))
	for _, a := range slices.Concat(containerActions, networkActions) {
		args.Add("event", string(a))
	}
	msgs, errs := c.api.Events(ctx, events.ListOptions{Since: timestamp(time.Now().Add(-sinceMargin)), Filters: args})
	ch := make(chan Event, 64)
	s := &Stream{C: ch, cancel: cancel}
	go s.run(ctx, msgs, errs, ch)
	return s
}

func (s *Stream) run(ctx context.Context, msgs <-chan events.Message, errs <-chan error, out chan<- Event) {
	defer close(out)
	defer s.cancel()
	for {
		select {
		case m := <-msgs:
			e, ok := translate(m)
			if !ok {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
			}
		case err := <-errs:
			s.err = streamError(err)
			return
		}
	}
}

// Err says why the stream ended; it is never nil once C is closed, and must not be called before.
func (s *Stream) Err() error { return s.err }

// Close ends the stream and frees what it holds. C is closed soon after.
func (s *Stream) Close() { s.cancel() }

// translate reads an event. Of an event only the type, the action and the actor's id are the engine's
// word: a container's labels are copied over its attributes, where they can forge any other field.
// Attributes of network events are the engine's own.
func translate(m events.Message) (Event, bool) {
	e := Event{Action: Action(m.Action), Time: time.Unix(0, m.TimeNano)}
	switch {
	case m.Type == events.ContainerEventType && slices.Contains(containerActions, e.Action):
		e.ID = m.Actor.ID
		if e.Action == ActionCreate {
			e.Labels = m.Actor.Attributes
		}
	case m.Type == events.NetworkEventType && slices.Contains(networkActions, e.Action):
		e.ID, e.NetworkID = m.Actor.Attributes["container"], m.Actor.ID
		if !isID(e.NetworkID) {
			return Event{}, false
		}
	case m.Type == events.NetworkEventType && (e.Action == ActionCreate || e.Action == ActionDestroy):
		e.Action, e.NetworkID = ActionNetworks, m.Actor.ID
		return e, isID(e.NetworkID)
	}
	return e, isID(e.ID)
}

func streamError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("the engine ended it")
	}
	return fmt.Errorf("event stream: %w", err)
}

// timestamp is seconds and nanoseconds as the engine reads them.
func timestamp(t time.Time) string {
	return strconv.FormatInt(t.Unix(), 10) + "." + fmt.Sprintf("%09d", t.Nanosecond())
}

package enginetest

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// Container is a container that runs the program peer.
type Container struct {
	d    *Docker
	ID   string // 64 hex digits
	Name string
}

// Start runs a container from image (Image makes one) with options of docker run (--label, --network,
// ...) and returns when its process runs. Command is what peer shall do; without one it sleeps.
func (d *Docker) Start(image, name string, options []string, command ...string) *Container {
	d.t.Helper()
	c := d.Create(image, name, options, command...)
	d.Run("start", c.ID)
	return c
}

// Create is Start without the start.
func (d *Docker) Create(image, name string, options []string, command ...string) *Container {
	d.t.Helper()
	c := &Container{d: d, Name: d.prefix + name}
	args := slices.Concat([]string{"create", "--name", c.Name}, options, []string{image}, command)
	c.ID = d.Run(args...)
	d.cleanup("rm", "--force", "--volumes", c.ID)
	return c
}

// Serve starts a container that receives, records and echoes on ports ("53/udp", "443/tcp"), and returns
// when all of them are open.
func (d *Docker) Serve(image, name string, options []string, ports ...string) *Container {
	d.t.Helper()
	c := d.Start(image, name, options, append([]string{"serve"}, ports...)...)
	c.WaitServing()
	return c
}

// With is the same container for another test.
func (c *Container) With(d *Docker) *Container {
	other := *c
	other.d = d
	return &other
}

// WaitServing returns when the container's ports are open, after a restart for example.
func (c *Container) WaitServing() {
	c.d.t.Helper()
	c.d.Wait("ports of "+c.Name, func() error {
		_, err := c.Do("received")
		return err
	})
}

// Do lets peer do one thing in the running container ("udp-send", "192.0.2.1:53", "text"); the error is
// nil where peer says that it worked.
func (c *Container) Do(command ...string) (string, error) {
	return c.d.Try(append([]string{"exec", c.ID, "/peer"}, command...)...)
}

// MustDo is Do for what must work.
func (c *Container) MustDo(command ...string) {
	c.d.t.Helper()
	if _, err := c.Do(command...); err != nil {
		c.d.t.Fatal(err)
	}
}

// DoMany lets peer do several things at once, and returns their errors in the same order.
func (c *Container) DoMany(commands ...[]string) []error {
	c.d.t.Helper()
	errs := make([]error, len(commands))
	if len(commands) == 0 {
		return errs
	}
	args := []string{"many"}
	for i, cmd := range commands {
		if i > 0 {
			args = append(args, "--")
		}
		args = append(args, cmd...)
	}
	out, err := c.Do(args...)
	if err != nil {
		c.d.t.Fatal(err)
	}
	var texts []string
	if err := json.Unmarshal([]byte(out), &texts); err != nil || len(texts) != len(errs) {
		c.d.t.Fatalf("%s answers %q: %v", c.Name, out, err)
	}
	for i, text := range texts {
		if text != "" {
			errs[i] = errors.New(text)
		}
	}
	return errs
}

// Arrival is a kind of thing that a serving container received, and how often. Text is the whole
// datagram, or what came in one piece on a TCP connection.
type Arrival struct {
	Proto string // "udp" or "tcp"
	Port  uint16
	From  netip.Addr
	Text  string
	Count int
}

// Received returns what a serving container has received since it started, in no particular order. It
// does not ask over a network, so that no filter is in the way.
func (c *Container) Received() []Arrival {
	c.d.t.Helper()
	out, err := c.Do("received")
	if err != nil {
		c.d.t.Fatal(err)
	}
	var all []Arrival
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		c.d.t.Fatalf("%s received %q: %v", c.Name, out, err)
	}
	return all
}

// Count says how often text arrived, on any port and from anybody.
func (c *Container) Count(text string) (n int) {
	c.d.t.Helper()
	for _, a := range c.Received() {
		if a.Text == text {
			n += a.Count
		}
	}
	return n
}

// Addr is the container's address of a family (4 or 6) in a network, as the engine gave it.
func (c *Container) Addr(network string, family int) netip.Addr {
	c.d.t.Helper()
	field := map[int]string{4: "IPAddress", 6: "GlobalIPv6Address"}[family]
	out := c.d.Run("inspect", "--format", `{{(index .NetworkSettings.Networks "`+network+`").`+field+`}}`, c.ID)
	addr, err := netip.ParseAddr(out)
	if err != nil {
		c.d.t.Fatalf("%s has no IPv%d address in network %s: %v", c.Name, family, network, err)
	}
	return addr
}

// Wait asks again and again until try returns nil; it fails the test when that takes too long.
func (d *Docker) Wait(what string, try func() error) {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: gave up waiting: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// ReadConfig reads the agent's configuration from a file, and holds it against what this version can enforce. Where
// there is no file the configuration is zero. Mistakes are yamltree.Errors.
func ReadConfig(path string) (config.Config, error) {
	f := configFile{path: path}
	conf, _, err := f.look()
	if errors.Is(err, fs.ErrNotExist) {
		return config.Config{}, nil
	}
	return conf, err
}

// Usable says what of a configuration this version cannot enforce. It would close every container that is concerned.
func Usable(conf config.Config) error {
	var errs []error
	compile := func(whose string, p *policy.Policy) {
		if p == nil {
			return
		}
		if _, err := xdp.Compile(policy.Groups{}.Resolve(policy.Stack{{Policy: *p}})); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", whose, err))
		}
	}
	compile("the floor", conf.Floor)
	for _, p := range conf.Policies {
		compile("of the policies "+p.String(), p.Labels)
	}
	return errors.Join(errs...)
}

// configFile is the configuration of an agent that runs.
type configFile struct {
	path string
	last string // what was found there at the last look: a text, or an error
}

// look reads the file. It is false where there is what was there at the last look.
func (f *configFile) look() (conf config.Config, changed bool, err error) {
	text, err := config.Load(f.path)
	found := fmt.Sprint(string(text), err)
	if found == f.last {
		return conf, false, nil
	}
	f.last = found
	if err == nil {
		conf, err = config.Parse(f.path, text)
	}
	if err == nil {
		err = Usable(conf)
	}
	if err != nil {
		return config.Config{}, true, err
	}
	return conf, true, nil
}

// settle is how long a directory must be at rest before a file in it counts as written.
const settle = 200 * time.Millisecond

// follow calls look when something has happened in the file's directory, and every resync: a symlink may lead
// elsewhere, and a directory may be made later. What comes on again makes it forget what it has seen.
func (f *configFile) follow(ctx context.Context, again <-chan os.Signal, look func()) {
	var events chan fsnotify.Event
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		events = watcher.Events
		go func() {
			for range watcher.Errors { // events were lost: the timer finds out
			}
		}()
	}
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for {
		if watcher != nil {
			_ = watcher.Add(filepath.Dir(f.path)) // each time: it may be another one by now
		}
		look()
		select {
		case <-ctx.Done():
			return
		case <-again:
			f.last = ""
			continue
		case <-tick.C:
		case <-events:
		}
		rest(ctx, events)
	}
}

// rest waits until nothing has come for a while, a resync at most.
func rest(ctx context.Context, events <-chan fsnotify.Event) {
	ctx, cancel := context.WithTimeout(ctx, resync)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
			return
		case <-events:
		}
	}
}

// configure puts a new configuration into force: every container's policy is made anew.
func (a *agent) configure(conf config.Config) {
	a.around.conf = conf
	a.bound(conf)
	clear(a.plain) // it may pick some of them
	for _, c := range a.containers {
		if c.inspected {
			a.decide(c, a.surroundingsOf(c))
		}
	}
	a.everythingDirty()
	a.relist() // for those that nothing concerned so far
	a.log.Info("the configuration has been read again and is in force", "floor", conf.Floor != nil, "policies", len(conf.Policies))
}

// bound makes the tables of conversations that are given out from now on as large as the configuration says.
func (a *agent) bound(conf config.Config) {
	if err := a.kernel.Bound(cmp.Or(conf.Conversations, policy.MaxAnswered)); err != nil {
		a.log.Warn("no tables of conversations are ready; trying again when one is needed", "error", err)
	}
}

// reload looks at the file, and hands a configuration that is right to the loop.
func (a *agent) reload(f *configFile) {
	conf, changed, err := f.look()
	switch {
	case err != nil:
		a.rejected(f.path, err)
	case changed:
		a.tell(func() { a.configure(conf) })
	}
}

// maxMistakes is how many mistakes of a file the log has.
const maxMistakes = 20

// rejected tells the log what is wrong with a configuration.
func (a *agent) rejected(path string, err error) {
	var mistakes yamltree.Errors
	if !errors.As(err, &mistakes) {
		a.log.Error("the configuration cannot be used", "file", path, "error", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for _, m := range mistakes[:min(len(mistakes), maxMistakes)] {
		a.log.Error("a mistake in the configuration", "file", m.File, "line", m.Line, "column", m.Column, "why", m.Why())
	}
	a.log.Error("the configuration is rejected as a whole; the one before stays in force", "file", path, "mistakes", max(1, len(mistakes)),
		"see", "vethwall check -f "+path)
}

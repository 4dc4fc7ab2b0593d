package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vethwall/vethwall/docker"
)

// resolvConfs are the paths of the files that name a host's resolvers. Of a host whose first file names systemd's stub alone, Docker
// reads the second.
type resolvConfs [2]string

var resolvConf = resolvConfs{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

var systemdStub = netip.MustParseAddr("127.0.0.53")

// read is whom the files name. A host without them names no resolvers.
func (f resolvConfs) read() []netip.Addr {
	text, _ := os.ReadFile(f[0])
	out := nameservers(string(text))
	if slices.Equal(out, []netip.Addr{systemdStub}) {
		text, _ = os.ReadFile(f[1])
		out = append(out, nameservers(string(text))...)
	}
	return out
}

// nameservers are those that a resolv.conf names.
func nameservers(text string) (out []netip.Addr) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, a.Unmap().WithZone(""))
			}
		}
	}
	return out
}

// follow tells whom the files name whenever something has happened to them, and every resync, because a directory on the way to
// them may be another one. Where they name nobody somebody may be about to write them, so that is told when it has been so for a moment.
func (f resolvConfs) follow(ctx context.Context, log *slog.Logger, tell func([]netip.Addr)) {
	var events chan fsnotify.Event
	var lost chan error
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		events, lost = watcher.Events, watcher.Errors
	} else {
		log.Warn("cannot watch the host's resolv.conf: it is read every 15 s and when a container starts", "error", err)
	}
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for sure := false; ; {
		if watcher != nil {
			f.watch(watcher) // each time: they may be others by now
		}
		var calm <-chan time.Time
		if now := f.read(); len(now) > 0 || sure {
			tell(now)
		} else {
			calm = time.After(settle)
		}
		sure = false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-events:
		case err := <-lost:
			log.Debug("events of the host's resolv.conf were lost", "error", err)
		case <-calm:
			sure = true
		}
	}
}

// watch has w look at the directories in which another file, or a link to one, may take the place of each, and at the files, which may be
// written by other names.
func (f resolvConfs) watch(w *fsnotify.Watcher) {
	for _, path := range f {
		_ = w.Add(filepath.Dir(path))
		if target, err := filepath.EvalSymlinks(path); err == nil {
			_ = w.Add(filepath.Dir(target))
			_ = w.Add(target)
		}
	}
}

// recent is for how long whom the host's resolv.conf does not name any more counts for a container that starts: when the engine reads
// it, early in a start, nobody else sees.
const recent = 30 * time.Second

// lately is whom it has named until some time ago.
type lately struct {
	resolvers []netip.Addr
	until     time.Time
}

func (l lately) over() bool { return time.Since(l.until) > recent }

// learnResolvers takes in whom the host's resolv.conf names. It begins before the first container asks, for which what was named lately counts.
func (a *agent) learnResolvers(now []netip.Addr) {
	if a.around.host == nil {
		a.meetHost()
	}
	if h := a.around.host; h != nil {
		a.hostIs(&host{h.addrs, h.onLink, now})
	}
}

// seeResolvers reads whom it names when a container starts, which may be faster than what watches it.
func (a *agent) seeResolvers() { a.learnResolvers(a.readResolvers()) }

// remember keeps whom the host has named before it is known as now.
func (s *surroundings) remember(now *host) {
	if s.host == nil || slices.Equal(s.host.resolvers, now.resolvers) {
		return
	}
	s.lately = slices.DeleteFunc(s.lately, func(l lately) bool { return l.over() || slices.Equal(l.resolvers, s.host.resolvers) })
	s.lately = append(s.lately, lately{s.host.resolvers, time.Now()})
}

// lateFromHost are the resolvers that the engine asks for c from the host if it has read the host's resolv.conf a short time ago.
func (s surroundings) lateFromHost(c docker.Container) (out []netip.Addr) {
	for _, l := range s.lately {
		if !l.over() {
			s.host = &host{resolvers: l.resolvers}
			_, fromHost := s.resolvers(c)
			out = append(out, fromHost...)
		}
	}
	return out
}

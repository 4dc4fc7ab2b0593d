package enginetest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// BuiltVar names the environment variable whose value is a directory made by hack/engine.sh. Engines of a test's own are
// then of that generation, with a containerd of their own beside them; without it they are the machine's dockerd.
const BuiltVar = "VETHWALL_ENGINE"

// pathWith is the environment with the programs of dir found first.
func pathWith(dir string) []string {
	if dir == "" {
		return os.Environ()
	}
	return append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// runtimeFlags are what dockerd has to be told of its containerd and of where images lie. The machine's containerd may be
// shared, under names of the engine's own; it has no storage driver that works everywhere but vfs. A built engine chooses
// its storage itself.
func (e *Engine) runtimeFlags() []string {
	if e.built != "" {
		return []string{"--containerd", e.containerdSocket()}
	}
	return []string{"--storage-driver", "vfs", "--containerd-namespace", e.name, "--containerd-plugins-namespace", e.name + "-plugins"}
}

func (e *Engine) containerdSocket() string { return filepath.Join(e.Dir, "containerd.sock") }

// containerdConfig leaves out what would listen or write outside of the engine's directory.
const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[plugins.'io.containerd.internal.v1.opt']
  path = %q
`

// startContainerd starts the containerd of a built engine and returns when it listens. It lives on when dockerd ends, as
// it does on a host where both are services; remove ends it.
func (e *Engine) startContainerd() error {
	log, err := os.OpenFile(filepath.Join(e.Dir, "containerd.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	config := filepath.Join(e.Dir, "containerd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, containerdConfig, e.Dir+"/opt"), 0o600); err != nil {
		return err
	}
	cmd := e.command([]string{"containerd", "--config", config, "--address", e.containerdSocket(),
		"--root", e.Dir + "/containerd", "--state", e.Dir + "/containerd-state"})
	cmd.Stdout, cmd.Stderr = log, log
	done, err := spawn(cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	e.containerd = process{pid: cmd.Process.Pid, done: done} // no wrapper forks
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", e.containerdSocket())
		if err == nil {
			return c.Close()
		}
		select {
		case <-done:
		default:
			if time.Now().Before(deadline) {
				continue
			}
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("containerd does not answer: %w: %s", err, text)
	}
}

package enginetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/xdp"
)

// Vethwall is the built program on an engine's host, with a directory of its own on bpffs, so that it
// meets no other agent's pins. What it leaves behind when the test ends is a failure of the test.
type Vethwall struct {
	*Docker
	// Engine is the test's own engine, nil for the machine's.
	Engine *Engine
	// Bin is the path of the program, Dir where it pins.
	Bin, Dir string
	// Config is the path of the agent's configuration, which says nothing at first. Programs is the directory of the
	// operator's objects, which is empty.
	Config, Programs string
	// Inside lets the program see the engine's own files, such as its resolv.conf, in the place of the machine's.
	Inside bool
	// Heard, if not nil, is told what the agent logs as it does, by the line or several.
	Heard func(text string)

	agent *agentProcess
}

// agentProcess is the agent that runs, if one does.
type agentProcess struct {
	pid  int           // 0 while none runs
	done chan struct{} // closed once it has been waited for
	cmd  *exec.Cmd     // its exit code is valid once done is closed
	log  logBuffer
}

// bpffs is where everything is pinned.
const bpffs = "/sys/fs/bpf"

// binary is what go build makes of cmd/vethwall, built once for all tests of a package.
var binary = sync.OnceValues(func() ([]byte, error) {
	return build(program)
})

const program = "github.com/vethwall/vethwall/cmd/vethwall"

// Install puts the program on the host of an engine of the test's own. No agent runs yet.
func (e *Engine) Install() *Vethwall {
	e.t.Helper()
	return install(&Vethwall{Docker: e.Docker, Engine: e})
}

// Install puts the program on the machine. No agent runs yet.
func (d *Docker) Install() *Vethwall {
	d.t.Helper()
	return install(&Vethwall{Docker: d})
}

func install(v *Vethwall) *Vethwall {
	v.t.Helper()
	content, err := binary()
	if err != nil {
		v.t.Fatal(err)
	}
	home := v.t.TempDir()
	v.Bin, v.Config, v.Programs = filepath.Join(home, "vethwall"), filepath.Join(home, "etc", "config.yaml"), filepath.Join(home, "programs")
	if err := os.WriteFile(v.Bin, content, 0o755); err != nil {
		v.t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(v.Config), v.Programs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			v.t.Fatal(err)
		}
	}
	v.Configure("{}")
	if err := xdp.EnsureBPFFS(bpffs); err != nil {
		v.t.Fatal(err)
	}
	parent, err := os.MkdirTemp(bpffs, Prefix)
	if err != nil {
		v.t.Fatal(err)
	}
	v.Dir, v.agent = filepath.Join(parent, "vethwall"), &agentProcess{}
	v.t.Cleanup(v.remove)
	return v
}

// With is the same program for another test, such as a subtest.
func (v *Vethwall) With(t testing.TB) *Vethwall {
	other := *v
	other.Docker = v.Docker.With(t)
	if v.Engine != nil {
		other.Engine = v.Engine.With(t)
	}
	return &other
}

// OtherVersion is the path of a program that differs in one place of one source file, named from the root of the repository,
// as another version does.
func (v *Vethwall) OtherVersion(file, old, new string) (bin string) {
	v.t.Helper()
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		v.t.Fatal(err)
	}
	file = filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), file)
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), old) != 1 {
		v.t.Fatalf("%s holds %q %d times: %v", file, old, strings.Count(string(text), old), err)
	}
	dir := v.t.TempDir()
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err == nil {
		err = errors.Join(os.WriteFile(changed, []byte(strings.Replace(string(text), old, new, 1)), 0o600), os.WriteFile(overlay, replace, 0o600))
	}
	if err != nil {
		v.t.Fatal(err)
	}
	content, err := build(program, "-overlay="+overlay)
	if err != nil {
		v.t.Fatal(err)
	}
	bin = filepath.Join(dir, "vethwall")
	if err := os.WriteFile(bin, content, 0o755); err != nil {
		v.t.Fatal(err)
	}
	return bin
}

// Command prepares a process on the engine's host, which finds the engine as the docker command does.
func (v *Vethwall) Command(name string, args ...string) *exec.Cmd {
	if v.Engine != nil {
		return v.Engine.Command(name, args...)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = v.Env
	return cmd
}

// Answer is what a run of the program has printed, and its exit code.
type Answer struct {
	Stdout, Stderr string
	Code           int
}

// Configure replaces the configuration in one step, as an editor does.
func (v *Vethwall) Configure(text string) {
	v.t.Helper()
	if err := os.WriteFile(v.Config+"~", []byte(text), 0o644); err != nil {
		v.t.Fatal(err)
	}
	if err := os.Rename(v.Config+"~", v.Config); err != nil {
		v.t.Fatal(err)
	}
}

// Ask runs the program to its end. Commands that touch the kernel are given the directory, and those that read the
// agent's configuration its path.
func (v *Vethwall) Ask(args ...string) Answer {
	v.t.Helper()
	cmd := v.program(args)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		v.t.Fatalf("%v: %v", args, err)
	}
	return Answer{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// MustAsk is Ask for what must end with exit code 0; it returns what was printed.
func (v *Vethwall) MustAsk(args ...string) string {
	v.t.Helper()
	a := v.Ask(args...)
	if a.Code != 0 {
		v.t.Fatalf("vethwall %s: exit code %d: %s%s", strings.Join(args, " "), a.Code, a.Stderr, a.Stdout)
	}
	return a.Stdout
}

// program prepares a run of the program.
func (v *Vethwall) program(args []string) *exec.Cmd {
	args = v.withFlags(args)
	if v.Inside {
		return v.Engine.command(append([]string{v.Bin}, args...))
	}
	return v.Command(v.Bin, args...)
}

func (v *Vethwall) withFlags(args []string) []string {
	switch args[0] {
	case "agent":
		return append(slices.Clone(args), "--dir", v.Dir, "--config", v.Config, "--programs", v.Programs)
	case "status":
		return append(slices.Clone(args), "--dir", v.Dir, "--config", v.Config)
	case "events", "attach", "detach", "uninstall":
		return append(slices.Clone(args), "--dir", v.Dir)
	case "check":
		return append(slices.Clone(args), "--config", v.Config, "--programs", v.Programs)
	case "explain":
		return append(slices.Clone(args), "--config", v.Config)
	}
	return args
}

// StartAgent starts an agent with further flags, and returns when it says that it has looked at everything.
func (v *Vethwall) StartAgent(flags ...string) {
	v.t.Helper()
	v.SpawnAgent(flags...)
	v.AwaitLog("ready:")
}

// SpawnAgent starts an agent and does not wait for anything.
func (v *Vethwall) SpawnAgent(flags ...string) {
	v.t.Helper()
	a := v.agent
	if a.pid != 0 {
		v.t.Fatal("an agent runs already")
	}
	a.log.reset(v.Heard)
	cmd := v.program(append([]string{"agent"}, flags...))
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	done, err := spawn(cmd, syscall.SIGKILL)
	if err != nil {
		v.t.Fatal(err)
	}
	a.cmd = cmd
	a.pid, a.done = cmd.Process.Pid, done // no wrapper forks: each becomes the next, and the last the agent
}

// EndAgent sends the agent a signal, waits for its end and returns its exit code, -1 where the signal
// killed it.
func (v *Vethwall) EndAgent(sig syscall.Signal) int {
	v.t.Helper()
	a := v.agent
	if a.pid == 0 {
		v.t.Fatal("no agent runs")
	}
	_ = syscall.Kill(a.pid, sig)
	select {
	case <-a.done:
	case <-time.After(patience):
		v.t.Fatalf("the agent does not end on %v; its log:\n%s", sig, v.Log())
	}
	a.pid = 0
	return a.cmd.ProcessState.ExitCode()
}

// SignalAgent sends a signal to the agent that it survives.
func (v *Vethwall) SignalAgent(sig syscall.Signal) {
	v.t.Helper()
	if err := syscall.Kill(v.agent.pid, sig); err != nil {
		v.t.Fatal(err)
	}
}

// AgentFiles is how many files the agent has open.
func (v *Vethwall) AgentFiles() int {
	v.t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.agent.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	return len(files)
}

// Log is what the agent that was started last has written.
func (v *Vethwall) Log() string { return v.agent.log.String() }

// AwaitLog returns when the agent's log holds text.
func (v *Vethwall) AwaitLog(text string) {
	v.t.Helper()
	v.Wait(fmt.Sprintf("%q in the agent's log", text), func() error {
		if log := v.Log(); !strings.Contains(log, text) {
			select {
			case <-v.agent.done:
				v.t.Fatalf("the agent has ended:\n%s", log)
			default:
			}
			return fmt.Errorf("it holds:\n%s", log)
		}
		return nil
	})
}

// remove takes everything out of the kernel again and looks whether that was all.
func (v *Vethwall) remove() {
	if v.agent.pid != 0 {
		v.EndAgent(syscall.SIGTERM)
	}
	if v.t.Failed() {
		v.t.Logf("log of the last agent:\n%s", v.Log())
	}
	if a := v.Ask("uninstall"); a.Code != 0 {
		v.t.Errorf("uninstall: exit code %d: %s%s", a.Code, a.Stderr, a.Stdout)
	}
	if err := os.Remove(filepath.Dir(v.Dir)); err != nil {
		v.t.Errorf("left on bpffs: %v", err)
		_ = os.RemoveAll(filepath.Dir(v.Dir))
	}
	if v.Engine == nil {
		return // other devices of the machine may carry programs of others
	}
	if with := v.Filtered(); len(with) > 0 {
		v.t.Errorf("XDP programs are left on %v", with)
	}
}

// AgentPid is the agent's process, 0 while none runs.
func (v *Vethwall) AgentPid() int { return v.agent.pid }

// Filtered are the names of the devices of the engine's host that carry an XDP program, whosever it is.
func (v *Vethwall) Filtered() []string {
	v.t.Helper()
	var names []string
	for _, l := range v.Links() {
		if l.XDP.Prog.ID != 0 {
			names = append(names, l.Name)
		}
	}
	return names
}

// Link is a device of the engine's host, as ip shows it.
type Link struct {
	Index  int      `json:"ifindex"`
	Name   string   `json:"ifname"`
	Flags  []string `json:"flags"`
	Master string   `json:"master"`
	XDP    struct {
		Prog struct {
			ID int `json:"id"`
		} `json:"prog"`
	} `json:"xdp"`
}

// Links are the devices of the engine's host.
func (v *Vethwall) Links() (links []Link) {
	v.t.Helper()
	out, err := v.Command("ip", "-j", "link").Output()
	if err == nil {
		err = json.Unmarshal(out, &links)
	}
	if err != nil {
		v.t.Errorf("ip -j link: %v", err)
	}
	return links
}

// logBuffer is written by a process and read by a test.
type logBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	heard func(string)
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard != nil {
		l.heard(string(p))
	}
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) reset(heard func(string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
	l.heard = heard
}

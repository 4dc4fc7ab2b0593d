package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/docker"
)

// netnsDir is where Docker keeps the namespaces of its containers, unless it was started with another exec-root.
const netnsDir = "/var/run/docker/netns"

// withEngine says whether this process and the engine are in the same namespace of a kind ("mnt", "net"): yes on the host, no
// in most containers. It is unknown to all but root, and where the engine is not reached through its own socket.
func withEngine(e *env, kind string) answer {
	path, isUnix := strings.CutPrefix(dockerHost(e), "unix://")
	if !isUnix {
		return unknown
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return unknown
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return unknown
	}
	var peer *unix.Ucred
	if raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return unknown
	}
	if peer.Pid == 0 {
		// The kernel has no number for it here: it is outside this pid namespace. Nobody who shares the other
		// namespaces but not this one is told apart, except that a container always has its own mounts.
		if kind == "mnt" {
			return no
		}
		return unknown
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", peer.Pid, kind))
	if err != nil {
		return unknown
	}
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	switch {
	case err != nil:
		return unknown
	case ours == theirs:
		return yes
	}
	return no
}

type answer int

const (
	unknown answer = iota
	no
	yes
)

func dockerHost(e *env) string {
	if host := e.getenv("DOCKER_HOST"); host != "" {
		return host
	}
	return "unix:///var/run/docker.sock"
}

// checkNetns looks whether the namespaces that Docker mounts from now on will be seen here. On the host they are, in a
// container only through a mount that takes part in propagation.
func checkNetns(_ context.Context, e *env) finding {
	onHost := withEngine(e, "mnt")
	if onHost == yes {
		return finding{good, "those of Docker are seen in " + netnsDir, ""}
	}
	bad := finding{warn, "not known whether those of Docker are seen in " + netnsDir, "run doctor as root where Docker runs"}
	if onHost == no {
		bad = finding{fail, "those of Docker are not seen in " + netnsDir, "run the container with -v " + netnsDir + ":" + netnsDir + ":rslave"}
	}
	dir, err := filepath.EvalSymlinks(netnsDir)
	if err != nil {
		return bad
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return bad
	}
	defer mounts.Close()
	if follows, err := followsHost(mounts, dir); err != nil || !follows {
		return bad
	}
	return finding{good, netnsDir + " follows the host's mounts", ""}
}

// followsHost says whether what is mounted below dir elsewhere shows up here: whether, in mountinfo(5), the mount that dir
// is on receives propagation (shared or slave) and is not the root, which in a container is the container's own.
func followsHost(mountinfo io.Reader, dir string) (bool, error) {
	best, follows := "", false
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 {
			continue
		}
		point := fields[4]
		if !strings.HasPrefix(dir+"/", strings.TrimSuffix(point, "/")+"/") || len(point) < len(best) {
			continue
		}
		best, follows = point, false
		for _, option := range fields[6:] {
			if option == "-" {
				break
			}
			follows = follows || strings.HasPrefix(option, "shared:") || strings.HasPrefix(option, "master:")
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read mountinfo: %w", err)
	}
	return follows && best != "/", nil
}

// checkHostNetwork looks whether this is the network where the host ends of Docker's veths are.
func checkHostNetwork(_ context.Context, e *env) finding {
	asHost := finding{fail, "this is not the network of the host", "run the container with --network host"}
	switch withEngine(e, "net") {
	case yes:
		return finding{good, "this is the network of the host", ""}
	case no:
		return asHost
	}
	// Every engine with bridge networks has a bridge here, and hardly any container has one of such a name.
	interfaces, err := net.Interfaces()
	if err != nil {
		return finding{warn, err.Error(), "look for Docker's bridges with ip link"}
	}
	for _, i := range interfaces {
		if i.Name == "docker0" || strings.HasPrefix(i.Name, "br-") {
			return finding{good, "bridge " + i.Name, ""}
		}
	}
	return finding{warn, "no bridge of Docker here", "start Docker; a container needs --network host"}
}

// checkDocker asks the engine about itself.
func checkDocker(ctx context.Context, _ *env) finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := docker.Connect(ctx)
	if err != nil {
		return finding{fail, err.Error(), ""} // says what to do itself
	}
	defer client.Close()
	info, err := client.Info(ctx)
	if err != nil {
		return finding{fail, err.Error(), "allow GET /info if a socket proxy stands in between"}
	}
	found := fmt.Sprintf("Docker %s, API %s", info.ServerVersion, info.APIVersion)
	if info.Rootless {
		return finding{fail, found + ", rootless", "its containers have no veth on this host: use an engine that runs as root"}
	}
	return finding{good, found, ""}
}

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker/dockertest"
)

func TestFollowsHost(t *testing.T) {
	const dir = "/run/docker/netns"
	root := "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
	overlay := "500 400 0:50 / / rw,relatime - overlay overlay rw\n"
	for _, tc := range []struct {
		name, mountinfo string
		want            bool
	}{
		{"nothing mounted", overlay, false},
		{"a shared root is no mount of the host's directory", root, false},
		{"rslave", overlay + "510 500 0:25 /docker/netns /run/docker/netns rw,nosuid master:5 - tmpfs tmpfs rw\n", true},
		{"rshared", overlay + "510 500 0:25 /docker/netns /run/docker/netns rw,nosuid shared:5 - tmpfs tmpfs rw\n", true},
		{"rprivate, Docker's default for -v", overlay + "510 500 0:25 /docker/netns /run/docker/netns rw,nosuid - tmpfs tmpfs rw\n", false},
		{"a directory above", overlay + "510 500 0:25 / /run rw,nosuid master:5 - tmpfs tmpfs rw\n", true},
		{"the deepest mount decides", overlay + "510 500 0:25 / /run rw,nosuid master:5 - tmpfs tmpfs rw\n511 510 0:26 / /run/docker rw - tmpfs tmpfs rw\n", false},
		{"the last of two on one point decides", overlay + "510 500 0:25 / /run/docker rw - tmpfs tmpfs rw\n511 510 0:26 / /run/docker rw master:3 - tmpfs tmpfs rw\n", true},
		{"a neighbour's name begins alike", overlay + "510 500 0:25 / /run/dock rw,nosuid master:5 - tmpfs tmpfs rw\n", false},
		{"master: as a file system's own option", overlay + "510 500 0:25 / /run/docker rw - tmpfs tmpfs rw,master:5\n", false},
	} {
		got, err := followsHost(strings.NewReader(tc.mountinfo), dir)
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	for _, tc := range []struct {
		text  string // "" for no file
		level level
		found string
	}{
		{"", good, "labels alone decide"},
		{"{}\n", good, "no floor, policies: 0"},
		{"# nothing\n", fail, ":1:1: a file without content"},
		{"floor: {xdp.drop: udp}\npolicies: [{pick: {name: a}, labels: {xdp.drop: udp}}]\n", good, "a floor, policies: 1"},
		{"floor: {xdp.drop: 443}\nhook: x\n", fail, ":1:19: a bare port"},
	} {
		if tc.text != "" {
			if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := checkConfig(path); got.level != tc.level || !strings.Contains(got.found, tc.found) || (got.todo == "") != (got.level == good) {
			t.Errorf("%q: %+v", tc.text, got)
		}
	}
}

// The containers of a rootless engine have no veth on the host.
func TestCheckDockerRootless(t *testing.T) {
	e := dockertest.New(t)
	t.Setenv("DOCKER_HOST", e.Host())
	for options, want := range map[string]level{`"name=seccomp"`: good, `"name=seccomp","name=rootless"`: fail} {
		e.Handle("/info", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"ServerVersion":"28.5.2","SecurityOptions":[` + options + `]}`))
		})
		if got := checkDocker(t.Context(), nil); got.level != want || (got.todo == "") != (want == good) {
			t.Errorf("%s: %+v", options, got)
		}
	}
}

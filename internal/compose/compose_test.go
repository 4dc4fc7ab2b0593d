package compose

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
)

func read(t *testing.T, yaml string) ([]Service, error) {
	t.Helper()
	root, err := yamltree.Parse("f", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	if !Is(root) {
		t.Fatalf("%q is not Compose's", yaml)
	}
	return Read(root, func(name string) string { return map[string]string{"PORT": "5432"}[name] })
}

func TestRead(t *testing.T) {
	services, err := read(t, `
x-common: &common {xdp.drop: udp, tier: front}
services:
  web:
    image: nginx
    labels:
      <<: *common
      xdp.drop: tcp
      xdp.enable: true
    cap_add: [cap_net_admin, NET_RAW]
    privileged: true
    network_mode: host
    ports: ["8080:80"]
  db:
    labels: ["xdp.drop=${PORT}/tcp", plain, "a=b=c", "cost=5$$"]
    build: {context: ., labels: {xdp.drop.image: udp}}
    deploy: {labels: {xdp.drop: udp}}
    ports: [{target: 5432}]
  plain: {build: ., expose: ["80"], ports: []}
`)
	if err != nil || len(services) != 3 {
		t.Fatalf("%+v, %v", services, err)
	}
	web, db := services[0], services[1]
	for _, s := range services {
		if len(s.Unread) > 0 {
			t.Errorf("%s: %v", s.Name, s.Unread[0])
		}
	}
	if got := Map(web.Labels); !maps.Equal(got, map[string]string{"xdp.drop": "tcp", "tier": "front", "xdp.enable": "true"}) {
		t.Errorf("%v", got)
	}
	if web.Line != 4 || !web.Privileged || web.NetworkMode != "host" || !slices.Equal(web.CapAdd, []string{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("%+v", web)
	}
	if got := Map(db.Labels); !maps.Equal(got, map[string]string{"xdp.drop": "5432/tcp", "plain": "", "a": "b=c", "cost": "5$"}) {
		t.Errorf("%v", got)
	}
	if !web.Published || !db.Published || services[2].Published {
		t.Errorf("published: %t, %t, %t", web.Published, db.Published, services[2].Published)
	}
	if len(db.Image) != 1 || len(db.Deploy) != 1 || db.Image[0].Key != "xdp.drop.image" {
		t.Errorf("%+v", db)
	}
}

func TestUnread(t *testing.T) {
	for yaml, want := range map[string]string{
		"services: {a: {extends: {service: b}}}":            "f:1:16: extends, which is not read here; " + resolve,
		"services: {a: {label_file: x}}":                    "f:1:16: label_file, which is not read here; " + resolve,
		"services:\n  a:\n    labels: [\"a=$NO\"]":          "f:3:14: a variable that is not set here: NO; set it, or " + resolve,
		"services: {a: {labels: {xdp.drop: '${NO}'}}}":      "f:1:35: a variable that is not set here: NO; set it, or " + resolve,
		"services: {a: {labels: {xdp.drop: [a]}}}":          "f:1:35: a list, expected a single value",
		"services: {a: {labels: b}}":                        "f:1:24: a single value, expected a mapping, or a list of KEY=VALUE",
		"services: {a: b}":                                  "f:1:15: a single value, expected a mapping",
		"include: [b.yaml]\nservices: {a: {image: b}}":      "f:1:1: include, which is not read here; " + resolve,
		"services: [a]":                                     "f:1:11: a list, expected a mapping of services",
		"services: {a: {labels: {xdp.drop: '${NO:-1}'}}}":   "",
		"services: {a: {label: {xdp.drop: udp}}}":           "f:1:16: a key that Compose does not have; write labels",
		"services: {a: {Labels: [xdp.drop=udp]}}":           "f:1:16: a key that Compose does not have; write labels",
		"services: {a: {build: {label: {xdp.drop: udp}}}}":  "f:1:24: a key that Compose does not have; write labels",
		"services:\n  a:\n    labels:\n    xdp.drop: udp\n": "f:4:5: a key that Compose does not have; write it under labels of a service",
		"services: {a: {xdp.enable: false}}":                "f:1:16: a key that Compose does not have; write it under labels of a service",
		"services: {a: {xpd.drop: udp}}":                    "f:1:16: a key that Compose does not have; write it under labels of a service",
		"services: {a: {xdp: {drop: udp}}}":                 "f:1:16: a key that Compose does not have; write it under labels of a service",
		"xdp.drop: udp\nservices: {a: {image: b}}":          "f:1:1: a key that Compose does not have; write it under labels of a service",
		"services: {a: {x-d.drop: udp, x-labels: {xdp.drop: udp}, expose: [80], labels: {label: a}, 80/tcp: a}}": "",
	} {
		services, err := read(t, yaml)
		got := ""
		if err != nil {
			got = err.Error()
		}
		for _, s := range services {
			for _, e := range s.Unread {
				got += e.Error()
			}
		}
		if got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", yaml, got, want)
		}
	}
}

func TestLabelPlaces(t *testing.T) {
	for yaml, want := range map[string]string{
		"services: {a: {labels: {xdp.drop: 'udp,443'}}}":     "1:40",
		"services: {a: {labels: [xdp.drop=udp, x=y]}}":       "1:37",
		"services: {a: {labels: {xdp.drop: 'u,${PORT}'}}}":   "1:35",
		"services:\n  a:\n    labels:\n    - xdp.drop=udp,1": "4:20",
	} {
		services, err := read(t, yaml)
		if err != nil {
			t.Fatal(err)
		}
		e := services[0].Labels[0].Wrong(&policy.LabelError{Key: "xdp.drop", Offset: 4})
		if got := fmt.Sprintf("%d:%d", e.Line, e.Column); got != want {
			t.Errorf("%s: %s, want %s", yaml, got, want)
		}
	}
}

func TestSubstitute(t *testing.T) {
	for in, want := range map[string][2]string{
		"plain": {"plain"}, "a$$b": {"a$b"}, "$A": {"1"}, "${A}x": {"1x"}, "$A$A": {"11"}, "$AB": {"", "AB"}, "${NO}": {"", "NO"},
		"${NO:-x}": {"x"}, "${NO-x}y": {"xy"}, "${A:-x}": {"1"}, "${NO:-}": {""}, "${NO:-${A}}z": {"1z"}, "${NO:-${NO2}}": {"", "NO2"},
		"${A:+x}": {"x"}, "${NO:+x}": {""}, "${NO:?why}": {"", "NO"}, "${A:?why}": {"1"}, "$": {"$"}, "$1": {"$1"}, "a$": {"a$"}, "${NO:-a": {"a"},
	} {
		out, unset := substitute(in, func(name string) string { return map[string]string{"A": "1"}[name] })
		if [2]string{out, unset} != want {
			t.Errorf("%s: %q, %q", in, out, unset)
		}
	}
}

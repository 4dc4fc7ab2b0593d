package agent

import (
	"maps"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
)

// parseConfig is a configuration, or with "" that of an agent without a file.
func parseConfig(t *testing.T, yaml string) config.Config {
	t.Helper()
	if yaml == "" {
		return config.Config{}
	}
	conf, err := config.Parse("config.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

const (
	floorMetadata = "floor: {xdp.drop: metadata}\n"
	pickWeb       = "policies:\n- {pick: {name: web}, labels: {xdp.drop: tcp}}\n"
	pickShop      = "policies:\n- {pick: {project: shop}, labels: {xdp.egress.allow: dns, xdp.mode: audit}}\n"
	replaceWeb    = "policies:\n- {pick: {name: web}, replace: true, labels: {xdp.drop: tcp}}\n"
	replaceShop   = "policies:\n- {pick: {project: shop}, replace: true, labels: {xdp.drop: tcp}}\n"
	freeWeb       = "policies:\n- {pick: {name: web}, replace: true, labels: {xdp.enable: false}}\n"
)

func TestConfigured(t *testing.T) {
	type labels = map[string]string
	shop := labels{"com.docker.compose.project": "shop"}
	shopUDP := labels{"com.docker.compose.project": "shop", "xdp.drop": "udp"}
	for _, tc := range []struct {
		name       string
		conf       string
		run, image labels
		unknown    bool // the image cannot be inspected
		want       string
		warning    string // part of the only one
		err        string // part of it
	}{
		{name: "a floor is for everybody", conf: floorMetadata, want: "floor: xdp.drop=metadata"},
		{name: "a floor beside labels", conf: floorMetadata, run: labels{"xdp.drop": "udp"}, want: "floor: xdp.drop=metadata; labels: xdp.drop=udp"},
		{name: "a floor holds where the labels are off", conf: floorMetadata, run: labels{"xdp.enable": "false", "xdp.drop": "?"}, want: "floor: xdp.drop=metadata"},
		{name: "a floor opens nothing", conf: "floor: {xdp.allow: all}", run: labels{"xdp.default": "drop"}, want: "floor: xdp.allow=all; labels: xdp.default=drop"},
		{name: "a floor does not excuse wrong labels", conf: floorMetadata, run: labels{"xdp.drop": "443"}, err: "bare port"},
		{name: "a floor that is off", conf: "floor: {xdp.enable: false, xdp.drop: udp}"},
		{name: "a policy is not for others", conf: "policies:\n- {pick: {name: db}, labels: {xdp.drop: tcp}}\n"},
		{name: "a policy beside labels", conf: pickWeb, run: labels{"xdp.drop": "udp"}, want: "config: xdp.drop=tcp; labels: xdp.drop=udp"},
		{name: "a policy holds where the labels are off", conf: pickWeb, run: labels{"xdp.enable": "false"}, want: "config: xdp.drop=tcp"},
		{name: "a policy is warned of", conf: "policies:\n- {pick: {name: web}, labels: {xdp.drop: private}}\n", want: "config: xdp.drop=private", warning: "reverse proxy"},
		{name: "a floor is not, for each container", conf: "floor: {xdp.drop: private}", want: "floor: xdp.drop=private"},
		{name: "all sources", conf: floorMetadata + pickWeb, run: labels{"xdp.drop": "udp"}, image: labels{"xdp.drop.image": "sctp"},
			want: "floor: xdp.drop=metadata; config: xdp.drop=tcp; labels: xdp.drop=udp; image: xdp.drop.image=sctp"},

		{name: "in the place of labels", conf: replaceWeb, run: labels{"xdp.drop": "udp"}, want: "config: xdp.drop=tcp"},
		{name: "in the place of wrong labels", conf: replaceWeb, run: labels{"xdp.drop": "443"}, want: "config: xdp.drop=tcp"},
		{name: "in the place of labels that are off", conf: replaceWeb, run: labels{"xdp.enable": "false"}, want: "config: xdp.drop=tcp"},
		{name: "not in the place of the floor and the image", conf: floorMetadata + replaceWeb, run: labels{"xdp.drop": "udp"}, image: labels{"xdp.drop.image": "sctp"},
			want: "floor: xdp.drop=metadata; config: xdp.drop=tcp; image: xdp.drop.image=sctp"},
		{name: "replaced labels switch the image not off", conf: replaceWeb, run: labels{"xdp.enable": "false"}, image: labels{"xdp.drop": "udp"},
			want: "config: xdp.drop=tcp; image: xdp.drop=udp"},
		{name: "labels switched off from here", conf: freeWeb, run: labels{"xdp.drop": "443"}},
		{name: "a floor holds then", conf: floorMetadata + freeWeb, run: labels{"xdp.drop": "udp"}, want: "floor: xdp.drop=metadata"},

		{name: "two policies", conf: pickWeb + "- {pick: {image: 'nginx:*'}, labels: {xdp.drop: udp}}\n",
			err: "2 policies of the configuration pick this container: the one in line 2, for {name: web} and the one in line 3, for {image: nginx:*}"},
		{name: "two policies, one of them off", conf: freeWeb + "- {pick: {image: 'nginx:*'}, labels: {xdp.drop: udp}}\n", err: "2 policies"},

		{name: "picked by Compose's labels", conf: replaceShop, run: shopUDP, want: "config: xdp.drop=tcp"},
		{name: "what the image carries picks only to close", conf: replaceShop, run: labels{"xdp.drop": "udp"}, image: shop, want: "config: xdp.drop=tcp; labels: xdp.drop=udp", warning: "are the image's, too"},
		{name: "what the image carries loosens nothing", conf: pickShop, image: shop, want: "config: xdp.egress.allow=dns", warning: "are the image's, too"},
		{name: "a name is surer than the image's labels", conf: replaceWeb + "- {pick: {project: shop}, labels: {xdp.drop: udp}}\n", image: shop, want: "config: xdp.drop=tcp"},
		{name: "also where the container repeats them", conf: replaceShop, run: shopUDP, image: shop, want: "config: xdp.drop=tcp; labels: xdp.drop=udp", warning: "are the image's, too"},
		{name: "another value is the container's", conf: replaceShop, run: shopUDP, image: labels{"com.docker.compose.project": "other"}, want: "config: xdp.drop=tcp"},
		{name: "an unknown image is picked to be closed", conf: pickShop, run: shop, unknown: true, want: "config: xdp.egress.allow=dns", warning: "only drop, allow, limit"},
		{name: "an unknown image replaces nothing", conf: replaceShop, run: shopUDP, unknown: true, want: "config: xdp.drop=tcp; image: xdp.drop=udp", warning: "picks a policy"},
		{name: "a name is nobody's to choose", conf: replaceWeb, unknown: true, run: shop, want: "config: xdp.drop=tcp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := labels{}
			maps.Copy(all, tc.image)
			maps.Copy(all, tc.run)
			c := docker.Container{Name: "web", Image: "nginx:1", Labels: all, ImageLabels: tc.image, ImageKnown: !tc.unknown}
			got, asks, warnings, err := Stack(c, parseConfig(t, tc.conf))
			if show(got) != tc.want || asks != (tc.want != "" || tc.err != "") {
				t.Errorf("stack %q, asks %t", show(got), asks)
			}
			if tc.warning == "" != (len(warnings) == 0) && !tc.unknown || tc.warning != "" && !strings.Contains(warnings[0], tc.warning) {
				t.Errorf("warnings %q", warnings)
			}
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Whatever an image says, a packet that the policy drops without it is dropped with it. Of an image that is not known
// that does not hold for allow: its list and the container's are one then (docs/labels.md).
func TestImageLoosensNothing(t *testing.T) {
	probes := []string{"53/udp@192.0.2.1", "443/tcp@192.0.2.1", "ping@192.0.2.1", "443/tcp@2001:db8::1", "80/tcp@169.254.169.254"}
	passes := func(stack policy.Stack, dir policy.Direction, probe string) bool {
		match, err := policy.ParseMatch(probe)
		if err != nil {
			t.Fatal(err)
		}
		x, err := policy.Groups{}.Resolve(stack).Explain(dir, match)
		if err != nil {
			t.Fatal(err)
		}
		return x.Reason == policy.Pass
	}
	confs := map[string]string{"none": "", "floor": floorMetadata, "picked": pickWeb, "replaced": replaceWeb, "both": floorMetadata + pickWeb}
	for name, yaml := range confs {
		conf := parseConfig(t, yaml)
		for _, image := range []map[string]string{
			{"xdp.mode": "audit"}, {"xdp.antispoof": "false"}, {"xdp.antispoof": "0.0.0.0/0"}, {"xdp.log": "none"}, {"xdp.hook": "tcx"},
			{"xdp.program": "pass.o"}, {"xdp.except": "all"}, {"xdp.egress.except": "all", "xdp.ingress.except": "all"},
			{"xdp.default": "allow"}, {"xdp.egress.default": "allow"}, {"xdp.enable": "false"}, {"xdp.enable": "no"}, {"xdp.allow": "all"},
			{"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
		} {
			run := map[string]string{"xdp.drop.udp": "udp", "xdp.ingress.allow": "443/tcp"}
			without, _, _, err := Stack(docker.Container{Name: "web", Labels: run, ImageKnown: true}, conf)
			if err != nil {
				t.Fatal(err)
			}
			all := maps.Clone(run)
			maps.Copy(all, image)
			for _, c := range []docker.Container{
				{Name: "web", Labels: all, ImageLabels: image, ImageKnown: true},
				{Name: "web", Labels: all},
			} {
				if image["xdp.allow"] != "" && !c.ImageKnown {
					continue
				}
				with, asks, _, err := Stack(c, conf)
				if !asks || err != nil && len(with) > 0 {
					t.Fatalf("%s, %v: asks %t, %v", name, image, asks, err)
				}
				if err != nil {
					continue // closed
				}
				for _, source := range with {
					if p := source.Policy; source.Origin == originImage && (p.Mode != policy.Enforce || p.AntispoofOff || len(p.Own) > 0 || p.Log != policy.LogDrops || p.Program != "") {
						t.Errorf("%s, %v: %s", name, image, p.Text())
					}
				}
				if got := Hook(with, conf); got != policy.HookAuto {
					t.Errorf("%s, %v: hook %s", name, image, got)
				}
				for _, dir := range []policy.Direction{policy.Egress, policy.Ingress} {
					for _, probe := range probes {
						if passes(with, dir, probe) && !passes(without, dir, probe) {
							t.Errorf("%s, image %v, image known %t: %s %s passes", name, image, c.ImageKnown, dir, probe)
						}
					}
				}
			}
		}
	}
}

func TestHook(t *testing.T) {
	for _, tc := range []struct {
		conf, label string
		want        policy.Hook
	}{
		{"", "", policy.HookAuto},
		{"", "native", policy.HookNative},
		{"hook: tcx", "", policy.HookTCX},
		{"hook: tcx", "auto", policy.HookTCX}, // auto is what a label says that says nothing
		{"hook: tcx", "native", policy.HookNative},
		{"floor: {xdp.hook: generic}", "native", policy.HookGeneric},
		{"hook: tcx\nfloor: {xdp.hook: generic}", "native", policy.HookGeneric},
		{"policies: [{pick: {name: web}, labels: {xdp.hook: native}}]", "tcx", policy.HookNative},
		{"floor: {xdp.hook: generic}\npolicies: [{pick: {name: web}, labels: {xdp.hook: native}}]", "tcx", policy.HookGeneric},
		{"policies: [{pick: {name: web}, replace: true, labels: {xdp.drop: udp}}]", "tcx", policy.HookAuto},
	} {
		c := docker.Container{Name: "web", ImageKnown: true, Labels: map[string]string{"xdp.drop": "udp"}}
		if tc.label != "" {
			c.Labels["xdp.hook"] = tc.label
		}
		conf := parseConfig(t, tc.conf)
		stack, _, _, err := Stack(c, conf)
		if got := Hook(stack, conf); err != nil || got != tc.want {
			t.Errorf("%q, label %q: %s, %v", tc.conf, tc.label, got, err)
		}
	}
}

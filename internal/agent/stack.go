package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
)

// What a container's labels may be at most, from all sources together: the bounds that policy.Parse
// sets each of them.
const (
	maxLabelText = 64 << 10
	maxPrefixes  = 16384
)

// The origins of what holds for a container, as users read them, from the top.
const (
	originFloor  = "floor"
	originConfig = "config"
	originLabels = "labels"
	originImage  = policy.OriginImage
)

// Stack turns the labels of one container, and what the agent's configuration says of it, into its policy.
//
// asks is false where nothing asks for a filter: no label, no floor and no policy that picks the container, or the
// container's own labels are switched off and nothing else is there; stack is empty then. The error says that
// two policies pick the container, or joins an error for each label that cannot be understood, most of them a
// *policy.LabelError, and those of the image say so; stack is empty then and asks is true, because the container
// has to be closed. warnings are one sentence each, in a fixed order.
func Stack(c docker.Container, conf config.Config) (stack policy.Stack, asks bool, warnings []string, err error) {
	imageLabels := c.ImageLabels
	if !c.ImageKnown {
		imageLabels = c.Labels
	}
	run, img := policy.SplitImage(c.Labels, imageLabels)
	stack, replace, warnings, err := configured(c, run, conf)
	if err != nil {
		return nil, true, nil, err
	}
	if replace {
		run = nil
	}
	labels, more, err := labelled(run, img, c.ImageKnown)
	stack, warnings = append(stack, labels...), append(warnings, more...)
	if err := errors.Join(err, bounded(run, img, stack)); err != nil {
		return nil, true, warnings, err
	}
	if c.Published && slices.ContainsFunc(stack, namesOpeners) {
		warnings = append(warnings, "a rule says who may open connections to the container, and a port of it is published: who comes by docker-proxy, from this host or over IPv6 to a network without it, comes from the network's gateway, which is host and not who he is")
	}
	return stack, len(stack) > 0, append(warnings, vain(stack)...), nil
}

// vain are the settings of lower sources that the first one decides.
func vain(stack policy.Stack) (out []string) {
	for _, s := range stack[min(1, len(stack)):] {
		if s.Policy.AntispoofOff || len(s.Policy.Own) > 0 {
			out = append(out, fmt.Sprintf("xdp.antispoof of %s has no effect: %s stands above it and decides; write it there", s.Origin, stack[0].Origin))
		}
	}
	return out
}

// namesOpeners reports whether a rule of s judges by who opens conversations towards the container.
func namesOpeners(s policy.Source) bool {
	return slices.ContainsFunc(s.Policy.Rules, func(r policy.Rule) bool {
		return r.In[policy.Ingress] && r.Verb != policy.Limit && !r.Match.Peers.Any()
	})
}

// configured are the sources that the configuration has for c, whose labels of docker run are run. replace says that
// they stand in the place of those.
func configured(c docker.Container, run map[string]string, conf config.Config) (stack policy.Stack, replace bool, warnings []string, err error) {
	if conf.Floor != nil {
		stack = append(stack, policy.Source{Origin: originFloor, Policy: *conf.Floor})
	}
	if !c.ImageKnown {
		run = nil // nobody can tell which labels are not the image's
	}
	p, sure, err := pick(c, run, conf.Policies)
	if err != nil || p == nil {
		return stack, false, nil, err
	}
	labels, replace := p.Labels, p.Replace
	if !sure {
		// Compose gives the images that it builds the labels that it gives their containers, and any image may carry
		// them to be picked. What only closes does no harm then.
		warnings, replace = append(warnings, "the labels by which the configuration picks a policy are the image's, too, or may be: of that policy only drop, allow, limit and default=drop hold, beside the container's own labels; pick the container by its name or image"), false
		if labels != nil {
			closing := policy.FromImage(*labels)
			labels = &closing
		}
	}
	if labels != nil {
		stack = append(stack, policy.Source{Origin: originConfig, Policy: *labels})
		warnings = append(warnings, policy.Warnings(*labels)...)
	}
	return stack, replace, warnings, nil
}

// pick is the policy that picks c, nil for none. sure says that it does by what is no label of the image's; run are those
// labels. Two that do are an error, and so are two of which neither is sure.
func pick(c docker.Container, run map[string]string, all []config.Policy) (picked *config.Policy, sure bool, err error) {
	var certain, perhaps []config.Policy
	for _, p := range all {
		switch {
		case p.Pick.Matches(c.Name, c.Image, run):
			certain = append(certain, p)
		case p.Pick.Matches(c.Name, c.Image, c.Labels):
			perhaps = append(perhaps, p)
		}
	}
	found := certain
	if len(certain) == 0 {
		found = perhaps
	}
	switch len(found) {
	case 0:
		return nil, false, nil
	case 1:
		return &found[0], len(certain) > 0, nil
	}
	var names []string
	for _, p := range found {
		names = append(names, p.String())
	}
	return nil, false, fmt.Errorf("%d policies of the configuration pick this container: %s; let one of them pick it", len(found), strings.Join(names, " and "))
}

// labelled are the sources that the labels of docker run and of the image are. Where the image is not known all count
// as the image's, because nobody can tell.
func labelled(run, img map[string]string, imageKnown bool) (stack policy.Stack, warnings []string, err error) {
	own, ownAsks, ownErr := policy.Parse(run)
	if _, switched := run["xdp.enable"]; switched && !ownAsks {
		return nil, nil, nil
	}
	image, imageAsks, ignored, imageErr := parseImage(img)
	if imageAsks && !imageKnown {
		warnings = append(warnings, "the image cannot be inspected, so every label counts as the image's: only drop, allow, limit and default=drop hold; allow GET /images if a socket proxy stands in between")
	}
	if len(ignored) > 0 {
		warnings = append(warnings, "an image is trusted only with drop, allow, limit and default=drop; of its labels these do not count: "+
			strings.Join(ignored, ", ")+"; give them to the container, in another spelling where the image has the same")
	}
	if ownAsks {
		stack = append(stack, policy.Source{Origin: originLabels, Policy: own})
	}
	closes := len(image.Rules) > 0 || image.Default != [2]policy.Default{}
	if imageAsks && (closes || !ownAsks) {
		stack = append(stack, policy.Source{Origin: originImage, Policy: image})
	}
	if err := errors.Join(ownErr, imageErr); err != nil {
		return nil, warnings, err
	}
	for _, source := range stack {
		warnings = append(warnings, policy.Warnings(source.Policy)...)
	}
	return stack, warnings, nil
}

// Hook is where what a container with this policy sends is judged: as the topmost source says that names a hook, else
// as the configuration does.
func Hook(stack policy.Stack, conf config.Config) policy.Hook {
	for _, source := range stack {
		if source.Policy.Hook != policy.HookAuto {
			return source.Policy.Hook
		}
	}
	return conf.Hook
}

// parseImage reads the labels of an image. ignored are the keys of those that are understood and do not
// count. xdp.enable=false is one of them: an image switches nothing off.
func parseImage(labels map[string]string) (p policy.Policy, asks bool, ignored []string, err error) {
	p, asks, err = policy.Parse(labels)
	if _, switched := labels["xdp.enable"]; switched && !asks {
		labels = maps.Clone(labels)
		delete(labels, "xdp.enable")
		if p, asks, err = policy.Parse(labels); asks {
			ignored = append(ignored, "xdp.enable")
		}
	}
	if err != nil {
		return policy.Policy{}, asks, nil, fromImage(err)
	}
	kept := policy.FromImage(p)
	counts := kept.Labels()
	for _, key := range slices.Sorted(maps.Keys(p.Labels())) {
		if _, ok := counts[key]; !ok {
			ignored = append(ignored, key)
		}
	}
	return kept, asks, ignored, nil
}

// fromImage says of each error that err joins that it is one of the image.
func fromImage(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("image label %w", err)
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, fmt.Errorf("image label %w", e))
	}
	return errors.Join(out...)
}

// bounded holds the sources together to what each of them is held to by itself.
func bounded(run, img map[string]string, stack policy.Stack) error {
	text := 0
	for _, labels := range []map[string]string{run, img} {
		for key, value := range labels {
			if strings.HasPrefix(key, "xdp.") {
				text += len(key) + len(value)
			}
		}
	}
	prefixes := 0
	count := func(ranges []netipx.IPRange) {
		for _, r := range ranges {
			prefixes += len(r.Prefixes())
		}
	}
	for _, source := range stack {
		for _, r := range source.Policy.Rules {
			count(r.Match.Peers.Ranges)
		}
		count(source.Policy.Own)
	}
	const together = "the labels of the container, of its image and of the configuration have together more than %d %s; leave some out"
	switch {
	case len(stack) < 2:
		return nil // policy.Parse has looked
	case text > maxLabelText:
		return fmt.Errorf(together, maxLabelText, "bytes")
	case prefixes > maxPrefixes:
		return fmt.Errorf(together, maxPrefixes, "prefixes")
	}
	return nil
}

package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// What a container's labels may be at most, from all sources together: the bounds that policy.Parse
// sets each of them.
const (
	maxLabelText = 64 << 10
	maxPrefixes  = 16384
)

// The origins of what labels say, as users read them.
const (
	originLabels = "labels"
	originImage  = "image"
)

// Stack turns the labels of one container into its policy. labels are all that it carries, those of its
// image among them; imageLabels are the image's alone and mean something only where imageKnown is true.
// Else every label counts as the image's, because nobody can tell.
//
// asks is false where no label asks for a filter, or the container's own labels switch it off; stack is
// empty then. The error joins an error for each label that cannot be understood, most of them a
// *policy.LabelError, and those of the image say so; stack is empty then and asks is true, because the
// container has to be closed. warnings are one sentence each, in a fixed order.
func Stack(labels, imageLabels map[string]string, imageKnown bool) (stack policy.Stack, asks bool, warnings []string, err error) {
	if !imageKnown {
		imageLabels = labels
	}
	run, img := policy.SplitImage(labels, imageLabels)
	own, ownAsks, ownErr := policy.Parse(run)
	if ownErr == nil {
		ownErr = antispoofed(run, own)
	}
	if _, switched := run["xdp.enable"]; switched && !ownAsks {
		return nil, false, nil, nil
	}
	image, imageAsks, ignored, imageErr := parseImage(img)
	if !ownAsks && !imageAsks {
		return nil, false, nil, nil
	}
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
	if imageAsks && (len(image.Rules) > 0 || !ownAsks) {
		stack = append(stack, policy.Source{Origin: originImage, Policy: image})
	}
	if err := errors.Join(ownErr, imageErr, bounded(labels, stack)); err != nil {
		return nil, true, warnings, err
	}
	for _, source := range stack {
		warnings = append(warnings, policy.Warnings(source.Policy)...)
	}
	return stack, true, warnings, nil
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

// antispoofed refuses a label that asks for antispoof in so many words, which this version cannot enforce.
// Of a policy nobody can tell any more, because antispoof is the default.
func antispoofed(labels map[string]string, p policy.Policy) error {
	value, asks := labels["xdp.antispoof"]
	if !asks || p.AntispoofOff || len(p.Own) > 0 {
		return nil
	}
	return &policy.LabelError{Key: "xdp.antispoof", Value: value, Problem: "understood, but this version cannot enforce it", Hint: "remove the label"}
}

// bounded holds the sources together to what each of them is held to by itself.
func bounded(labels map[string]string, stack policy.Stack) error {
	text := 0
	for key, value := range labels {
		if strings.HasPrefix(key, "xdp.") {
			text += len(key) + len(value)
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
	const together = "the labels of the container and of its image together have more than %d %s; leave some out"
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

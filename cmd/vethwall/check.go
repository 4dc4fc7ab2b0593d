package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func checkCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [-l KEY=VALUE]... | CONTAINER",
		Short: "Say what labels mean, or what is wrong with them",
		Long: "Say in sentences what the labels given with -l, or those of a container and its image, mean to this version.\n" +
			"Changes nothing and needs no privileges but Docker's socket for a container. Exit code 1 where they are wrong.",
		Example:           "  vethwall check -l xdp.drop=udp -l xdp.egress.drop=25/tcp\n  vethwall check web",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	given := cmd.Flags().StringArrayP("label", "l", nil, "a label, as docker run takes it; may be repeated, the last of equal keys counts")
	out := outputFlag(cmd)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) > 1:
			return fmt.Errorf("unexpected argument %q, want one container", args[1])
		case len(args) == 1 && len(*given) > 0:
			return errors.New("want a container or labels, not both")
		case len(args) == 0 && len(*given) == 0:
			return errors.New("want a container, or labels with -l")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		labels, err := givenLabels(*given)
		if err != nil {
			return usageError(cmd, err)
		}
		c := docker.Container{Labels: labels, ImageKnown: true}
		if len(args) == 1 {
			if c, err = inspect(cmd.Context(), args[0]); err != nil {
				return err
			}
		}
		r := judgeLabels(c)
		if r.asks {
			r.Warnings = append(r.Warnings, standsInTheWay(c)...)
		}
		show := reportTable
		if *out == jsonDoc {
			show = func(e *env, r report) error { return e.printJSON(r) }
		}
		if err := show(e, r); err != nil {
			return err
		}
		if !r.Valid {
			return answerNo("")
		}
		return nil
	}
	return cmd
}

// givenLabels reads labels as docker run does: without a = the value is empty, and the last of equal keys counts.
func givenLabels(given []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, label := range given {
		key, value, _ := strings.Cut(label, "=")
		if strings.TrimSpace(key) == "" {
			return nil, fmt.Errorf("%q is no label, want -l KEY=VALUE", label)
		}
		labels[key] = value
	}
	return labels, nil
}

// standsInTheWay says what keeps a container from being held to any policy.
func standsInTheWay(c docker.Container) []string {
	var out []string
	for _, i := range agent.Obstacles(c) {
		out = append(out, i.Error)
	}
	if why := agent.Loophole(c); why != "" {
		out = append(out, why)
	}
	return out
}

// report is the answer of check, and its JSON.
type report struct {
	Schema    int            `json:"schema"`
	Valid     bool           `json:"valid"`
	Policy    string         `json:"policy"` // of all sources, joined by "; "
	Sources   []sourceReport `json:"sources"`
	Sentences []string       `json:"sentences"`
	Errors    []errorReport  `json:"errors"`
	Warnings  []string       `json:"warnings"`

	asks bool
}

type sourceReport struct {
	Origin string `json:"origin"`
	Policy string `json:"policy"`
}

// errorReport is a policy.LabelError, or an error that has Text alone; its offset is -1 then.
type errorReport struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Offset   int    `json:"offset"`
	Problem  string `json:"problem"`
	Expected string `json:"expected"`
	Hint     string `json:"hint"`
	Text     string `json:"text"`

	whose string // "image label: ", or nothing
}

// judgeLabels makes of a container's labels what the agent makes of them.
func judgeLabels(c docker.Container) report {
	r := report{Schema: 1, Sources: []sourceReport{}, Sentences: []string{}, Errors: []errorReport{}, Warnings: []string{}}
	stack, asks, warnings, err := agent.Stack(c, config.Config{})
	r.asks = asks
	r.Warnings = append(r.Warnings, warnings...)
	var texts []string
	for _, source := range stack {
		r.Sources = append(r.Sources, sourceReport{source.Origin, source.Policy.Text()})
		texts = append(texts, source.Policy.Text())
	}
	r.Policy = strings.Join(texts, "; ")
	if err == nil {
		_, err = xdp.Compile(policy.Groups{}.Resolve(stack)) // who is in the groups now plays no part
	}
	for _, e := range unjoin(err) {
		r.Errors = append(r.Errors, reportError(e))
	}
	r.Valid = err == nil
	_, switched := c.Labels["xdp.enable"]
	switch {
	case err != nil:
		r.Sentences = []string{"A container with these labels is closed: nothing passes."}
	case asks:
		r.Sentences = sentences(stack)
	case switched:
		r.Sentences = []string{"xdp.enable is off: vethwall leaves this container alone."}
	default:
		r.Sentences = []string{"No xdp label: vethwall leaves this container alone."}
	}
	return r
}

// sentences say what this version makes of s.
func sentences(s policy.Stack) []string {
	out := s.Sentences()
	for _, source := range s {
		switch hook := source.Policy.Hook; hook {
		case policy.HookAuto:
		case policy.HookTCX:
			out = append(out, "What it sends is judged at tc ingress.")
		default:
			out = append(out, "What it sends is judged by "+hook.String()+" XDP.")
		}
	}
	return append(out,
		"ARP, neighbour discovery and MLD always pass; an ICMP error passes where the packet that it quotes would.",
		"What cannot be read, such as a later fragment, is dropped if a rule could have dropped it.",
	)
}

// unjoin takes apart what errors.Join has joined, however often.
func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, unjoin(e)...)
		}
		return out
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func reportError(err error) errorReport {
	r := errorReport{Offset: -1, Text: err.Error()}
	var wrong *policy.LabelError
	if errors.As(err, &wrong) {
		if whose, ok := strings.CutSuffix(r.Text, " "+wrong.Error()); ok {
			r.whose = whose + ": "
		}
		r.Key, r.Value, r.Offset = wrong.Key, wrong.Value, wrong.Offset
		r.Problem, r.Expected, r.Hint = wrong.Problem, wrong.Expected, wrong.Hint
	}
	return r
}

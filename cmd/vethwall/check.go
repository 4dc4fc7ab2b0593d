package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func checkCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [-l KEY=VALUE]... | -f FILE | CONTAINER",
		Short: "Say what labels mean, or what is wrong with them",
		Long: `Say in sentences what labels mean to this version: those given with -l, those of a container and its image
with what the agent's configuration says of it, or those in a file. A file is the agent's configuration, or
Compose's if it has services; - is standard input. Changes nothing and needs no privileges but Docker's
socket for a container. Exit code 1 where labels are wrong.`,
		Example: `  vethwall check -l xdp.drop=udp -l xdp.egress.drop=25/tcp
  vethwall check web
  vethwall check -f /etc/vethwall/config.yaml
  docker compose config | vethwall check -f -`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	c := checker{env: e, conf: newConfigFlag(cmd), programs: programsFlag(cmd), out: outputFlag(cmd)}
	given := cmd.Flags().StringArrayP("label", "l", nil, "a label, as docker run takes it; may be repeated, the last of equal keys counts")
	file := cmd.Flags().StringP("file", "f", "", "a configuration or a Compose file")
	cmd.Args = func(_ *cobra.Command, args []string) error {
		return c.oneThing(args, len(*given) > 0, cmd.Flags().Changed("file"))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 1:
			return c.container(cmd.Context(), args[0])
		case len(*given) > 0:
			return c.labels(*given)
		}
		return c.file(*file)
	}
	return cmd
}

// oneThing says what is wrong with a command line that does not name just one thing to check.
func (c checker) oneThing(args []string, labels, file bool) error {
	named := 0
	for _, is := range []bool{len(args) > 0, labels, file} {
		if is {
			named++
		}
	}
	switch {
	case len(args) > 1:
		return fmt.Errorf("unexpected argument %q, want one container", args[1])
	case named == 0:
		return errors.New("want a container, labels with -l, or a file with -f")
	case named > 1:
		return errors.New("want a container, labels or a file, and not more than one of these")
	case file && c.conf.named():
		return errors.New("--config plays no part in the check of a file")
	}
	return nil
}

// checker is how the command was called.
type checker struct {
	*env
	conf     configFlag
	programs *string
	out      *format
}

func (c checker) container(ctx context.Context, name string) error {
	conf, err := c.readConfig(c.conf, false)
	if err != nil {
		return err
	}
	box, err := inspect(ctx, name)
	if err != nil {
		return err
	}
	return c.show(box, conf)
}

// labels needs no configuration, and takes one that is named.
func (c checker) labels(given []string) error {
	labels, err := givenLabels(given)
	if err != nil {
		return usageError(c.conf.cmd, err)
	}
	conf, err := c.readConfig(c.conf, true)
	if err != nil {
		return err
	}
	return c.show(docker.Container{Labels: labels, ImageKnown: true}, conf)
}

// show answers for one container.
func (c checker) show(box docker.Container, conf config.Config) error {
	r := report{Schema: 1, judgement: judge(box, conf, *c.programs)}
	return c.say(r, r.table(c.env), r.Valid)
}

// say prints an answer, as JSON or as text.
func (c checker) say(doc any, text string, valid bool) error {
	var err error
	if *c.out == jsonDoc {
		err = c.printJSON(doc)
	} else {
		_, err = io.WriteString(c.stdout, text)
	}
	if err == nil && !valid {
		return answerNo("")
	}
	return err
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
func standsInTheWay(c docker.Container, stack policy.Stack) []string {
	var out []string
	for _, i := range agent.Obstacles(c) {
		out = append(out, i.Error)
	}
	if why := agent.Loophole(c, stack); why != "" {
		out = append(out, why)
	}
	return out
}

// report is the answer of check, and its JSON.
type report struct {
	Schema int `json:"schema"`
	judgement
}

// judgement is what labels mean.
type judgement struct {
	Valid     bool           `json:"valid"`
	Policy    string         `json:"policy"` // of all sources, joined by "; "
	Sources   []sourceReport `json:"sources"`
	Sentences []string       `json:"sentences"`
	Errors    []errorReport  `json:"errors"`
	Warnings  []string       `json:"warnings"`
}

type sourceReport struct {
	Origin string `json:"origin"`
	Policy string `json:"policy"`
}

// errorReport is a policy.LabelError, or an error that has Text alone; its offset is -1 then. Line and column count
// from 1 and are there for an error in a file.
type errorReport struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Offset   int    `json:"offset"`
	Problem  string `json:"problem"`
	Expected string `json:"expected"`
	Hint     string `json:"hint"`
	Text     string `json:"text"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`

	whose string          // "image label: ", or nothing
	at    *yamltree.Error // where File is not ""
}

// judge makes of a container's labels, the configuration and the operator's programs what the agent makes of them.
func judge(c docker.Container, conf config.Config, programs string) judgement {
	stack, asks, warnings, err := agent.Stack(c, conf)
	warning, programErr := checkProgram(programs, agent.Program(stack), c.ID != "")
	j := judgeStack(stack, errors.Join(err, programErr))
	if warning != "" {
		warnings = append(warnings, warning)
	}
	j.Warnings = append(j.Warnings, warnings...)
	if asks {
		j.Warnings = append(j.Warnings, standsInTheWay(c, stack)...)
	}
	_, switched := c.Labels["xdp.enable"]
	switch {
	case !j.Valid:
		j.Sentences = []string{"A container with these labels is closed: nothing passes."}
	case asks:
		j.Sentences = sentences(stack, agent.Hook(stack, conf))
	case conf.Floor != nil || len(conf.Policies) > 0:
		j.Sentences = []string{"Neither labels nor the agent's configuration ask for a filter: vethwall leaves this container alone."}
	case switched:
		j.Sentences = []string{"xdp.enable is off: vethwall leaves this container alone."}
	default:
		j.Sentences = []string{"No xdp label: vethwall leaves this container alone."}
	}
	return j
}

// judgeStack says all but sentences of a stack, and of the error that came in its place.
func judgeStack(stack policy.Stack, err error) judgement {
	j := judgement{Sources: []sourceReport{}, Sentences: []string{}, Errors: []errorReport{}, Warnings: []string{}}
	var texts []string
	for _, source := range stack {
		j.Sources = append(j.Sources, sourceReport{source.Origin, source.Policy.Text()})
		texts = append(texts, source.Policy.Text())
	}
	j.Policy = strings.Join(texts, "; ")
	if err == nil {
		_, err = xdp.Compile(policy.Groups{}.Resolve(stack)) // who is in the groups now plays no part
	}
	for _, e := range unjoin(err) {
		j.Errors = append(j.Errors, reportError(e))
	}
	j.Valid = err == nil
	return j
}

// sentences say what this version makes of s, with what it sends judged at hook.
func sentences(s policy.Stack, hook policy.Hook) []string {
	out := s.Sentences()
	program := agent.Program(s)
	switch {
	case program != "":
		out = append(out, programSentence(program, hook))
	case hook == policy.HookAuto:
	case hook == policy.HookTCX:
		out = append(out, "What it sends is judged at tc ingress.")
	default:
		out = append(out, "What it sends is judged by "+hook.String()+" XDP.")
	}
	return append(out,
		"No rule applies to ARP, neighbour discovery and MLD; an ICMP error passes where the packet that it quotes would.",
		"What cannot be read, such as a later fragment, is dropped if a rule could have dropped it.",
	)
}

// unjoin takes apart what errors.Join has joined, however often.
func unjoin(err error) []error {
	if parts, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range parts.Unwrap() {
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
	if errors.As(err, &r.at) {
		r.File, r.Line, r.Column = r.at.File, r.at.Line, r.at.Column
		r.Problem, r.Expected, r.Hint = r.at.Problem, r.at.Expected, r.at.Hint
		return r
	}
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

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
)

func explainCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain CONTAINER | -l KEY=VALUE... egress|ingress WHAT@ADDRESS",
		Short: "Say whether a conversation may be opened, and which rule says so; exit 1 if not",
		Long: `Judges one conversation by the labels of a container and the agent's configuration, or by labels given with
-l and only a configuration that is named: egress ones are opened by the container, ingress ones towards
it. Ports are those that are opened, and the container's own, not published ones. With -l groups whose
addresses only a host knows hold nobody.`,
		Example: "  vethwall explain web egress 443/tcp@192.0.2.1\n  vethwall explain -l xdp.ingress.drop=22/tcp ingress 22/tcp@192.0.2.1",
	}
	given := cmd.Flags().StringArrayP("label", "l", nil, "a label, as docker run takes it; may be repeated, the last of equal keys counts")
	out, file := outputFlag(cmd), newConfigFlag(cmd)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		want := []string{"CONTAINER", "egress or ingress", "WHAT@ADDRESS"}
		if len(*given) > 0 {
			want = want[1:]
		}
		return exactArgs(want...)(nil, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asked := args[len(args)-1]
		dir, err := direction(args[len(args)-2])
		if err != nil {
			return usageError(cmd, err)
		}
		match, err := policy.ParseMatch(asked)
		if err != nil {
			return usageError(cmd, err)
		}
		conf, err := e.readConfig(file, len(*given) > 0)
		if err != nil {
			return err
		}
		stack, err := stackOf(cmd.Context(), args[0], *given, conf)
		if err != nil {
			return err
		}
		x, err := stack.Explain(dir, match)
		if err != nil {
			return usageError(cmd, err)
		}
		sentence := x.Sentence(dir, asked)
		if program := agent.Program(stack); program != "" {
			sentence += " The program " + program + " comes first on what it sends, and what that drops is not known here."
		}
		return e.showExplanation(x, clean(sentence), *out)
	}
	return cmd
}

func direction(s string) (policy.Direction, error) {
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is no direction, want egress or ingress", s)
}

// stackOf is that of the labels that are given, else of the container.
func stackOf(ctx context.Context, container string, given []string, conf config.Config) (policy.Stack, error) {
	if len(given) > 0 {
		return givenStack(given, conf)
	}
	return containerStack(ctx, container, conf)
}

// givenStack is what labels make where there is no host to tell what groups hold.
func givenStack(given []string, conf config.Config) (policy.Stack, error) {
	labels, err := givenLabels(given)
	if err != nil {
		return nil, err
	}
	stack, _, _, err := agent.Stack(docker.Container{Labels: labels, ImageKnown: true}, conf)
	if err != nil {
		return nil, answerNo("the labels close the container: " + agent.OneLine(err))
	}
	return policy.Groups{}.Resolve(stack), nil
}

// containerStack is what the labels of a container and the configuration make, with what groups hold now.
func containerStack(ctx context.Context, name string, conf config.Config) (policy.Stack, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	d, err := docker.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	c, err := inspectWith(ctx, d, name)
	if err != nil {
		return nil, err
	}
	stack, asks, _, err := agent.Stack(c, conf)
	if err != nil {
		return nil, answerNo(fmt.Sprintf("container %s is closed: %s", name, agent.OneLine(err)))
	}
	if !asks {
		return nil, errors.New("neither labels nor the agent's configuration ask for a filter: everything passes")
	}
	groups, err := agent.GroupsOf(ctx, d, c, conf)
	if err != nil {
		return nil, err
	}
	return groups.Resolve(stack), nil
}

func (e *env) showExplanation(x policy.Explanation, sentence string, f format) error {
	var err error
	if f == jsonDoc {
		err = e.printJSON(struct {
			Schema   int      `json:"schema"`
			Passes   bool     `json:"passes"`
			Reason   string   `json:"reason"`
			Origin   string   `json:"origin"`
			Rule     string   `json:"rule"`
			Audited  bool     `json:"audited"`
			Limits   []string `json:"limits"`
			Sentence string   `json:"sentence"`
		}{1, x.Reason == policy.Pass || x.Audited, x.Reason.String(), x.Origin, x.Rule, x.Audited, append([]string{}, x.Limits...), sentence})
	} else {
		_, err = fmt.Fprintln(e.stdout, sentence)
	}
	if err == nil && x.Reason != policy.Pass && !x.Audited {
		return answerNo("")
	}
	return err
}

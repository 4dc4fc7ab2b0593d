package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/internal/config"
)

// check is one thing that has to be so on a host that enforces.
type check struct {
	name string
	look func(context.Context, *env) finding
}

// checks is what doctor looks at, in the order in which it makes sense to mend.
var checks = []check{
	{"privileges", checkPrivileges},
	{"kernel", checkKernel},
	{"XDP link", checkXDP},
	{"tcx link", checkTCX},
	{"first packets", checkHold},
	{"first queries", checkAskers},
	{"checksums", checkChecksums},
	{"JIT", checkJIT},
	{"bpffs", checkBPFFS},
	{"Docker", checkDocker},
	{"network namespaces", checkNetns},
	{"host network", checkHostNetwork},
	{"configuration", func(context.Context, *env) finding { return checkConfig(config.DefaultPath) }},
}

// level says whether a finding stands in the way of enforcement.
type level string

const (
	good level = "ok"
	warn level = "warn" // enforcement works, with what the finding says
	fail level = "FAIL" // nothing can be enforced
)

// finding is the outcome of a check. todo says what to do about it and is empty for good.
type finding struct {
	level level
	found string
	todo  string
}

func doctorCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Is this host able to enforce: kernel, mounts, capabilities, Docker",
		Long: "Is this host able to enforce? Looks at the kernel, mounts, capabilities and Docker, says what to mend,\n" +
			"and changes nothing. Exit code 1 where something stands in the way.",
		Args: noArgs,
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		findings := make([]finding, len(checks))
		able := true
		for i, c := range checks {
			findings[i] = c.look(cmd.Context(), e)
			able = able && findings[i].level != fail
		}
		show := doctorTable
		if *out == jsonDoc {
			show = doctorJSON
		}
		if err := show(e, findings, able); err != nil {
			return err
		}
		if !able {
			return answerNo("")
		}
		return nil
	}
	return cmd
}

func doctorTable(e *env, findings []finding, able bool) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	paint := map[level]colour{good: green, warn: yellow, fail: red}
	fmt.Fprintf(w, "CHECK\t%s\tFOUND\n", e.paint(plain, "STATE"))
	for i, f := range findings {
		what := f.found
		if f.todo != "" {
			what += ": " + f.todo
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", checks[i].name, e.paint(paint[f.level], string(f.level)), clean(what))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	conclusion := "This host can enforce."
	if !able {
		conclusion = "This host cannot enforce until each FAIL is mended."
	}
	_, err := fmt.Fprintln(e.stdout, conclusion)
	return err
}

func doctorJSON(e *env, findings []finding, able bool) error {
	type jsonCheck struct {
		Check string `json:"check"`
		State string `json:"state"`
		Found string `json:"found"`
		Todo  string `json:"todo"`
	}
	doc := struct {
		Schema int         `json:"schema"`
		Able   bool        `json:"able"`
		Checks []jsonCheck `json:"checks"`
	}{Schema: 1, Able: able}
	for i, f := range findings {
		doc.Checks = append(doc.Checks, jsonCheck{checks[i].name, strings.ToLower(string(f.level)), f.found, f.todo})
	}
	return e.printJSON(doc)
}

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/compose"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
)

// fileReport is the answer of check -f, and its JSON.
type fileReport struct {
	Schema int    `json:"schema"`
	File   string `json:"file"`
	Kind   string `json:"kind"` // "configuration" or "compose"
	Valid  bool   `json:"valid"`
	// Parts are floor and policies of a configuration without mistakes, or the services of Compose.
	Parts     []partReport  `json:"parts"`
	Sentences []string      `json:"sentences"`
	Errors    []errorReport `json:"errors"` // those of no part
	Warnings  []string      `json:"warnings"`
}

type partReport struct {
	Name string `json:"name"`
	Line int    `json:"line,omitempty"` // where it begins
	judgement
}

func (c checker) file(path string) error {
	name, text, err := readInput(path)
	if err != nil {
		return err
	}
	r := fileReport{Schema: 1, File: name, Kind: "configuration", Parts: []partReport{}, Sentences: []string{}, Errors: []errorReport{}, Warnings: []string{}}
	root, err := yamltree.Parse(name, text)
	switch {
	case err != nil:
		r.refuse(err)
	case compose.Is(root):
		r.Kind = "compose"
		r.compose(root, c.getenv, path, *c.programs)
	default:
		r.configuration(root, path, *c.programs)
	}
	r.Valid = len(r.Errors) == 0 && !slices.ContainsFunc(r.Parts, func(p partReport) bool { return !p.Valid })
	return c.say(r, r.table(c.env), r.Valid)
}

// readInput reads a file, or standard input for -.
func readInput(path string) (name string, text []byte, err error) {
	name = path
	if path == "-" {
		name, path = "<stdin>", "/dev/stdin"
	}
	text, err = os.ReadFile(path)
	return name, text, err
}

// refuse takes in what is wrong with the file as a whole.
func (r *fileReport) refuse(err error) {
	for _, e := range unjoin(err) {
		r.Errors = append(r.Errors, reportError(e))
	}
	if r.Kind == "configuration" {
		r.Sentences = []string{"The agent rejects a configuration with a mistake as a whole: it does not start, or keeps the one before."}
	}
}

func (r *fileReport) configuration(root *yamltree.Node, path, programs string) {
	conf, err := config.FromTree(root)
	if err == nil {
		err = agent.Usable(conf)
	}
	if err != nil {
		r.refuse(err)
		return
	}
	if path != "-" {
		if _, err := config.Load(path); err != nil {
			r.Warnings = append(r.Warnings, "the agent does not take this file: "+err.Error())
		}
	}
	part := func(name string, line int, origin string, p *policy.Policy) {
		if p == nil {
			j := judgeStack(nil, nil)
			j.Sentences = []string{"xdp.enable is off: it asks for nothing."}
			r.Parts = append(r.Parts, partReport{name, line, j})
			return
		}
		stack := policy.Stack{{Origin: origin, Policy: *p}}
		j := judgeStack(stack, nil)
		j.Sentences, j.Warnings = sentences(stack, p.Hook), append(j.Warnings, policy.Warnings(*p)...)
		if warning, _ := checkProgram(programs, p.Program, false); warning != "" {
			j.Warnings = append(j.Warnings, warning)
		}
		r.Parts = append(r.Parts, partReport{name, line, j})
	}
	if conf.Floor != nil {
		part("for every container", 0, "floor", conf.Floor)
	}
	for _, p := range conf.Policies {
		name := "for " + p.Pick.String() + ", beside its labels"
		if p.Replace {
			name = "for " + p.Pick.String() + ", in the place of its labels"
		}
		part(name, p.Line, "config", p.Labels)
	}
	r.settings(conf)
}

// settings are what a configuration says beside policies.
func (r *fileReport) settings(conf config.Config) {
	if len(conf.DNS) > 0 {
		r.Sentences = append(r.Sentences, "Containers without resolvers of their own ask "+addresses(conf.DNS)+".")
	}
	if len(conf.HostAddresses) > 0 {
		r.Sentences = append(r.Sentences, "The host also has "+addresses(conf.HostAddresses)+".")
	}
	if conf.Hook != policy.HookAuto {
		r.Sentences = append(r.Sentences, "The hook is "+conf.Hook.String()+" where no label names one.")
	}
	if conf.Conversations > 0 {
		r.Sentences = append(r.Sentences, fmt.Sprintf("Of a container that starts from now on %d answered conversations are remembered, and %d that are not.", conf.Conversations, conf.Conversations/4))
	}
	if len(r.Parts) == 0 {
		r.Sentences = append(r.Sentences, "Labels alone decide what holds for a container.")
	}
}

func addresses[T fmt.Stringer](list []T) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func (r *fileReport) compose(root *yamltree.Node, getenv func(string) string, path, programs string) {
	services, err := compose.Read(root, getenv)
	if err != nil {
		r.refuse(err)
	}
	r.Warnings = append(r.Warnings, overrides(path)...)
	for _, s := range services {
		r.Parts = append(r.Parts, partReport{"service " + s.Name, s.Line, judgeService(s, programs)})
	}
}

// overrides warns of a file that Compose would read as well.
func overrides(path string) (out []string) {
	base := filepath.Base(path)
	for _, name := range []string{"compose", "docker-compose"} {
		for _, ext := range []string{".yaml", ".yml"} {
			other := filepath.Join(filepath.Dir(path), name+".override"+ext)
			if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) && strings.TrimSuffix(base, filepath.Ext(base)) == name {
				out = append(out, other+" is not read here; Compose does: docker compose config | vethwall check -f -")
			}
		}
	}
	return out
}

// judgeService makes of a service's labels what an agent without a configuration makes of them.
func judgeService(s compose.Service, programs string) judgement {
	labels, image := compose.Map(s.Labels), compose.Map(s.Image)
	c := docker.Container{Labels: maps.Clone(image), ImageLabels: image, ImageKnown: true, Privileged: s.Privileged, CapAdd: s.CapAdd, Published: s.Published}
	maps.Copy(c.Labels, labels)
	// network_mode: service:web is what Docker is told as container:ID.
	c.NetworkMode = strings.Replace(s.NetworkMode, "service:", "container:", 1)
	j := judge(c, config.Config{}, programs)
	for i, e := range j.Errors {
		if at := placeOf(slices.Concat(s.Image, s.Labels), e); at != nil {
			placed := reportError(at)
			placed.whose, placed.Key, placed.Value, placed.Offset = e.whose, e.Key, e.Value, e.Offset
			j.Errors[i] = placed
		}
	}
	for _, l := range s.Deploy {
		if strings.HasPrefix(l.Key, "xdp.") {
			j.Warnings = append(j.Warnings, l.Place("labels under deploy reach no container", "write "+l.Key+" under labels of the service").Error())
		}
	}
	if len(s.Unread) > 0 { // what the labels that are known say may not be so
		j = judgeStack(nil, yamltree.Join(s.Unread))
		j.Sentences = []string{"Not all of its labels are known here, so nothing is said of them."}
	}
	slices.SortStableFunc(j.Errors, func(a, b errorReport) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return j
}

// placeOf finds the label that an error is about; the last of equal keys counts.
func placeOf(labels []compose.Label, e errorReport) *yamltree.Error {
	for _, l := range slices.Backward(labels) {
		if e.Key != "" && l.Key == e.Key {
			return l.Wrong(&policy.LabelError{Offset: e.Offset, Problem: e.Problem, Expected: e.Expected, Hint: e.Hint})
		}
	}
	return nil
}

func (r fileReport) table(e *env) string {
	var b strings.Builder
	b.WriteString(errorTable(e, r.Errors))
	for _, p := range r.Parts {
		name := p.Name
		if p.Line > 0 {
			name += fmt.Sprintf(" (line %d)", p.Line)
		}
		b.WriteString(clean(name) + "\n" + p.table(e) + "\n")
	}
	for _, s := range r.Sentences {
		b.WriteString(clean(s) + "\n")
	}
	for _, w := range r.Warnings {
		b.WriteString(e.paint(yellow, "warning:") + " " + clean(w) + "\n")
	}
	return b.String()
}

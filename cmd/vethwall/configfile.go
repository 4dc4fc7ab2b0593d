package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
)

// configFlag is where commands find the agent's configuration.
type configFlag struct {
	cmd  *cobra.Command
	path *string
}

func newConfigFlag(cmd *cobra.Command) configFlag {
	return configFlag{cmd, cmd.Flags().String("config", config.DefaultPath, "the agent's configuration; one that is named must be there")}
}

// named reports whether the user has named a file.
func (f configFlag) named() bool { return f.cmd.Flags().Changed("config") }

// there refuses a file that the user has named and that is not there.
func (f configFlag) there() error {
	if _, err := os.Stat(*f.path); err != nil && f.named() {
		return fmt.Errorf("--config: %w", err)
	}
	return nil
}

// readConfig is the configuration that an agent would have; for labels that are given by hand it counts only where the
// user names it. Mistakes in it have been shown when it returns.
func (e *env) readConfig(f configFlag, byHand bool) (config.Config, error) {
	if byHand && !f.named() {
		return config.Config{}, nil
	}
	if err := f.there(); err != nil {
		return config.Config{}, err
	}
	conf, err := agent.ReadConfig(*f.path)
	return conf, e.mistakes(err)
}

// mistakes shows the mistakes in a file that err is made of, and sums them up.
func (e *env) mistakes(err error) error {
	var all yamltree.Errors
	if !errors.As(err, &all) {
		return err
	}
	for _, m := range all[:min(len(all), maxErrors)] {
		fmt.Fprintln(e.stderr, "error: "+reportError(m).place())
	}
	return fmt.Errorf("%s: %s in the agent's configuration, so nothing of it counts and nothing was changed", all[0].File, counted(len(all), "mistake"))
}

// checkConfig looks at what an agent that starts would read.
func checkConfig(path string) finding {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return finding{good, "no " + path + ": labels alone decide", ""}
	}
	conf, err := agent.ReadConfig(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return finding{warn, path + " cannot be read by this user", "run as root: sudo vethwall doctor"}
	case err != nil:
		return finding{fail, joined(err), "an agent does not start with it, and one that runs keeps what it had; see vethwall check -f " + path}
	}
	floor := "no floor"
	if conf.Floor != nil {
		floor = "a floor"
	}
	return finding{good, fmt.Sprintf("%s: %s, policies: %d", path, floor, len(conf.Policies)), ""}
}

// counted is a number of things.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// joined is an error on one line, for those that errors.Join has made.
func joined(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

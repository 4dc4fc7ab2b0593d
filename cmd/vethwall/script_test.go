package main

import (
	"errors"
	"flag"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite what cmp compares in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vethwall": main})
}

// TestScripts runs the program as a user would. `rc N command...` runs a command that has to end with exit code N;
// `rc 0,1 ...` allows several. $ROOT is the checkout.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			root, err := filepath.Abs("../..")
			env.Setenv("ROOT", root)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"rc": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: rc N[,N] command...")
				}
				code := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					var exit *exec.ExitError
					if !errors.As(err, &exit) {
						ts.Fatalf("%s: %v", args[1], err)
					}
					code = exit.ExitCode()
				}
				for _, want := range strings.Split(args[0], ",") {
					if strconv.Itoa(code) == want {
						return
					}
				}
				ts.Fatalf("exit code %d, want %s", code, args[0])
			},
		},
	})
}

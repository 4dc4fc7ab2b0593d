package xdp

import (
	"errors"
	"fmt"
	"github.com/cilium/ebpf"
	"testing"
)

func TestLoad(t *testing.T) {
	spec, err := loadFilter()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"unanswered", "answered", "fragments"} {
		fmt.Println(n, spec.Maps[n].InnerMap)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		l := ve.Log
		if len(l) > 30 {
			l = l[len(l)-30:]
		}
		for _, x := range l {
			fmt.Println(x)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for n, p := range c.Programs {
		fmt.Println("OK", n, p.VerifierLog)
	}
}

package xdp

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// BenchmarkCompile measures what a new policy costs user space, and how much memory it takes in the kernel.
func BenchmarkCompile(b *testing.B) {
	for _, k := range kinds {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", k.name, n), func(b *testing.B) {
				rules := draw(k.name, n).rules
				var t *Tables
				for b.Loop() {
					var err error
					if t, err = compiled(rules); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(t.nodes)), "nodes")
				b.ReportMetric(float64(len(t.nodes)*binary.Size(filterNode{}))/float64(n), "B/rule")
			})
		}
	}
}

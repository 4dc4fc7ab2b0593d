package xdp

import (
	"fmt"

	"github.com/vethwall/vethwall/policy"
)

// maxLimits is MAX_LIMITS of bpf/maps.h.
const maxLimits = 16

// The parts of a rate in bpf/limit.h.
const (
	rateSlotShift = 48
	rateBits      = 1 << 63
	rateAudit     = 1 << 62
	rateQuiet     = 1 << 61
)

// limits compiles the limits of one direction; false where there are none.
func (t *Tables) limits(f *forest, s policy.Stack, dir policy.Direction) (bool, error) {
	var rules []slottedRule
	var rates []uint64
	for i, source := range s {
		for _, r := range source.Policy.Rules {
			if r.Verb != policy.Limit || !r.In[dir] {
				continue
			}
			slot := t.slot(dir, Counted{Rule: r.String(), Limit: true, Audit: s.Audited(i)}, r.Shown != "")
			rate := rateOf(r.Rate, slot, sourceFlags(s, i))
			if n := len(rates); n == 0 || r.Shown == "" || rates[n-1] != rate { // else one limit to its users: one bucket
				rates = append(rates, rate)
			}
			rules = append(rules, slottedRule{
				source: i, slot: uint32(len(rates) - 1), services: serviceSpans(r.Match.What), peers: r.Match.Peers,
				notIP: r.Match.What.Kind == policy.All && r.Match.Peers.Any(),
			})
		}
	}
	if len(rules) == 0 {
		return false, nil
	}
	if len(rates) > maxLimits {
		return false, fmt.Errorf("%d limits for %s: this version enforces %d at most", len(rates), dir, maxLimits)
	}
	c := &compiler{forest: f, stack: s, dir: dir, rules: rules, limits: true, budget: rowBudget, numbers: map[string]uint32{}}
	var err error
	if t.table[2+dir], err = c.compile(); err != nil {
		return false, err
	}
	t.rates[dir] = f.addFlat()
	for i, rate := range rates {
		setNumber(&f.nodes[t.rates[dir]-1], 2*i, uint32(rate))
		setNumber(&f.nodes[t.rates[dir]-1], 2*i+1, uint32(rate>>32))
	}
	t.flags |= flagLimits << dir
	return true, nil
}

func rateOf(r policy.Rate, slot, flags uint32) uint64 {
	out := r.Count | uint64(slot)<<rateSlotShift
	if r.Bits {
		out |= rateBits
	}
	if flags&auditBit != 0 {
		out |= rateAudit
	}
	if flags&quietBit != 0 {
		out |= rateQuiet
	}
	return out
}
